"""Convert an ordinary sequential CNN to a 1-Lipschitz network of the same layout, to be trained.

Each layer is replaced as follows, where c, h, w are the channels and sides of its input:

    Conv2d k, s            the constrained convolution c -> out, k rounded up to a multiple of s, sides h / s; k is at
                           most h, because an image has no more rows
    Linear                 the constrained dense layer from all input features
    ReLU and similar       the activation, MaxMin
    pooling of stride s    invertible downsampling by s, which keeps every pixel as a channel: c s^2
    final k×k averages     those averages times k, the inverse of their norm: the number of outputs stays the same
    normalisation, dropout nothing

Widths follow from the input shape, and no layer remains that could stretch a distance. Weights are drawn anew, because
unconstrained weights say nothing about constrained ones.

The module must be a chain: each layer acts on the result of the one before. Sequences are chains. Any other class is
traced (`torch.fx`), and its functions become layers (`FUNCTIONS`). If a value is used twice, or a function is not
known, the module is not a chain.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from lconvnet.layers import BCOPConv2d, CholeskyLinear, InvertibleDownsampling, InvertibleUpsampling, MaxMin, Scale
from lconvnet.ops.hooks import altered, require_module
from lconvnet.ops.images import checked_shape

Part = Callable[..., nn.Module]
Layers = list[nn.Module]


class Change(NamedTuple):
    """A layer that was replaced by something other than its constrained equal."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class Conversion:
    """A 1-Lipschitz network whose layers keep their old names, and the changes."""

    model: nn.Sequential
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Site:
    """A layer of the old network, the input shape at its place in the new one, and the parts to build with.

    `is_output` is true if layers with weights stand before it and none behind it.
    """

    module: Any
    is_output: bool
    shape: tuple[int, ...]
    conv: Part
    linear: Part
    activation: Part

    def image(self) -> tuple[int, int, int]:
        """Return the shape as that of an image. Raises ValueError if features arrive instead."""
        if len(self.shape) != 3:
            raise ValueError(f"needs an image, but {prod(self.shape)} features arrive")
        return self.shape[0], self.shape[1], self.shape[2]


def convert(
    module: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    conv: Part = BCOPConv2d,
    linear: Part = CholeskyLinear,
    activation: Part = MaxMin,
) -> Conversion:
    """Build the 1-Lipschitz network of the same layout as a sequential module, which is not changed.

    Args:
        module: layers in `lconvnet.conversion.RULES` one after another: an `nn.Sequential`, with any nesting, or a
            class whose forward pass is such a chain.
        input_shape: (C, H, W) of the images.
        conv, linear: constructors as in `lconvnet.models`.
        activation: constructor of the activation, called without arguments.

    Returns:
        The network, in float64 if the old one is, and the changes that are more than a constraint. The weights are
        drawn from the global random state.

    Raises:
        ValueError: names every layer that has no 1-Lipschitz equal here, with the reason.

    >>> cnn = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 10))
    >>> conversion = convert(cnn, (3, 16, 16))
    >>> conversion.model(torch.zeros(2, 3, 16, 16)).shape
    torch.Size([2, 10])
    >>> [(change.name, change.after) for change in conversion.changes]
    [('1', 'MaxMin'), ('2', 'InvertibleDownsampling')]
    """
    require_module(module, "module")
    shape = checked_shape(input_shape)
    if len(shape) != 3:
        raise ValueError(f"input_shape is {shape}; expected (channels, height, width)")
    chain = list(links(module))
    obstacles = [f"{_at(link.name, link.layer)} {reason}" for link in chain if (reason := _obstacle(link))]
    if obstacles:
        raise ValueError(f"{len(obstacles)} of {len(chain)} layers cannot be converted: {'; '.join(obstacles)}")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    changes: list[Change] = []
    seen: set[nn.Module] = set()
    calls: Counter[str] = Counter()
    last = max((i for i, link in enumerate(chain) if type(link.layer) in WEIGHTED), default=len(chain))
    for i, (name, leaf, _) in enumerate(chain):
        try:
            new, change = RULES[type(leaf)](Site(leaf, i > last, shape, conv, linear, activation))
            shape = _output_shape(new, shape)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{_at(name, leaf)} cannot be converted at {shape}: {error}") from None
        calls[name] += 1
        named = _named(name if calls[name] == 1 else f"{name}_{calls[name]}", new)
        if taken := layers.keys() & named:
            raise ValueError(
                f"{_at(name, leaf)} and an earlier layer are both {taken.pop()!r} here; rename one of them"
            )
        layers |= named
        if leaf in seen and any(layer.state_dict() for layer in new):
            change = ", ".join(filter(None, (change, "weights of its own")))
        seen.add(leaf)
        changes += [Change(name, type(leaf).__name__, change)] if change else []
    return Conversion(nn.Sequential(layers).to(_dtype(module)), tuple(changes))


