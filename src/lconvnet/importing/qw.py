"""Weights of the QW networks from TensorFlow checkpoints.

Their authors trained with TensorFlow, and the names of their variables are nowhere in print; what is relied on is
TensorFlow's habit. The variables of a layer share a scope (`conv1/weights`, `conv1/biases`), kernels are
``(height, width, in, out)`` and ``(in, out)``, channels come last, and layers of one shape come in the order of their
names, numbers counted as numbers: the first of them belongs to the first class. Variables of an optimiser and of
the loss are left out. A weight is divided by the bound on its norm (kernels/rkl2ne.py), as in every step of the paper.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import isqrt
from pathlib import Path

from torch import Tensor, nn

from lconvnet.importing import tensorflow
from lconvnet.importing.pairing import natural
from lconvnet.layers import ConstrainedLayer, LipschitzConv2d, LipschitzLinear

LOSS = "loss"
OPTIMIZERS = re.compile(r".*/(Adam|Adam_1|Momentum|RMSProp|RMSProp_1|ExponentialMovingAverage)")


def load(model: nn.Sequential, architecture: str, path: Path) -> int:
    """Put the weights of a checkpoint into the network; return 0, for it names no epoch.

    Raises ValueError for a file that is no checkpoint, and where its layers are not those of the network.
    """
    layers = list(_layers(tensorflow.read(path), path))
    channels = 0
    for name, part in model.named_modules():
        if isinstance(part, LipschitzConv2d):
            _fill(part, _take(layers, part, name, path))
            channels = 2 * part.out_channels
        elif isinstance(part, LipschitzLinear):
            kernel, bias = _take(layers, part, name, path)
            _fill(part, (_channels_first(kernel, channels) if name.endswith("linear1") else kernel, bias))
    if layers:
        shapes = ", ".join(str(tuple(kernel.shape)) for kernel, _ in layers[:3])
        raise ValueError(f"{path} has layers that {architecture} has not: {shapes}; state model.channels and hidden")
    return 0


def _layers(variables: Mapping[str, Tensor], path: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """Kernel ``(out, in, height, width)`` or ``(out, in)`` and bias of every layer, in natural order."""
    scopes: dict[str, list[Tensor]] = {}
    for name in sorted(variables, key=natural):
        if not OPTIMIZERS.fullmatch(name) and variables[name].ndim:
            if not bool(variables[name].isfinite().all()):
                raise ValueError(f"{path}: {name} holds NaN or infinite values")
            scopes.setdefault(name.rpartition("/")[0], []).append(variables[name])
    for scope, found in scopes.items():
        bias, kernel = (min(found, key=Tensor.dim), max(found, key=Tensor.dim))
        if kernel.ndim == 1 and scope.split("/")[0] == LOSS:
            continue
        if len(found) != 2 or bias.ndim != 1 or kernel.ndim not in (2, 4):
            shapes = ", ".join(str(tuple(value.shape)) for value in found)
            raise ValueError(f"{path}: {scope!r} holds variables of shapes {shapes}; a layer has a kernel and a bias")
        yield (kernel.permute(3, 2, 0, 1) if kernel.ndim == 4 else kernel.mT), bias


def _take(layers: list[tuple[Tensor, Tensor]], part: ConstrainedLayer, name: str, path: Path) -> tuple[Tensor, Tensor]:
    """Remove and return the first layer of the shape that a part of the network has."""
    shape = part.kernel.get_parameter("W").shape
    for place, (kernel, bias) in enumerate(layers):
        if kernel.shape == shape and bias.shape == shape[:1]:
            return layers.pop(place)
    raise ValueError(f"{path} has no layer of shape {tuple(shape)} left for {name}; state model.channels and hidden")


def _fill(part: ConstrainedLayer, layer: tuple[Tensor, Tensor]) -> None:
    kernel, bias = layer
    part.load_state_dict({"kernel.W": kernel, "bias": bias})


def _channels_first(kernel: Tensor, channels: int) -> Tensor:
    """Columns in the order (C, H, W) of our flattened images, from (H, W, C)."""
    side = isqrt(kernel.shape[1] // channels)
    return kernel.unflatten(1, (side, side, channels)).permute(0, 3, 1, 2).flatten(1)
