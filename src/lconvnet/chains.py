"""The layers of a module whose forward pass is a chain: one after another, each on what the one before returns.

Sequences are chains as they stand. Any other class is traced (`torch.fx`), its functions become the layers that they
are (`FUNCTIONS`), and where a value is used twice, or a function is not known, the module is no chain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from lconvnet.ops.hooks import altered


class Link(NamedTuple):
    """A layer of a chain by its path; `fault` says why a module that is no layer of torch's is no chain."""

    name: str
    layer: nn.Module
    fault: str = ""


def links(module: nn.Module, name: str = "") -> Iterator[Link]:
    """The layers in order, those inside of others by their paths.

    >>> features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    >>> [(name, type(layer).__name__) for name, layer, _ in links(nn.Sequential(features, nn.Flatten()))]
    [('0.0', 'Conv2d'), ('0.1', 'ReLU'), ('1', 'Flatten')]
    """
    if _is_layer(module) and type(module) is not nn.Sequential:
        yield Link(name, module)
    elif method := altered(module):
        yield Link(name, module, f"it has forward hooks or a replaced {method}; make what they do a module")
    elif type(module) is nn.Sequential:
        for child_name, child in module._modules.items():  # not named_children: it drops repetitions of a module
            if child is not None:
                yield from links(child, _path(name, child_name))
    else:
        yield from _traced(module, name)


def _is_layer(module: nn.Module) -> bool:
    """Whether a module counts as one layer, known or not: those of torch, and of this package."""
    return type(module).__module__.split(".")[0] in ("torch", __package__)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_layer(m) and not isinstance(m, nn.Sequential)


def _traced(module: nn.Module, name: str) -> list[Link]:
    """The chain of a module, or the module itself with what keeps it from being one."""
    try:
        return list(_chain(module, _Tracer().trace(module), name))
    except _NoChainError as error:
        return [Link(name, module, f"its forward pass is no chain of layers: {error}")]
    except Exception as error:  # of whatever the user's forward pass does with a value that is none yet
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return [Link(name, module, f"its forward pass cannot be traced ({reason})")]


class _NoChainError(Exception):
    """What a forward pass does that no chain does."""


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
    """`x.view(x.size(0), -1)` and its like."""
    shape = node.args[1] if len(node.args) == 2 else node.args[1:]
    if not isinstance(shape, tuple | list) or len(shape) != 2 or not isinstance(shape[0], fx.Node) or shape[1] != -1:
        raise _NoChainError(f"{node.name} is no flattening; write torch.flatten(x, 1)")
    return nn.Flatten()


def _is_size(node: fx.Node) -> bool:
    """Whether a node is the number of images, as `x.size(0)` or `x.shape[0]`, or on the way to it."""
    if node.op == "call_method" and node.target == "size":
        return node.args[1:] in ((0,), ()) and not node.kwargs
    if node.op == "call_function" and getattr(node.target, "__name__", "") == "getattr":
        return node.args[1:] == ("shape",)
    if node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem":
        size, index = node.args
        return isinstance(size, fx.Node) and _is_size(size) and isinstance(index, int) and index == 0
    return False


def _apart(node: fx.Node, current: fx.Node) -> str:
    """What a node reads besides, or instead of, the result before it, and the way out."""
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
    """A node in the words of who wrote the forward pass."""
    if node.op == "placeholder":
        return f"the input {node.target!r}"
    what = "" if node.op == "call_module" else "()"
    return f"{getattr(node.target, '__name__', node.target)}{what}"


def _values(node: fx.Node) -> list[fx.Node]:
    """The values that a node is computed from, other than the number of images."""
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
    """In the order of the function, which the layer has not."""
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
"""Functions and methods of tensors -> the layers that they are, given what follows the tensor."""