def _dtype(module: nn.Module) -> torch.dtype:
    """Return float64 if a parameter has it, else float32."""
    found = {torch.promote_types(parameter.dtype, torch.float32) for parameter in module.parameters()}
    return torch.float64 if torch.float64 in found else torch.float32


def _at(name: str, leaf: nn.Module) -> str:
    return f"{name or 'module'!r} ({type(leaf).__name__})"


def _named(name: str, new: Layers) -> OrderedDict[str, nn.Module]:
    """Name one layer by its old path, and number several. A module's own name has no dots."""
    flat = name.replace(".", "_") or "0"
    names = [flat] if len(new) == 1 else [f"{flat}_{i}" for i in range(len(new))]
    return OrderedDict(zip(names, new, strict=True))


@torch.no_grad()
def _output_shape(layers: Layers, shape: tuple[int, ...]) -> tuple[int, ...]:
    x = torch.zeros(1, *shape)
    for layer in layers:
        x = layer(x)
    return tuple(x.shape[1:])


def _obstacle(link: Link) -> str:
    """Return why a layer cannot be converted at any place; "" if nothing is known against it."""
    leaf: Any = link.layer
    if type(leaf) not in RULES or link.fault:
        return f"has no 1-Lipschitz equal here; {link.fault or 'take it out, or build it from layers that have one'}"
    if method := altered(leaf):
        return f"has forward hooks or a replaced {method}; make what they do a module"
    for name in SQUARE.get(type(leaf), ()):
        sides = getattr(leaf, name)
        if isinstance(sides, tuple) and len(set(sides)) > 1:
            return f"has {name}={sides}; only squares are converted"
    for name, value in ONLY.get(type(leaf), {}).items():
        if getattr(leaf, name) not in (value, (value, value)):
            return f"has {name}={getattr(leaf, name)}; only {value} is converted"
    return ""


def _side(value: int | tuple[int, int]) -> int:
    return value[0] if isinstance(value, tuple) else value


