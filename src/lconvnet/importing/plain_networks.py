"""Weights of other libraries in a frame: a plain network that states what a file of weights does not.

A state dict contains no strides, paddings or activations. The user writes them down as the plain network to make: an
`nn.Sequential` of `nn.Conv2d`, `nn.Linear` and our activations. Each of its convolutions and dense layers gets the
weight that the other library would compute from the parameters of the same name or number. The order in a file decides
nothing: it is the order in which a constructor made the layers, which may differ from that of the forward pass. Every
tensor of the file is used, or named in an error. Nothing is assumed about the weights; `lconvnet.lipschitz_bound` of
the result measures them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import ceil, sqrt
from pathlib import Path

from torch import Tensor, nn

from lconvnet.atomic import as_path
from lconvnet.baking import bake
from lconvnet.importing import pickles
from lconvnet.layers import ConstrainedLayer

Plain = nn.Conv2d | nn.Linear
Group = Mapping[str, Tensor]
"""The tensors that a library keeps for one layer, by name."""
Weight = Callable[[Group, Plain], Tensor]
"""Computes the constrained weight of one layer, in float64."""
Parameters = Callable[[Group, Plain], tuple[Tensor, Tensor | None]]
"""Computes the same with the bias."""
WAY_OUT = "name the layers of the frame as the file does: nn.Sequential(OrderedDict(...))"
WRAPPER = "_orig_mod"  # stands anywhere in the names of a compiled module


def load_plain(path: str | Path, frame: nn.Sequential) -> nn.Sequential:
    """Return the frame with weights that are stored as they are used, such as those of an exported network.

    Args:
        path: a `.pth` file that holds a state dict; nothing in it is run.
        frame: the plain network, which is not changed. Its layers are found by name or by number.

    Raises:
        ValueError: if the file is missing, damaged or would run something, and if it does not fit the frame.
    """
    return fill(as_path(path), frame, lambda group, layer: taken(group, "weight").double(), re.compile("weight"))


def fill(path: Path, frame: nn.Sequential, weight: Weight, kept: re.Pattern[str]) -> nn.Sequential:
    """Return a baked copy of the frame; `weight` computes the weight of each layer from the file.

    A layer of the file may have tensors whose names match `kept`, and a bias.
    """

    def parameters(group: Group, layer: Plain) -> tuple[Tensor, Tensor | None]:
        W = weight(group, layer)
        if unread := [name for name in group if name != "bias" and not kept.fullmatch(name)]:
            raise ValueError(f"it keeps {', '.join(unread)} besides, which would be lost")
        return W, group.get("bias")

    return placed(path, frame, parameters)


def placed(path: Path, frame: nn.Sequential, parameters: Parameters) -> nn.Sequential:
    """Return a baked copy of the frame; `parameters` computes weight and bias of each layer, in order."""
    network = bake(frame)
    if not isinstance(network, nn.Sequential):
        raise ValueError(f"frame is a {type(frame).__name__}; write the network down as an nn.Sequential")
    layers = dict(zip(weighted(frame), (part for part in network.modules() if isinstance(part, Plain)), strict=True))
    for name, part in network.named_modules():
        own = [key for key, _ in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))]
        if own and not isinstance(part, Plain):
            raise ValueError(f"frame has {name} ({type(part).__name__}) with {', '.join(own)}, which no file fills")
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
    """Return the names of the layers with weights, in order. Raises ValueError if one of them occurs twice.

    >>> weighted(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)))
    ['0', '2']
    """
    found: dict[int, str] = {}
    for name, part in frame.named_modules(remove_duplicate=False):
        if isinstance(part, Plain | ConstrainedLayer) and (first := found.setdefault(id(part), name)) != name:
            raise ValueError(f"frame has one layer as {first} and as {name}: write a layer of its own for each")
    return list(found.values())


def taken(group: Group, name: str) -> Tensor:
    """Return a tensor of a layer. If it is missing, raises a ValueError that names those the layer has."""
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
    for name, values in (("weight", weight), ("bias", bias)):
        if values is not None:  # a new parameter: the frame may use one tensor in several layers
            like = values.detach().to(layer.weight.device, layer.weight.dtype, copy=True)
            setattr(layer, name, nn.Parameter(like, requires_grad=False))
    if not all(bool(value.isfinite().all()) for value in layer.parameters()):
        raise ValueError(f"it has numbers that {layer.weight.dtype} does not hold; use frame.double()")


def paired(theirs: Sequence[str], ours: Sequence[str]) -> dict[str, str]:
    """Return the name of their layer for each of ours, in our order.

    Names decide if both sets are equal, apart from a common prefix of theirs (such as `module.`). Numbers decide if
    their names differ only in numbers; then the smallest belongs to our first layer, and so on.

    Raises ValueError if neither decides, and if a name that both have would belong to another layer.

    >>> paired(["module.second", "module.first"], ["first", "second"])
    {'first': 'module.first', 'second': 'module.second'}
    >>> paired(["conv10", "conv2"], ["0", "3"])
    {'0': 'conv2', '3': 'conv10'}
    """
    if len(theirs) != len(ours):
        raise ValueError(
            f"has weights of {len(theirs)} layers ({', '.join(theirs)}), the frame has {len(ours)} "
            f"({', '.join(ours)}); write one layer for each"
        )
    shortened = list(_shortened(theirs))
    for names in shortened:
        if set(names) == set(ours):
            return {name: theirs[names.index(name)] for name in ours}
    order = numbered(theirs)
    for names in shortened:
        places = [names[theirs.index(name)] for name in order]
        if any(place in ours and place != name for place, name in zip(places, ours, strict=True)):
            raise ValueError(
                f"has layers called {', '.join(theirs)}, the frame {', '.join(ours)}, which gives one name to two of "
                f"them; {WAY_OUT}"
            )
    return dict(zip(ours, order, strict=True))


def numbered(names: Sequence[str]) -> list[str]:
    """Return names that differ only in numbers, in the order of these. Raises ValueError for others.

    >>> numbered(["conv10", "conv2"])
    ['conv2', 'conv10']
    """
    if len({re.sub(r"\d+", "#", name) for name in names}) > 1:
        raise ValueError(f"has layers called {', '.join(names)}, whose order no number tells; {WAY_OUT}")
    return sorted(names, key=natural)


def natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key that compares the numbers inside a name as numbers.

    >>> sorted(["a10/b", "a2/b"], key=natural)
    ['a2/b', 'a10/b']
    """
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _shortened(names: Sequence[str]) -> Iterator[list[str]]:
    """Yield the names without wrappers, then repeatedly without the first part they share, while they differ."""
    parts = [[part for part in name.split(".") if part != WRAPPER] for name in names]
    while len({tuple(part) for part in parts}) == len(names):
        yield [".".join(part) for part in parts]
        if len({part[0] for part in parts if part}) != 1 or not all(part[1:] for part in parts):
            return
        parts = [part[1:] for part in parts]
