"""Weights of other libraries in a frame: a plain network that says what a file of weights does not.

A state dict knows neither strides and paddings nor activations. The user writes them down as the plain network that is
to come out, an `nn.Sequential` of `nn.Conv2d`, `nn.Linear` and our activations; each convolution and dense layer of it
is given the weight that the other library would compute from the parameters of the same name or number
(`lconvnet.importing.pairing`). Every tensor of the file is used, or named in an error. Nothing is assumed about the
weights: `lconvnet.lipschitz_bound` of the result measures them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from math import ceil, sqrt
from pathlib import Path

from torch import Tensor, nn

from lconvnet.atomic import as_path
from lconvnet.baking import bake
from lconvnet.importing import pickles
from lconvnet.importing.pairing import paired
from lconvnet.layers import ConstrainedLayer

Plain = nn.Conv2d | nn.Linear
Weight = Callable[[Mapping[str, Tensor], Plain], Tensor]
"""The constrained weight of one layer, in float64, from the tensors that its library keeps for it."""
Parameters = Callable[[Mapping[str, Tensor], Plain], tuple[Tensor, Tensor | None]]
"""The same with the bias."""


def load_plain(path: str | Path, frame: nn.Sequential) -> nn.Sequential:
    """Return the frame with weights that are stored as they are used, such as those of an exported network.

    Args:
        path: a `.pth` file that holds a state dict; nothing in it is run.
        frame: the plain network; it is left as it is. Its layers are found by name, or by number (`pairing.paired`).

    Raises:
        ValueError: for a file that is missing, damaged, or would run something, and where it does not fit the frame.
    """
    return fill(as_path(path), frame, lambda group, layer: taken(group, "weight").double(), re.compile("weight"))


def fill(path: Path, frame: nn.Sequential, weight: Weight, kept: re.Pattern[str]) -> nn.Sequential:
    """Return a baked copy of the frame, the weight of each of its layers made by `weight` from the file.

    A layer of the file has tensors with names that are `kept`, and a bias at most.
    """

    def parameters(group: Mapping[str, Tensor], layer: Plain) -> tuple[Tensor, Tensor | None]:
        W = weight(group, layer)
        if unread := [name for name in group if name != "bias" and not kept.fullmatch(name)]:
            raise ValueError(f"it keeps {', '.join(unread)} besides, which would be lost")
        return W, group.get("bias")

    return placed(path, frame, parameters)


def placed(path: Path, frame: nn.Sequential, parameters: Parameters) -> nn.Sequential:
    """Return a baked copy of the frame, weight and bias of each layer, in order, made by `parameters`."""
    network = bake(frame)
    if not isinstance(network, nn.Sequential):
        raise ValueError(f"frame is a {type(frame).__name__}; write the network down as an nn.Sequential")
    layers = dict(zip(weighted(frame), (part for part in network.modules() if isinstance(part, Plain)), strict=True))
    _require_filled(network)
    groups = pickles.by_module(pickles.state_dict(pickles.read(path), path))
    try:
        places = paired(list(groups), list(layers))
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None
    for name, layer in layers.items():
        try:
            _put(layer, *parameters(groups[places[name]], layer))
        except (ValueError, RuntimeError, KeyError, IndexError) as error:
            raise ValueError(f"{path}: {places[name]} does not fit layer {name} of the frame: {error}") from None
    return network


def weighted(frame: nn.Module) -> list[str]:
    """The names of the layers with weights, in order; ValueError where one of them occurs twice.

    >>> weighted(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)))
    ['0', '2']
    """
    found: dict[int, str] = {}
    for name, part in frame.named_modules(remove_duplicate=False):
        if isinstance(part, Plain | ConstrainedLayer) and (first := found.setdefault(id(part), name)) != name:
            raise ValueError(f"frame has one layer as {first} and as {name}: write a layer of its own for each")
    return list(found.values())


def _require_filled(network: nn.Sequential) -> None:
    """Refuse a frame with numbers of its own, which no file would fill."""
    for name, part in network.named_modules():
        own = [key for key, _ in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))]
        if own and not isinstance(part, Plain):
            raise ValueError(f"frame has {name} ({type(part).__name__}) with {', '.join(own)}, which no file fills")


def taken(group: Mapping[str, Tensor], name: str) -> Tensor:
    """Return a tensor of a layer; ValueError names those it has where that one is missing."""
    if name not in group:
        raise ValueError(f"it keeps {', '.join(group)}, where {name} was expected")
    return group[name]


def patches(layer: Plain) -> float:
    r"""Return $\sqrt{\lceil k/s\rceil^2}$, the norm of cutting an image into patches; 1 for dense layers."""
    if isinstance(layer, nn.Linear):
        return 1.0
    return sqrt(ceil(layer.kernel_size[0] / layer.stride[0]) * ceil(layer.kernel_size[1] / layer.stride[1]))


def _put(layer: Plain, weight: Tensor, bias: Tensor | None) -> None:
    if isinstance(layer, nn.Conv2d) and (layer.groups, layer.dilation) != (1, (1, 1)):
        raise ValueError(f"{layer} has groups or dilation, which are not read")
    for name, found, expected in (("weight", weight, layer.weight), ("bias", bias, layer.bias)):
        shapes = [None if tensor is None else tuple(tensor.shape) for tensor in (found, expected)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{name} has shape {shapes[0]}, the frame {shapes[1]}")
    if not bool(weight.isfinite().all()):
        raise ValueError("its weight has rows or matrices of zeros, which have no norm to divide by")
    layer.weight = _like(layer.weight, weight)  # a new one: the frame may use one tensor in several layers
    if layer.bias is not None and bias is not None:
        layer.bias = _like(layer.bias, bias)
    if not all(bool(value.isfinite().all()) for value in layer.parameters()):
        raise ValueError(f"it has numbers that {layer.weight.dtype} does not hold; use frame.double()")


def _like(held: Tensor, values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach().to(held.device, held.dtype, copy=True), requires_grad=False)
