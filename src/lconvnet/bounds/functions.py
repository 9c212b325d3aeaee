"""What the bound understands of a forward pass besides modules: a closed list of functions and operators.

Each handler has the signature of its function and turns a call into nodes; arguments that it does not name are refused.
Dimensions count the batch as 0, and no handler lets a function mix the examples of a batch.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lconvnet.bounds.graph import Node
from lconvnet.layers import Abs


class _Batch:
    def __repr__(self) -> str:
        return "the number of examples"


BATCH = _Batch()
"""Stands for the number of examples in a batch, the only size that is not known."""


@dataclass(frozen=True)
class Constant:
    """A parameter or buffer of the network, by its name in the ``state_dict``."""

    key: str
    tensor: Tensor

    def __repr__(self) -> str:
        return f"the parameter or buffer {self.key!r}"


@dataclass(frozen=True)
class Call:
    """A function call that is being read: ``result`` is what it returns for two examples."""

    result: Any
    refuse: Callable[[str], ValueError]
    record: Callable[..., Node]

    def emit(
        self, operation: str, *inputs: Node, constant: Any = None, shape: Sequence[int] | None = None, **options: Any
    ) -> Node:
        """Append a node that computes the result, or a part of it of the given shape."""
        tensors = {}
        if isinstance(constant, Constant):
            tensors["constant"] = constant.key
        elif constant is not None:
            options["value"] = float(constant)
        shape = tuple(self.result.shape[1:]) if shape is None else tuple(shape)
        return self.record(operation, inputs, options, tensors, shape)

    def dims(self, rank: int, dims: Any) -> list[int]:
        """Dimensions counted from the front; the batch is refused."""
        found = [dim % rank for dim in (dims if isinstance(dims, tuple | list) else (dims,))]
        if 0 in found or not found:
            raise self.refuse(f"works along dim={dims}, the examples of a batch: use dim=1 or later ones")
        return found

    def known(self, sizes: Sequence[Any]) -> None:
        """Refuse the number of examples among sizes: other batches would be cut otherwise than the two that are run."""
        if BATCH in sizes:
            raise self.refuse("takes the number of examples for the size of a dimension: write that as a number")


def _shape(x: Node) -> tuple[int, ...]:
    return x.shape or ()


def _rank(x: Node) -> int:
    """Number of dimensions, the batch included."""
    return len(_shape(x)) + 1


def _join(call: Call, operation: str, *inputs: Any, **options: Any) -> Node:
    """Several tensors, example by example."""
    for x in inputs:
        if not isinstance(x, Node):
            raise call.refuse("joins a tensor with a constant: only sums and products with constants have a rule")
        if _rank(x) != call.result.ndim:
            raise call.refuse("joins tensors of different ranks, so a batch could meet another dimension: reshape one")
    return call.emit(operation, *inputs, **options)


def _with_constant(call: Call, operation: str, x: Node, constant: Any, **options: Any) -> Node:
    """A tensor and a number, parameter or buffer that is the same for every example."""
    if not isinstance(x, Node):
        raise call.refuse(f"has the operand {_named(x)}: it works on one tensor at a time")
    if isinstance(constant, Constant):
        tensor = constant.tensor
        if _rank(x) != call.result.ndim or (tensor.ndim == call.result.ndim and tensor.shape[0] != 1):
            raise call.refuse(f"meets a constant of shape {tuple(tensor.shape)}, which reaches into the batch")
    elif isinstance(constant, bool) or not isinstance(constant, int | float) or not math.isfinite(constant):
        raise call.refuse(f"has the operand {_named(constant)}: a constant is a finite number, a parameter or a buffer")
    return call.emit(operation, x, constant=constant, **options)


def _named(operand: Any) -> str:
    return "several tensors" if isinstance(operand, tuple | list) else repr(operand)


def _sum(call: Call, a: Any, b: Any, sign: int) -> Node:
    if isinstance(a, Node) and isinstance(b, Node):
        return _join(call, "add" if sign > 0 else "subtract", a, b)
    if isinstance(a, Node):
        return _with_constant(call, "shift", a, b, sign=sign)
    if sign < 0:
        b = call.emit("negate", b, shape=_shape(b))
    return _with_constant(call, "shift", b, a, sign=1)


def _add(call: Call, input: Any, other: Any, *, alpha: int = 1) -> Node:  # noqa: A002 (torch's name)
    if alpha != 1:
        raise call.refuse(f"has alpha={alpha}: multiply first")
    return _sum(call, input, other, 1)


def _subtract(call: Call, input: Any, other: Any, *, alpha: int = 1) -> Node:  # noqa: A002
    if alpha != 1:
        raise call.refuse(f"has alpha={alpha}: multiply first")
    return _sum(call, input, other, -1)


def _multiply(call: Call, input: Any, other: Any) -> Node:  # noqa: A002
    if isinstance(input, Node) and isinstance(other, Node):
        raise call.refuse("multiplies two tensors that both depend on the input: that has no Lipschitz constant")
    return _with_constant(call, "multiply", *((input, other) if isinstance(input, Node) else (other, input)))


def _divide(call: Call, input: Any, other: Any) -> Node:  # noqa: A002
    if isinstance(other, Node):
        raise call.refuse("divides by a tensor that depends on the input: that has no Lipschitz constant")
    return _with_constant(call, "divide", input, other)


def _negate(call: Call, input: Node) -> Node:  # noqa: A002
    return call.emit("negate", input)


def _concatenate(call: Call, tensors: Sequence[Any], dim: int = 0) -> Node:
    return _join(call, "concatenate", *tensors, dim=call.dims(call.result.ndim, dim)[0])


def _parts(call: Call, x: Node, size: Any, dim: int = 0) -> tuple[Node, ...]:
    """``chunk`` and ``split``: the results say where the cuts are."""
    (axis,) = call.dims(_rank(x), dim)
    call.known(size if isinstance(size, tuple | list) else [size])
    pieces, start = [], 0
    for part in call.result:
        stop = start + part.shape[axis]
        pieces.append(call.emit("slice", x, shape=part.shape[1:], slices=[[axis, start, stop, 1]]))
        start = stop
    return tuple(pieces)


def _narrow(call: Call, input: Node, dim: int, start: int, length: int) -> Node:  # noqa: A002
    (axis,) = call.dims(_rank(input), dim)
    start %= _shape(input)[axis - 1]
    return call.emit("slice", input, slices=[[axis, start, start + length, 1]])


def _getitem(call: Call, x: Any, index: Any) -> Any:
    if isinstance(x, tuple):
        return x[index]
    if not isinstance(x, Node):
        raise call.refuse(f"takes a part of {x!r}: register_buffer that part")
    entries = list(index) if isinstance(index, tuple) else [index]
    if entries.count(Ellipsis) == 1:
        place = entries.index(Ellipsis)
        entries[place : place + 1] = [slice(None)] * (_rank(x) + 1 - len(entries))
    if entries[:1] != [slice(None)]:
        raise call.refuse("takes a part of the batch: leave it whole, as in x[:, 1:3]")
    return call.emit("slice", x, slices=[_range(call, x, axis, e) for axis, e in enumerate(entries) if axis])


def _range(call: Call, x: Node, axis: int, entry: Any) -> list[int]:
    size = _shape(x)[axis - 1]
    if isinstance(entry, slice):
        return [axis, *entry.indices(size)]
    if isinstance(entry, bool) or not isinstance(entry, int):
        raise call.refuse(f"is indexed by {entry!r}, which may repeat entries: only integers and slices have a rule")
    return [axis, entry % size, entry % size + 1, 1]


def _reshape(call: Call, input: Node, *shape: Any) -> Node:  # noqa: A002
    sizes = list(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple | list) else list(shape)
    whole = math.prod(call.result.shape[1:]) == math.prod(_shape(input))
    if not whole or not sizes or not (sizes[0] is BATCH or sizes[0] == -1):
        raise call.refuse("may mix the examples of a batch: use x.flatten(1), or x.reshape(len(x), ...) by x.shape[0]")
    call.known(sizes[1:])
    return call.emit("reshape", input)


def _permute(call: Call, input: Node, *dims: Any) -> Node:  # noqa: A002
    order = [d % _rank(input) for d in (dims[0] if len(dims) == 1 and isinstance(dims[0], tuple | list) else dims)]
    if order[0] != 0:
        raise call.refuse("moves the batch: keep it first")
    return call.emit("permute", input, dims=order)


def _transpose(call: Call, input: Node, dim0: int, dim1: int) -> Node:  # noqa: A002
    order = list(range(_rank(input)))
    first, second = call.dims(_rank(input), (dim0, dim1))
    order[first], order[second] = order[second], order[first]
    return call.emit("permute", input, dims=order)


def _mean(call: Call, input: Node, dim: Any, keepdim: bool = False) -> Node:  # noqa: A002
    return call.emit("mean", input, dims=call.dims(_rank(input), dim), keepdim=keepdim)


def _hypot(call: Call, input: Any, other: Any) -> Node:  # noqa: A002
    return _join(call, "hypot", input, other)


def _size(call: Call, input: Node | Constant, dim: int | None = None) -> Any:  # noqa: A002
    sizes = tuple(input.tensor.shape) if isinstance(input, Constant) else (BATCH, *_shape(input))
    return sizes if dim is None else sizes[dim]


def _getattr(call: Call, x: Any, name: str) -> Any:
    if name != "shape":
        raise call.refuse(f"reads .{name} of a tensor, which no rule knows: read .shape only, call methods otherwise")
    return _size(call, x)


def _dropout(call: Call, input: Node, p: float = 0.5, training: bool = True, inplace: bool = False) -> Node:  # noqa: A002
    if training:
        raise call.refuse("is dropout in training mode, where it multiplies by 1 / (1 - p): call network.eval() first")
    return input


def _same(call: Call, input: Node) -> Node:  # noqa: A002
    return input


HANDLERS: Mapping[Any, Callable[..., Any]] = {
    **dict.fromkeys((operator.add, torch.add, "add"), _add),
    **dict.fromkeys((operator.sub, torch.sub, torch.subtract, "sub", "subtract"), _subtract),
    **dict.fromkeys((operator.mul, torch.mul, torch.multiply, "mul", "multiply"), _multiply),
    **dict.fromkeys((operator.truediv, torch.div, torch.divide, "div", "divide"), _divide),
    **dict.fromkeys((operator.neg, torch.neg, torch.negative, "neg", "negative"), _negate),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _concatenate),
    **dict.fromkeys((torch.chunk, torch.split, "chunk", "split"), _parts),
    **dict.fromkeys((torch.narrow, "narrow"), _narrow),
    operator.getitem: _getitem,
    **dict.fromkeys((torch.reshape, "reshape", "view"), _reshape),
    **dict.fromkeys((torch.permute, "permute"), _permute),
    **dict.fromkeys((torch.transpose, "transpose"), _transpose),
    **dict.fromkeys((torch.mean, "mean"), _mean),
    **dict.fromkeys((torch.hypot, "hypot"), _hypot),
    "size": _size,
    getattr: _getattr,
    F.dropout: _dropout,
    "contiguous": _same,
}
"""What turns a call of each function or method into nodes."""

AS_MODULES: Mapping[Any, Callable[..., nn.Module]] = {
    **dict.fromkeys((F.relu, torch.relu, "relu"), nn.ReLU),
    **dict.fromkeys((operator.abs, torch.abs, "abs"), Abs),
    **dict.fromkeys((torch.flatten, "flatten"), lambda start_dim=0, end_dim=-1: nn.Flatten(start_dim, end_dim)),
    F.avg_pool2d: nn.AvgPool2d,
    F.max_pool2d: lambda kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False: (
        nn.MaxPool2d(kernel_size, stride, padding, dilation, return_indices, ceil_mode)
    ),
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    F.lp_pool2d: nn.LPPool2d,
    F.pixel_shuffle: nn.PixelShuffle,
    F.pixel_unshuffle: nn.PixelUnshuffle,
}
"""Functions that are read as the module with the same arguments."""

ARITHMETIC = (operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.neg, operator.pow)
NUMERIC: Mapping[Any, Callable[..., Any]] = {function: function for function in (*ARITHMETIC, math.sqrt)}
"""Arithmetic of sizes, which is done while reading."""

SIZES = (operator.getitem, getattr, "size")
"""Functions that read sizes, which need no input."""

OPERATIONS = (
    "add", "subtract", "shift", "multiply", "divide", "negate", "concatenate", "slice", "reshape", "permute", "mean",
    "hypot",
)  # fmt: skip
"""Operations of the nodes that come from functions."""
