"""Affine subgraphs as one kernel: where no activation lies between, the joint map is bounded.

    x + K x = (delta + K) x,      W (K x) = (W K) x,      D (K x) = (D K) x

hold for zero and circular padding alike, since all terms read the same image and give one of the same size, and
pointwise maps W and scalings D of channels commute with padding. So a residual block without activation, a batch norm
behind a convolution or two dense layers in a row cost no more than the one map that they are.

The kernel is summed in float64 from exact weights; with M the same sum of absolute values and c the roundings of an
entry, it is off by at most g(c) M, which is added to its bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lconvnet.bounds.convolution import dilate, is_circular, kernel_bound, own_padding
from lconvnet.bounds.function_rules import constant_of
from lconvnet.bounds.graph import Node
from lconvnet.bounds.reading import Trace
from lconvnet.bounds.rules import gains
from lconvnet.bounds.types import Operation
from lconvnet.layers import Scale
from lconvnet.ops.float64 import row_norms, to_float64
from lconvnet.ops.rounding import gamma, up

WIDEST = 1024
"""Channels up to which a sum with the image itself is folded: an identity of that size is a kernel, too."""

LARGEST = 2**22
"""Entries up to which a joint kernel is formed, unless its parts have as many: a product of narrow maps can have far
more than they."""

HELD = 2**24
"""Entries of all kernels that wait for another operation to join them."""

SMALLEST = 2.0**-1000
"""Products of magnitudes below are not formed: far above it, g(c) M covers what a product that underflows has lost."""


@dataclass(frozen=True)
class Affine:
    """The linear part of a node as a stride-1 convolution of ``source``; tap (top, left) reads the pixel itself.

    ``parts`` counts the operations whose joint norm may be less than their product; ``border`` is that of the taps.
    """

    source: str
    kernel: Tensor
    magnitude: Tensor
    origin: tuple[int, int] = (0, 0)
    border: str | None = None
    roundings: int = 0
    parts: int = 0

    def upper(self, size: tuple[int, ...]) -> float:
        """An upper bound on the norm at images of this size."""
        if not bool(torch.isfinite(self.magnitude).all()):
            return math.inf
        more = (0, 0) if self.border == "circular" else (self.kernel.shape[2] - 1, self.kernel.shape[3] - 1)
        torus = size[0] + more[0], size[1] + more[1]
        total = float(row_norms(self.magnitude.flatten(2).permute(2, 0, 1).flatten(1)).sum())
        error = gamma(2 * self.roundings) * total * (1 + gamma(self.magnitude.numel() + 8)) + SMALLEST
        return up(kernel_bound(self.kernel, torus) + error)

    def compressed(self, outer: Affine) -> Affine | None:
        """``outer`` behind this one, where at most one of them reads neighbours."""
        if self.border is not None and outer.border is not None:
            return None
        shape = (len(outer.kernel), *self.kernel.shape[1:], *outer.kernel.shape[2:])
        if _is_too_large(shape, self, outer) or _underflows(self.magnitude, outer.magnitude):
            return None
        spread = self if self.border is not None else outer
        terms = self.kernel.shape[0] + 2
        return replace(
            spread,
            source=self.source,
            kernel=_behind(outer.kernel, self.kernel),
            magnitude=_behind(outer.magnitude, self.magnitude),
            roundings=self.roundings + outer.roundings + terms,
            parts=self.parts + outer.parts,
        )

    def scaled(self, factors: Tensor, roundings: int) -> Affine | None:
        """Each output channel times a number; ``roundings`` of these numbers."""
        if _underflows(self.magnitude, factors.abs()):
            return None
        rows = factors.expand(self.kernel.shape[0])[:, None, None, None]
        return replace(
            self,
            kernel=self.kernel * rows,
            magnitude=self.magnitude * rows.abs(),
            roundings=self.roundings + roundings + 1,
            parts=self.parts + int(factors.numel() > 1),
        )

    def plus(self, other: Affine, sign: int) -> Affine | None:
        """The sum or the difference, where both read the same image across the same border."""
        borders = {self.border, other.border} - {None}
        if self.source != other.source or len(borders) > 1:
            return None
        origin = max(self.origin[0], other.origin[0]), max(self.origin[1], other.origin[1])
        if _is_too_large((*self.kernel.shape[:2], *_frame((self, other), origin)), self, other):
            return None
        (first, absolute), (second, more) = (_framed(part, (self, other), origin) for part in (self, other))
        return Affine(
            self.source,
            first + sign * second,
            absolute + more,
            origin,
            next(iter(borders), None),
            max(self.roundings, other.roundings) + 1,
            self.parts + other.parts + 2,
        )


def _underflows(first: Tensor, second: Tensor) -> bool:
    """Whether products of entries other than 0 may fall below SMALLEST."""
    least = (float(entries.min()) for entries in (first[first > 0], second[second > 0]) if entries.numel())
    return math.prod(least) < SMALLEST


def _behind(outer: Tensor, inner: Tensor) -> Tensor:
    """Composition of kernels of which one has a single tap."""
    return torch.einsum("oiab,ijcd->ojacbd", outer, inner).flatten(4).flatten(2, 3)


def _is_too_large(shape: tuple[int, ...], *parts: Affine) -> bool:
    return math.prod(shape) > max(LARGEST, *(part.kernel.numel() for part in parts))


def _frame(both: tuple[Affine, Affine], origin: tuple[int, int]) -> tuple[int, int]:
    """The sides of the smallest frame that holds both kernels, with the given origin."""
    room = [max(p.kernel.shape[2 + axis] - p.origin[axis] for p in both) for axis in (0, 1)]
    return origin[0] + room[0], origin[1] + room[1]


def _framed(part: Affine, both: tuple[Affine, Affine], origin: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A kernel and its magnitude in that frame."""
    sides = _frame(both, origin)
    before = [origin[axis] - part.origin[axis] for axis in (0, 1)]
    pads = [(before[axis], sides[axis] - part.kernel.shape[2 + axis] - before[axis]) for axis in (0, 1)]
    frame = (*pads[1], *pads[0])
    return F.pad(part.kernel, frame), F.pad(part.magnitude, frame)


