"""Affine subgraphs as one kernel: if no activation lies between, the bound is that of the joint map.

    x + K x = (delta + K) x,      W (K x) = (W K) x,      D (K x) = (D K) x

hold for zero and circular padding, because all terms read the same image and give one of the same size, and pointwise
maps W and scalings D of channels commute with padding. So a residual block without activation, a batch norm after a
convolution or two dense layers in a row have the bound of the single map that they form.

The kernel is summed in float64 from exact weights. Let M be the same sum of absolute values and c the number of
roundings per entry. Then the kernel is off by at most g(c) M, which is added to its bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lconvnet.bounds.convolution import dilate, is_circular, kernel_bound, own_padding
from lconvnet.bounds.module_rules import gains
from lconvnet.bounds.propagation import constant_of
from lconvnet.bounds.types import ModuleCall, Node, Trace
from lconvnet.layers import Scale
from lconvnet.ops.float64 import row_norms, to_float64
from lconvnet.ops.rounding import gamma, up

WIDEST = 1024
"""Channels up to which a sum with the image itself is folded, because it needs an identity kernel of that size."""

LARGEST = 2**22
"""Entries up to which a joint kernel is formed, or more if its parts have as many. A product of narrow maps can have
far more entries than its factors."""

HELD = 2**24
"""Largest number of entries of all kernels that are kept for later operations."""

SMALLEST = 2.0**-1000
"""Smaller products of magnitudes are not formed. Above this, g(c) M covers the loss of products that underflow."""


@dataclass(frozen=True)
class Affine:
    """The linear part of a node as a stride-1 convolution of ``source``; tap (top, left) reads the pixel itself.

    ``parts`` counts the operations whose joint norm may be less than the product of their norms; ``border`` is the
    padding that the taps need.
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
        """``outer`` after this map, if at most one of the two reads neighbours."""
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
        """Each output channel times a number that already has ``roundings`` roundings."""
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
        """The sum or the difference, if both read the same image across the same border."""
        borders = {self.border, other.border} - {None}
        if self.source != other.source or len(borders) > 1:
            return None
        both = self, other
        origin = max(part.origin[0] for part in both), max(part.origin[1] for part in both)
        sides = [origin[i] + max(part.kernel.shape[2 + i] - part.origin[i] for part in both) for i in (0, 1)]
        if _is_too_large((*self.kernel.shape[:2], *sides), *both):
            return None
        (first, absolute), (second, more) = (part.framed(origin, sides) for part in both)
        return Affine(
            self.source,
            first + sign * second,
            absolute + more,
            origin,
            next(iter(borders), None),
            max(self.roundings, other.roundings) + 1,
            self.parts + other.parts + 2,
        )

    def framed(self, origin: tuple[int, int], sides: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Kernel and magnitude, padded with zeros to these sides and this origin."""
        top, left = origin[0] - self.origin[0], origin[1] - self.origin[1]
        height, width = self.kernel.shape[2:]
        frame = left, sides[1] - width - left, top, sides[0] - height - top
        return F.pad(self.kernel, frame), F.pad(self.magnitude, frame)


def _underflows(first: Tensor, second: Tensor) -> bool:
    """Whether products of nonzero entries may fall below SMALLEST."""
    least = (float(entries.min()) for entries in (first[first > 0], second[second > 0]) if entries.numel())
    return math.prod(least) < SMALLEST


def _behind(outer: Tensor, inner: Tensor) -> Tensor:
    """Composition of two kernels, one of them with a single tap."""
    return torch.einsum("oiab,ijcd->ojacbd", outer, inner).flatten(4).flatten(2, 3)


def _is_too_large(shape: tuple[int, ...], *parts: Affine) -> bool:
    return math.prod(shape) > max(LARGEST, *(part.kernel.numel() for part in parts))


class Folding:
    """The affine maps of the nodes of a graph, found while visiting the nodes in order."""

    def __init__(self, traced: Trace) -> None:
        self.traced = traced
        self.found: dict[str, Affine] = {}
        nodes = traced.graph.nodes
        self.continued = {name for node in nodes if node.operation in FOLDING | NEUTRAL for name in node.inputs}
        self.last = {name: node.name for node in nodes for name in node.inputs}

    def visit(self, node: Node) -> tuple[str, float] | None:
        """The node of which this one is an affine map, and a bound on the norm of that map; None if nothing folds."""
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
        size = node.shape[1:] if len(node.shape) == 3 else (1, 1)
        return (affine.source, affine.upper(size)) if affine.parts > max(before, 1) else None

    def _read(self, node: Node) -> Affine | None:
        call = self.traced.calls.get(node.name)
        own = None if call is None else _own(node, call)
        if own is not None:
            before = self.found.get(node.inputs[0])
            return own if before is None else before.compressed(own) or own
        inputs = [affine for name in node.inputs if (affine := self._affine(name, node.shape)) is not None]
        if len(inputs) < len(node.inputs):
            return None
        first = inputs[0]
        if call is not None:
            return _module(call, first)
        if node.operation in ("add", "subtract"):
            return first.plus(inputs[1], 1 if node.operation == "add" else -1)
        if node.operation in ("negate", "shift"):
            return first.scaled(_number(-1.0 if node.operation == "negate" else 1.0), 0)
        if node.operation in ("multiply", "divide"):
            factors = _channels(constant_of(node, self.traced.constants), node)
            if factors is None or not bool((factors != 0).all()):
                return None
            return first.scaled(factors if node.operation == "multiply" else 1 / factors, 1)
        return None

    def _affine(self, name: str, wanted: tuple[int, ...] | None) -> Affine | None:
        """The affine map found for a node, else the identity on it; None if its shape is not the wanted one."""
        shape = self.traced.graph[name].shape
        if shape is None or shape != wanted:
            return None
        if name in self.found or len(shape) not in (1, 3) or shape[0] > WIDEST:
            return self.found.get(name)
        K = torch.eye(shape[0], dtype=torch.float64)[:, :, None, None]
        return Affine(name, K, K)


def _number(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def _module(call: ModuleCall, first: Affine) -> Affine | None:
    """A module that keeps channels apart, after an affine map."""
    module = call.module
    if type(module) in (nn.Identity, nn.Dropout, nn.Dropout2d):
        return first
    if type(module) is Scale:
        return first.scaled(_number(module.factor), 0)
    if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d):
        return first.scaled(gains(call), 6)
    return None


def _own(node: Node, call: ModuleCall) -> Affine | None:
    """A dense layer, or a convolution that keeps the size, as a map of its input."""
    module, source = call.module, node.inputs[0]
    if type(module) is nn.Linear and len(node.shape or ()) == 1:
        K = to_float64(module.weight, f"network module {node.name!r}: weight")[:, :, None, None]
        return Affine(source, K, K.abs(), parts=1)
    if type(module) is not nn.Conv2d or max(module.stride) > 1:
        return None
    if (node.shape or ())[1:] != (call.input_shape or ())[1:]:
        return None
    dilation = cast(tuple[int, int], module.dilation)
    sides = (d * (k - 1) + 1 for d, k in zip(dilation, module.weight.shape[2:], strict=True))
    if module.weight[:, :, 0, 0].numel() * module.groups * math.prod(sides) > max(LARGEST, module.weight.numel()):
        return None
    K = dilate(_ungrouped(to_float64(module.weight, f"network module {node.name!r}: weight"), module.groups), dilation)
    if call.padding is not None:
        left, _, top, _ = cast(tuple[int, int, int, int], call.padding.padding)
        origin = top, left
    else:
        height, width = own_padding(module)
        origin = height // 2, width // 2
    border = None if K.shape[2:] == (1, 1) else "circular" if is_circular(call) else "zeros"
    return Affine(source, K, K.abs(), origin, border, parts=1)


def _ungrouped(K: Tensor, groups: int) -> Tensor:
    """A grouped kernel as a block-diagonal one."""
    if groups == 1:
        return K
    full = K.new_zeros(K.shape[0], K.shape[1] * groups, *K.shape[2:])
    for g, block in enumerate(K.chunk(groups)):
        rows, columns = block.shape[:2]
        full[g * rows : (g + 1) * rows, g * columns : (g + 1) * columns] = block
    return full


def _channels(constant: Tensor, node: Node) -> Tensor | None:
    """A constant as one number, or as one per channel; None if it differs from pixel to pixel."""
    if constant.numel() == 1:
        return constant.reshape(1)
    shape = node.shape or ()
    wanted = (*shape[:1], *[1] * (len(shape) - 1))
    return constant.flatten() if tuple(constant.shape) in (wanted, (1, *wanted)) else None


OWN = {"Linear", "Conv2d"}
"""Operations with a kernel."""

FOLDING = OWN | {"add", "subtract", "multiply", "divide", "BatchNorm1d", "BatchNorm2d"}
"""Operations that may be worth a joint bound with their inputs."""

NEUTRAL = {"negate", "shift", "Scale", "Identity", "Dropout", "Dropout2d"}
"""Operations that pass on an affine map."""