def _convolution(site: Site) -> tuple[Layers, str]:
    """Convert a convolution. The layer's own padding replaces every other, so stride s turns h rows into h / s."""
    old = site.module
    k, s = _side(old.kernel_size), _side(old.stride)
    size = -(-k // s) * s
    channels, *sides = site.image()
    extension, (height, width) = _extended(sides, s)
    if min(_old_output(old, sides)) > 0:  # a kernel larger than the image reaches no farther than one of its size
        size = min(size, height, width)
    options = {"bias": old.bias is not None, "input_size": (height, width)}
    notes = [] if size == k else [f"kernel_size {size}"]
    if _old_output(old, sides) != (height // s, width // s):
        notes.append(f"output {height // s}x{width // s}")
    if old.padding_mode in ("reflect", "replicate"):
        notes.append(f"no {old.padding_mode} padding")
    return [*extension, site.conv(channels, old.out_channels, size, s, **options)], ", ".join(notes)


def _old_output(conv: nn.Conv2d, sides: list[int]) -> tuple[int, ...]:
    if conv.padding == "same":
        return tuple(sides)
    padding = 0 if isinstance(conv.padding, str) else conv.padding[0]
    return tuple((side + 2 * padding - conv.kernel_size[0]) // conv.stride[0] + 1 for side in sides)


def _extended(sides: list[int], factor: int) -> tuple[Layers, tuple[int, int]]:
    """Return the layer that pads an image with zeros to multiples of a factor, if it needs one, and the new sides."""
    below, right = (-side % factor for side in sides)
    layers: Layers = [nn.ZeroPad2d((0, right, 0, below))] if below or right else []
    return layers, (sides[0] + below, sides[1] + right)


def _dense(site: Site) -> tuple[Layers, str]:
    if len(site.shape) != 1:
        raise ValueError("acts on images; put nn.Flatten() before it")
    return [site.linear(site.shape[0], site.module.out_features, site.module.bias is not None)], ""


def _activation(site: Site) -> tuple[Layers, str]:
    new = site.activation()
    return [new], type(new).__name__


def _pooling(site: Site) -> tuple[Layers, str]:
    pool = site.module
    factor = _side(pool.stride or pool.kernel_size)
    if not site.is_output:
        return _downsampling(site, factor)
    expected = {"kernel_size": factor, "padding": 0, "ceil_mode": False, "divisor_override": None}
    for name, value in expected.items():
        if type(pool) is nn.AvgPool2d and getattr(pool, name) not in (value, (value, value)):
            raise ValueError(f"is the last layer and has {name}={getattr(pool, name)}; only {value} is converted there")
    return _averages(site, factor)


def _adaptive_pooling(site: Site) -> tuple[Layers, str]:
    _, height, width = site.image()
    target = _side(site.module.output_size)
    if target is None:
        return _downsampling(site, 1)
    if height != width or height % target:
        raise ValueError(f"pools {height}x{width} to {target}; both sides must be the same multiple of that")
    return (_averages if site.is_output else _downsampling)(site, height // target)


def _averages(site: Site, factor: int) -> tuple[Layers, str]:
    """Keep the number of outputs of final averages; downsampling would turn every pixel into an output."""
    if type(site.module) not in (nn.AvgPool2d, nn.AdaptiveAvgPool2d):
        raise ValueError("is the last layer, which only average pooling may be; use that, or end with a dense layer")
    if factor == 1:
        return [], "nothing"
    return [nn.AvgPool2d(factor), Scale(factor)], f"{factor} times its averages"


def _downsampling(site: Site, factor: int) -> tuple[Layers, str]:
    _, *sides = site.image()
    if factor == 1:
        return [], "nothing"
    return [*_extended(sides, factor)[0], InvertibleDownsampling(factor)], InvertibleDownsampling.__name__


def _nothing(site: Site) -> tuple[Layers, str]:
    return [], "" if type(site.module) is nn.Identity else "nothing"


def _shuffle(site: Site) -> tuple[Layers, str]:
    if type(site.module) is nn.PixelUnshuffle:
        return [InvertibleDownsampling(site.module.downscale_factor)], ""
    return [InvertibleUpsampling(site.module.upscale_factor)], ""


class Link(NamedTuple):
    """A layer of a chain with its path. `fault` says why a module that is not a layer of torch is not a chain."""

    name: str
    layer: nn.Module
    fault: str = ""


def links(module: nn.Module, name: str = "") -> Iterator[Link]:
    """Yield the layers in order, nested ones with their paths.

    >>> features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    >>> [(name, type(layer).__name__) for name, layer, _ in links(nn.Sequential(features, nn.Flatten()))]
    [('0.0', 'Conv2d'), ('0.1', 'ReLU'), ('1', 'Flatten')]
    """
    if _is_layer(module) and type(module) is not nn.Sequential:
        yield Link(name, module)
    elif method := altered(module):
        yield Link(name, module, f"it has forward hooks or a replaced {method}; make what they do a module")
    elif type(module) is nn.Sequential:
        for child_name, child in module._modules.items():  # named_children would drop repeated modules
            if child is not None:
                yield from links(child, _path(name, child_name))
    else:
        yield from _traced(module, name)


def _is_layer(module: nn.Module) -> bool:
    """Return whether a module counts as one layer: those of torch and of this package do."""
    return type(module).__module__.split(".")[0] in ("torch", __package__)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_layer(m) and not isinstance(m, nn.Sequential)


def _traced(module: nn.Module, name: str) -> list[Link]:
    """Return the chain of a module, or the module itself with the reason why it is not a chain."""
    try:
        return list(_chain(module, _Tracer().trace(module), name))
    except _NoChainError as error:
        return [Link(name, module, f"its forward pass is not a chain of layers: {error}")]
    except Exception as error:  # the user's forward pass may raise anything while it is traced
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return [Link(name, module, f"its forward pass cannot be traced ({reason})")]


class _NoChainError(Exception):
    """A forward pass does something that a chain of layers does not."""


def _chain(module: nn.Module, graph: fx.Graph, name: str) -> Iterator[Link]:
    current, *others = graph.nodes
    if current.op != "placeholder":
        raise _NoChainError("it takes nothing")
    for node in others:
        if node.op == "placeholder":
            if not node.args:
                raise _NoChainError(f"it takes {node.name} too")
        elif node.op == "output":
            if node.args != (current,):
                raise _NoChainError("it returns more than what its last layer does")
        elif not _is_size(node):
            if node.args[:1] != (current,) or any(other is not current for other in _values(node)):
                raise _NoChainError(_apart(node, current))
            yield _link(module, node, name)
            current = node


def _link(module: nn.Module, node: fx.Node, name: str) -> Link:
    if node.op == "call_module":
        if len(node.args) > 1 or node.kwargs:
            raise _NoChainError(f"{node.target} is given options")
        return Link(_path(name, str(node.target)), module.get_submodule(str(node.target)))
    if node.target in ("view", "reshape", torch.reshape):
        layer = _flattening(node)
    elif node.target in FUNCTIONS:
        layer = FUNCTIONS[node.target](*node.args[1:], **node.kwargs)
    else:
        raise _NoChainError(f"{node.name} is not known")
    return Link(_path(name, node.name), layer)


def _flattening(node: fx.Node) -> nn.Module:
    """Return the layer of `x.view(x.size(0), -1)` and similar calls."""
    shape = node.args[1] if len(node.args) == 2 else node.args[1:]
    if not isinstance(shape, tuple | list) or len(shape) != 2 or not isinstance(shape[0], fx.Node) or shape[1] != -1:
        raise _NoChainError(f"{node.name} is not a flattening; write torch.flatten(x, 1)")
    return nn.Flatten()


def _is_size(node: fx.Node) -> bool:
    """Return whether a node is the number of images, such as `x.size(0)` or `x.shape[0]`, or a step towards it."""
    if node.op == "call_method" and node.target == "size":
        return node.args[1:] in ((0,), ()) and not node.kwargs
    if node.op == "call_function" and getattr(node.target, "__name__", "") == "getattr":
        return node.args[1:] == ("shape",)
    if node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem":
        size, index = node.args
        return isinstance(size, fx.Node) and _is_size(size) and isinstance(index, int) and index == 0
    return False


def _apart(node: fx.Node, current: fx.Node) -> str:
    """Say what a node reads besides, or instead of, the result before it, and how to avoid that."""
    others = [other for other in _values(node) if other is not current]
    if node.op == "get_attr" or any(other.op == "get_attr" for other in others):
        tensor = next(n for n in (node, *others) if n.op == "get_attr")
        return f"it computes with its tensor {str(tensor.target)!r} outside of a layer; make that a layer"
    if any(map(_is_size, node.all_input_nodes)):
        return f"{_called(node)} computes with the sizes of its input; write numbers, and torch.flatten(x, 1)"
    if not others:
        return f"{_called(node)} takes {_called(current)} other than as its first argument; write that first, unnamed"
    read = " and ".join(map(_called, dict.fromkeys((*node.all_input_nodes, current))))
    return (
        f"at {_called(node)} it branches, with {read}; convert the layers of each branch, and join them by "
        "lconvnet.layers.Sum or Concat"
    )


def _called(node: fx.Node) -> str:
    """Name a node as the author of the forward pass would."""
    if node.op == "placeholder":
        return f"the input {node.target!r}"
    what = "" if node.op == "call_module" else "()"
    return f"{getattr(node.target, '__name__', node.target)}{what}"


def _values(node: fx.Node) -> list[fx.Node]:
    """Return the values that a node is computed from, except the number of images."""
    return [other for other in node.all_input_nodes if not _is_size(other)]


def _path(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child


def _dropout(p: float = 0.5, training: bool = True, inplace: bool = False) -> nn.Module:
    return nn.Dropout(p)


def _max_pool(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> nn.Module:
    """Take the arguments in the order of the function, which differs from that of the layer."""
    return nn.MaxPool2d(kernel_size, stride, padding, dilation, return_indices, ceil_mode)


FUNCTIONS: Mapping[Any, Callable[..., nn.Module]] = {
    **dict.fromkeys((torch.relu, F.relu, "relu", "relu_"), lambda inplace=False: nn.ReLU()),
    **dict.fromkeys((torch.tanh, F.tanh, "tanh"), nn.Tanh),
    **dict.fromkeys((torch.flatten, "flatten"), lambda start_dim=0, end_dim=-1: nn.Flatten(start_dim, end_dim)),
    F.leaky_relu: nn.LeakyReLU,
    F.elu: nn.ELU,
    F.selu: nn.SELU,
    F.gelu: nn.GELU,
    F.silu: nn.SiLU,
    F.softplus: nn.Softplus,
    F.avg_pool2d: nn.AvgPool2d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    F.max_pool2d: _max_pool,
    F.adaptive_max_pool2d: nn.AdaptiveMaxPool2d,
    **dict.fromkeys((F.dropout, F.dropout2d), _dropout),
}
"""Functions and methods of tensors -> their layers, made from the arguments after the tensor."""

Rule = Callable[[Site], tuple[Layers, str]]
"""Returns the layers that replace one, and the change ("" if they are its constrained equal)."""
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish)
ACTIVATIONS += (nn.Softplus, nn.Tanh, nn.Hardtanh, nn.Hardswish)
WEIGHTED = (nn.Conv2d, nn.Linear)
POOLINGS = (nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d)
DROPPED = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)
DROPPED += (nn.GroupNorm, nn.InstanceNorm2d, nn.LocalResponseNorm)
RULES: Mapping[type[nn.Module], Rule] = {
    nn.Conv2d: _convolution,
    nn.Linear: _dense,
    nn.Flatten: lambda site: ([nn.Flatten()], ""),
    nn.PixelShuffle: _shuffle,
    nn.PixelUnshuffle: _shuffle,
    nn.AdaptiveAvgPool2d: _adaptive_pooling,
    nn.AdaptiveMaxPool2d: _adaptive_pooling,
    **dict.fromkeys(POOLINGS, _pooling),
    **dict.fromkeys(ACTIVATIONS, _activation),
    **dict.fromkeys(DROPPED, _nothing),
}
SQUARE: Mapping[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: ("kernel_size", "stride"),
    nn.AdaptiveAvgPool2d: ("output_size",),
    nn.AdaptiveMaxPool2d: ("output_size",),
    **dict.fromkeys(POOLINGS, ("kernel_size", "stride")),
}
ONLY: Mapping[type[nn.Module], Mapping[str, Any]] = {
    nn.Conv2d: {"groups": 1, "dilation": 1},
    nn.Flatten: {"start_dim": 1, "end_dim": -1},
}