class Folding:
    """The affine maps of the nodes of a graph, found as its nodes are visited in order."""

    def __init__(self, traced: Trace) -> None:
        self.traced = traced
        self.found: dict[str, Affine] = {}
        nodes = traced.graph.nodes
        self.continued = {name for node in nodes if node.operation in FOLDING | NEUTRAL for name in node.inputs}
        self.last = {name: node.name for node in nodes for name in node.inputs}

    def visit(self, node: Node) -> tuple[str, float] | None:
        """The node that this one is an affine map of, and a bound on the norm of that map; None where nothing folds."""
        before = max((self.found[name].parts for name in node.inputs if name in self.found), default=0)
        if node.shape is None or not (before or node.name in self.continued or node.operation in FOLDING - OWN):
            return None
        affine = self._read(node)
        for name in node.inputs:
            if self.last[name] == node.name:
                self.found.pop(name, None)
        if affine is None or sum(part.kernel.numel() for part in (affine, *self.found.values())) > HELD:
            return None
        self.found[node.name] = affine
        return (affine.source, affine.upper(_size(node))) if affine.parts > max(before, 1) else None

    def _read(self, node: Node) -> Affine | None:
        operation = self.traced.operations.get(node.name)
        own = None if operation is None else _own(node, operation)
        if own is not None:
            before = self.found.get(node.inputs[0])
            return own if before is None else before.compressed(own) or own
        inputs = [self._affine(name) for name in node.inputs]
        if any(affine is None for affine in inputs) or any(
            self.traced.graph[name].shape != node.shape for name in node.inputs
        ):
            return None
        first = cast(Affine, inputs[0])
        if operation is not None:
            return _module(operation, first)
        if node.operation in ("add", "subtract"):
            return first.plus(cast(Affine, inputs[1]), 1 if node.operation == "add" else -1)
        if node.operation in ("negate", "shift"):
            return first.scaled(_number(-1.0 if node.operation == "negate" else 1.0), 0)
        if node.operation in ("multiply", "divide"):
            factors = _channels(constant_of(node, self.traced.constants), node)
            if factors is None or not bool((factors != 0).all()):
                return None
            return first.scaled(factors if node.operation == "multiply" else 1 / factors, 1)
        return None

    def _affine(self, name: str) -> Affine | None:
        """What was found of a node, else the node as a map of itself."""
        shape = self.traced.graph[name].shape
        if name in self.found or shape is None or len(shape) not in (1, 3) or shape[0] > WIDEST:
            return self.found.get(name)
        K = torch.eye(shape[0], dtype=torch.float64)[:, :, None, None]
        return Affine(name, K, K)


