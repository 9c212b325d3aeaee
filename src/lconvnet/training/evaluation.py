"""Accuracy and Lipschitz bound of the baked network on held-out images, and the singular values of its layers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lconvnet.baking import bake
from lconvnet.bounds import lipschitz_bound
from lconvnet.certify import certified_accuracy, certify
from lconvnet.data import Images, batch
from lconvnet.ops.circular import to_unshuffled
from lconvnet.ops.fourier import circular_singular_values
from lconvnet.training.processes import Processes

ALONE = Processes()
CHUNK = 8192  # images converted to floats at a time: 100 MB for 32 x 32 x 3


@dataclass(frozen=True)
class Validation:
    """A baked network, its accuracies as fractions (none without images), and its Lipschitz upper bound."""

    clean: float | None
    certified: dict[float, float]
    lipschitz: float
    network: nn.Module


def validate(model: nn.Module, images: Images, eps: Sequence[float], processes: Processes = ALONE) -> Validation:
    """Bake `model`, bound it, and measure clean and certified accuracy at each l2 radius in `eps`.

    The processes share the images. The model is left in eval mode. Raises `ValueError` if the network has fewer outputs
    than the data has classes, and any error that `lipschitz_bound` raises for modules it does not know.
    """
    network = bake(model.eval())
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    bound = lipschitz_bound(network, input_shape=tuple(images.images.shape[1:]), diagnose=False)
    if not len(images):
        return Validation(None, {}, bound.upper, network)
    correct, certain = 0, dict.fromkeys(eps, 0)
    own = processes.share(torch.arange(len(images)))
    for indices in own.split(CHUNK) if len(own) else ():
        inputs, labels = batch(images, indices)
        certificates = certify(network, inputs.to(device, _dtype(network)), bound=bound, eps=eps)
        labels = labels.to(certificates.label.device)
        correct += int((certificates.label == labels).sum())
        for radius in eps:
            certain[radius] += round(certified_accuracy(certificates, labels, radius) * len(labels))
    correct, *counts = processes.gather(correct, *certain.values()).sum(dim=0).tolist()
    certified = {radius: count / len(images) for radius, count in zip(eps, counts, strict=True)}
    return Validation(correct / len(images), certified, bound.upper, network)


def require_classes(network: nn.Module, images: Images) -> tuple[Tensor, Tensor]:
    """Return logits `(1, C)` and label `(1,)` of the first image. Raises `ValueError` unless `network` maps a batch of
    these images to at least one logit per class."""
    inputs, labels = batch(images, [0])
    weight = next(network.parameters(), inputs)
    logits = network(inputs.to(weight.device, weight.dtype))
    shape = tuple(logits.shape)
    if len(shape) != 2 or shape[1] < images.classes:
        raise ValueError(
            f"model gives outputs of shape {shape} for one image, data {images.name!r} has {images.classes} classes: "
            "build the model with that many classes"
        )
    return logits if logits.dtype == torch.float64 else logits.float(), labels.to(logits.device)


@torch.no_grad()
def singular_values(network: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, Tensor]:
    """Singular values (float64, on the CPU) of every `nn.Linear` and `nn.Conv2d` of a baked network, by layer name.

    A convolution counts as circular at the image size it receives, and its stride as an invertible downsampling. The
    values are exact for this package's circular layers; under zero padding they are a diagnosis, not a bound.

    >>> from lconvnet.models import mlp
    >>> values = singular_values(bake(mlp(4, 2, widths=(4,))), (1, 2, 2))
    >>> {name: [round(s, 6) for s in value.tolist()] for name, value in values.items()}
    {'linear1': [1.0, 1.0, 1.0, 1.0], 'linear2': [1.0, 1.0]}
    """
    layers = {name: layer for name, layer in network.named_modules() if type(layer) in (nn.Linear, nn.Conv2d)}
    sizes = _met_sizes(network, image_shape)
    return {
        name: _convolution(layer, sizes[name])
        if type(layer) is nn.Conv2d
        else torch.linalg.svdvals(layer.weight.double()).cpu()
        for name, layer in layers.items()
        if name in sizes
    }


def _met_sizes(network: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    """Height and width of each layer's input, by name; measured before a circular padding that is part of the layer."""
    sizes: dict[str, tuple[int, ...]] = {}
    before: list[tuple[int, ...]] = []

    def note(name: str, layer: nn.Module, x: Tensor) -> None:
        sizes[name] = before.pop() if before and type(layer) is nn.Conv2d else tuple(x.shape[2:])
        if type(layer) is nn.CircularPad2d:
            before.append(sizes[name])

    handles = [
        layer.register_forward_pre_hook(lambda layer, inputs, name=name: note(name, layer, inputs[0]))
        for name, layer in network.named_modules()
        if not list(layer.children())
    ]
    weight = next(network.parameters(), torch.zeros(()))
    network(torch.zeros(1, *image_shape, dtype=weight.dtype, device=weight.device))
    for handle in handles:
        handle.remove()
    return sizes


def _convolution(layer: nn.Conv2d, size: tuple[int, ...]) -> Tensor:
    stride = layer.stride[0]
    kernel = to_unshuffled(layer.weight, stride)
    return circular_singular_values(kernel, (-(-size[0] // stride), -(-size[1] // stride))).cpu()


def _dtype(network: nn.Module) -> torch.dtype:
    return next((parameter.dtype for parameter in network.parameters()), torch.float32)
