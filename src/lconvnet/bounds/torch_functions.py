"""How calls of torch's functions, methods and operators become nodes of a graph.

Each reader has the signature of its function, turns a call into nodes, and refuses other arguments. Dimension 0 is the
batch, and no reader lets a function mix the examples of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lconvnet.bounds.types import Node


class _Batch:
    def __repr__(self) -> str:
        return "the number of examples"


BATCH = _Batch()
"""Stands for the number of examples in a batch, the only unknown size."""


@dataclass(frozen=True)
class Constant:
    """A parameter or buffer of the network, by its name in the ``state_dict``."""

    key: str
    tensor: Tensor

    def __repr__(self) -> str:
        return f"the parameter or buffer {self.key!r}"


@dataclass(frozen=True)
class FunctionCall:
    """A function call that is being read; ``result`` is its result for two examples."""

    result: Any
    refuse: Callable[[str], ValueError]
    record: Callable[..., Node]

    def emit(
        self, operation: str, *inputs: Node, constant: Any = None, shape: Sequence[int] | None = None, **options: Any
    ) -> Node:
        """Append a node that computes the result, or a part of it with the given shape."""
        tensors = {}
        if isinstance(constant, Constant):
            tensors["constant"] = constant.key
        elif constant is not None:
            options["value"] = float(constant)
        shape = tuple(self.result.shape[1:]) if shape is None else tuple(shape)
        return self.record(operation, inputs, options, tensors, shape)

    def dims(self, rank: int, dims: Any) -> list[int]:
        """Dimensions counted from the front. Refuses the batch."""
        found = [dim % rank for dim in (dims if isinstance(dims, tuple | list) else (dims,))]
        if 0 in found or not found:
            raise self.refuse(f"works along dim={dims}, the examples of a batch: use dim=1 or later ones")
        return found

    def known(self, sizes: Sequence[Any]) -> None:
        """Refuse the number of examples among sizes: it would cut other batches differently from the two examples."""
        if BATCH in sizes:
            raise self.refuse("uses the batch size as another dimension: write a literal")


def _rank(x: Node) -> int:
    """Number of dimensions, the batch included."""
    return len(x.shape or ()) + 1


def _join(call: FunctionCall, operation: str, *inputs: Any, **options: Any) -> Node:
    """A function of several tensors, example by example."""
    for x in inputs:
        if not isinstance(x, Node):
            raise call.refuse("joins a tensor with a constant: only sums and products with constants have a rule")
        if _rank(x) != call.result.ndim:
            raise call.refuse("joins tensors of different ranks, so a batch could meet another dimension: reshape one")
    return call.emit(operation, *inputs, **options)


def _with_constant(call: FunctionCall, operation: str, x: Node, constant: Any, **options: Any) -> Node:
    """A function of a tensor and a number, parameter or buffer that is the same for every example."""
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


def _sum(call: FunctionCall, a: Any, b: Any, alpha: int, sign: int) -> Node:
    if alpha != 1:
        raise call.refuse(f"has alpha={alpha}: multiply first")
    if isinstance(a, Node) and isinstance(b, Node):
        return _join(call, "add" if sign > 0 else "subtract", a, b)
    if isinstance(a, Node):
        return _with_constant(call, "shift", a, b, sign=sign)
    if sign < 0:
        b = call.emit("negate", b, shape=b.shape)
    return _with_constant(call, "shift", b, a, sign=1)


def read_add(call: FunctionCall, input: Any, other: Any, *, alpha: int = 1) -> Node:  # noqa: A002 (torch's name)
    """A sum; with a constant, a shift."""
    return _sum(call, input, other, alpha, 1)


def read_subtract(call: FunctionCall, input: Any, other: Any, *, alpha: int = 1) -> Node:  # noqa: A002
    """A difference; with a constant, a shift."""
    return _sum(call, input, other, alpha, -1)


def read_multiply(call: FunctionCall, input: Any, other: Any) -> Node:  # noqa: A002
    """A product with a constant."""
    if isinstance(input, Node) and isinstance(other, Node):
        raise call.refuse("multiplies two tensors that both depend on the input: that has no Lipschitz constant")
    return _with_constant(call, "multiply", *((input, other) if isinstance(input, Node) else (other, input)))


def read_divide(call: FunctionCall, input: Any, other: Any) -> Node:  # noqa: A002
    """A quotient by a constant."""
    if isinstance(other, Node):
        raise call.refuse("divides by a tensor that depends on the input: that has no Lipschitz constant")
    return _with_constant(call, "divide", input, other)


def read_negate(call: FunctionCall, input: Node) -> Node:  # noqa: A002
    """A change of sign."""
    return call.emit("negate", input)


def read_concatenate(call: FunctionCall, tensors: Sequence[Any], dim: int = 0) -> Node:
    """``torch.cat``."""
    return _join(call, "concatenate", *tensors, dim=call.dims(call.result.ndim, dim)[0])


def read_parts(call: FunctionCall, x: Node, size: Any, dim: int = 0) -> tuple[Node, ...]:
    """``chunk`` and ``split``; the results tell where the cuts are."""
    (axis,) = call.dims(_rank(x), dim)
    call.known(size if isinstance(size, tuple | list) else [size])
    pieces, start = [], 0
    for part in call.result:
        stop = start + part.shape[axis]
        pieces.append(call.emit("slice", x, shape=part.shape[1:], slices=[[axis, start, stop, 1]]))
        start = stop
    return tuple(pieces)


def read_narrow(call: FunctionCall, input: Node, dim: int, start: int, length: int) -> Node:  # noqa: A002
    """A range along one dimension."""
    (axis,) = call.dims(_rank(input), dim)
    start %= (input.shape or ())[axis - 1]
    return call.emit("slice", input, slices=[[axis, start, start + length, 1]])


def read_getitem(call: FunctionCall, x: Any, index: Any) -> Any:
    """A part of a tensor by integers and slices, or an entry of a tuple."""
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


def _range(call: FunctionCall, x: Node, axis: int, entry: Any) -> list[int]:
    size = (x.shape or ())[axis - 1]
    if isinstance(entry, slice):
        return [axis, *entry.indices(size)]
    if isinstance(entry, bool) or not isinstance(entry, int):
        raise call.refuse(f"is indexed by {entry!r}, which may repeat entries: only integers and slices have a rule")
    return [axis, entry % size, entry % size + 1, 1]


def read_reshape(call: FunctionCall, input: Node, *shape: Any) -> Node:  # noqa: A002
    """``reshape`` and ``view``, which keep the batch."""
    sizes = list(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple | list) else list(shape)
    whole = math.prod(call.result.shape[1:]) == math.prod(input.shape or ())
    if not whole or not sizes or not (sizes[0] is BATCH or sizes[0] == -1):
        raise call.refuse("may mix the examples of a batch: use x.flatten(1), or x.reshape(len(x), ...) by x.shape[0]")
    call.known(sizes[1:])
    return call.emit("reshape", input)


def read_permute(call: FunctionCall, input: Node, *dims: Any) -> Node:  # noqa: A002
    """Another order of the dimensions after the batch."""
    order = [d % _rank(input) for d in (dims[0] if len(dims) == 1 and isinstance(dims[0], tuple | list) else dims)]
    if order[0] != 0:
        raise call.refuse("moves the batch: keep it first")
    return call.emit("permute", input, dims=order)


def read_transpose(call: FunctionCall, input: Node, dim0: int, dim1: int) -> Node:  # noqa: A002
    """Two dimensions exchanged."""
    order = list(range(_rank(input)))
    first, second = call.dims(_rank(input), (dim0, dim1))
    order[first], order[second] = order[second], order[first]
    return call.emit("permute", input, dims=order)


def read_mean(call: FunctionCall, input: Node, dim: Any, keepdim: bool = False) -> Node:  # noqa: A002
    """A mean along dimensions."""
    return call.emit("mean", input, dims=call.dims(_rank(input), dim), keepdim=keepdim)


def read_hypot(call: FunctionCall, input: Any, other: Any) -> Node:  # noqa: A002
    """``sqrt(a^2 + b^2)``, entry by entry."""
    return _join(call, "hypot", input, other)


def read_size(call: FunctionCall, input: Node | Constant, dim: int | None = None) -> Any:  # noqa: A002
    """Sizes; the first is the number of examples."""
    sizes = tuple(input.tensor.shape) if isinstance(input, Constant) else (BATCH, *(input.shape or ()))
    return sizes if dim is None else sizes[dim]


def read_getattr(call: FunctionCall, x: Any, name: str) -> Any:
    """``x.shape``."""
    if name != "shape":
        raise call.refuse(f"reads .{name} of a tensor, which no rule knows: read .shape only, call methods otherwise")
    return read_size(call, x)


def read_dropout(
    call: FunctionCall,
    input: Node,  # noqa: A002
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> Node:
    """The identity, in eval mode."""
    if training:
        raise call.refuse("is dropout in training mode, where it multiplies by 1 / (1 - p): call network.eval() first")
    return input


def read_contiguous(call: FunctionCall, input: Node) -> Node:  # noqa: A002
    """The identity."""
    return input