def _number(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def _module(operation: Operation, first: Affine) -> Affine | None:
    """A module that keeps channels apart, behind an affine map."""
    module = operation.module
    if type(module) in (nn.Identity, nn.Dropout, nn.Dropout2d):
        return first
    if type(module) is Scale:
        return first.scaled(_number(module.factor), 0)
    if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d):
        return first.scaled(gains(operation), 6)
    return None


def _own(node: Node, operation: Operation) -> Affine | None:
    """A dense layer, or a convolution that keeps the size, as a map of what it reads."""
    module, source = operation.module, node.inputs[0]
    if type(module) is nn.Linear and len(node.shape or ()) == 1:
        K = to_float64(module.weight, f"network module {node.name!r}: weight")[:, :, None, None]
        return Affine(source, K, K.abs(), parts=1)
    if type(module) is not nn.Conv2d or max(module.stride) > 1:
        return None
    if (node.shape or ())[1:] != (operation.input_shape or ())[1:]:
        return None
    dilation = cast(tuple[int, int], module.dilation)
    sides = (d * (k - 1) + 1 for d, k in zip(dilation, module.weight.shape[2:], strict=True))
    if module.weight[:, :, 0, 0].numel() * module.groups * math.prod(sides) > max(LARGEST, module.weight.numel()):
        return None
    K = dilate(_ungrouped(to_float64(module.weight, f"network module {node.name!r}: weight"), module.groups), dilation)
    if operation.padding is not None:
        left, _, top, _ = cast(tuple[int, int, int, int], operation.padding.padding)
        origin = top, left
    else:
        height, width = own_padding(module)
        origin = height // 2, width // 2
    border = None if K.shape[2:] == (1, 1) else "circular" if is_circular(operation) else "zeros"
    return Affine(source, K, K.abs(), origin, border, parts=1)


def _ungrouped(K: Tensor, groups: int) -> Tensor:
    """The block-diagonal kernel that a grouped one is."""
    if groups == 1:
        return K
    full = K.new_zeros(K.shape[0], K.shape[1] * groups, *K.shape[2:])
    for g, block in enumerate(K.chunk(groups)):
        rows, columns = block.shape[:2]
        full[g * rows : (g + 1) * rows, g * columns : (g + 1) * columns] = block
    return full


def _size(node: Node) -> tuple[int, int]:
    shape = node.shape or ()
    return (shape[1], shape[2]) if len(shape) == 3 else (1, 1)


def _channels(constant: Tensor, node: Node) -> Tensor | None:
    """A constant as one number, or as one for each channel; None where it differs from pixel to pixel."""
    if constant.numel() == 1:
        return constant.reshape(1)
    shape = node.shape or ()
    wanted = (*shape[:1], *[1] * (len(shape) - 1))
    return constant.flatten() if tuple(constant.shape) in (wanted, (1, *wanted)) else None


OWN = {"Linear", "Conv2d"}
"""Operations with a kernel."""

FOLDING = OWN | {"add", "subtract", "multiply", "divide", "BatchNorm1d", "BatchNorm2d"}
"""Operations whose joint map with what is before them may be worth a bound of its own."""

NEUTRAL = {"negate", "shift", "Scale", "Identity", "Dropout", "Dropout2d"}
"""Operations that pass an affine map on."""
