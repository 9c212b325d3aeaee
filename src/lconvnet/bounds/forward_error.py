"""What rounding can change in a forward pass: an a-priori bound, linear in the norm of the image.

Every sum of products z_i = sum_j W_ij x_j + b_i of n products, however it is ordered and whether or not it fuses
multiplication and addition, is computed as z^ with

    |z^ - z| <= g(n + 1) (|W| |x| + |b|) + (2 n + 2) tiny (1 + g),        g(k) = k u / (1 - k u),

entry by entry: u = 2^-24 in float32, 2^-53 in float64; tiny, the least normal number, covers results that underflow,
gradually or to zero (Higham 2002, section 3.1). So with R >= |x^| the norm of what is stored and D >= |x^ - x| its
distance from the network in real arithmetic,

    D' = |W|_2 D + g (|abs(W)|_2 R + |b|) + sqrt(m) (2 n + 2) tiny (1 + g),        R' = |W|_2 R + |b| + (D' - |W|_2 D)

(Murray, arXiv 2603.13334, 2026). All of it is linear in R, so along the whole graph

    R = r_1 |image| + r_0,    D = d_1 |image| + d_0

with numbers that depend on the network only. Sorting, rectifying, moving and repeating entries are exact. Not covered:
sums that are rearranged otherwise (Winograd, Fourier, Strassen), TensorFloat-32 and other reduced precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lconvnet.bounds.graph import Graph, Node
from lconvnet.ops.rounding import TooManyError, gamma

INFLATION = 1 + 2.0**-40
"""Covers the roundings of the few float64 operations behind each number here; all terms are positive."""


@dataclass(frozen=True)
class Line:
    """``slope * t + offset`` with both at least 0: an upper bound that grows with the norm t of the image."""

    slope: float
    offset: float

    def __add__(self, other: Line) -> Line:
        return Line((self.slope + other.slope) * INFLATION, (self.offset + other.offset) * INFLATION)

    def __mul__(self, factor: float) -> Line:
        return Line(self.slope * factor * INFLATION, self.offset * factor * INFLATION)

    def hypot(self, other: Line) -> Line:
        """An upper bound on the root of the sum of squares."""
        slope, offset = math.hypot(self.slope, other.slope), math.hypot(self.offset, other.offset)
        return Line(slope * INFLATION, offset * INFLATION)

    def at_least(self, other: Line) -> Line:
        """An upper bound on the larger one."""
        return Line(max(self.slope, other.slope), max(self.offset, other.offset))


ZERO = Line(0.0, 0.0)
IMAGE = Line(1.0, 0.0)


@dataclass(frozen=True)
class Stored:
    """What a float network stores after a node: its norm, its distance from real arithmetic, and the largest number
    that occurred on the way."""

    norm: Line
    error: Line
    peak: Line


@dataclass(frozen=True)
class Arithmetic:
    """Floating-point arithmetic with round-off ``unit``, least normal number ``tiny`` and ``largest`` number."""

    unit: float
    tiny: float
    largest: float

    @classmethod
    def of(cls, dtype: torch.dtype) -> Arithmetic:
        """That of float32 or float64.

        >>> Arithmetic.of(torch.float32).unit == 2.0**-24
        True
        """
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype={dtype}: forward errors are bounded in float32 and float64")
        info = torch.finfo(dtype)
        return cls(info.eps / 2, info.tiny, info.max)

    def gamma(self, terms: int) -> float:
        """Relative error of a sum of that many products and a bias."""
        return gamma(terms + 1, self.unit)

    def underflow(self, terms: int) -> float:
        """Absolute error of such a sum from results that underflow."""
        return (2 * terms + 2) * self.tiny * (1 + self.gamma(terms)) * INFLATION


@dataclass(frozen=True)
class Setting:
    """What a rule may look at besides its node: Lipschitz bounds by node, the tensors, the shapes, the arithmetic."""

    uppers: Mapping[str, float]
    tensors: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    arithmetic: Arithmetic

    def size(self, name: str) -> int:
        """Number of entries of a node's output."""
        return math.prod(self.shapes[name])


Rule = Callable[[Node, Sequence[Stored], Setting], Stored]


def forward_error(
    graph: Graph,
    uppers: Mapping[str, float],
    tensors: Mapping[str, Tensor],
    arithmetic: Arithmetic,
    rules: Mapping[str, Rule],
) -> dict[str, Stored]:
    """Bound norm and forward error of every node of a network that runs in floating point.

    Args:
        graph: of the network, at a known image size.
        uppers: an upper bound on the Lipschitz constant of each node but the input.
        tensors: the network's ``state_dict``, and whatever other constants its graph names.
        arithmetic: that it runs in.
        rules: by the operation, such as :data:`lconvnet.bounds.error_rules.ERROR_RULES`.

    Returns:
        What each node stores, by its name.

    Raises:
        ValueError: an operation without a rule, for nothing is assumed, or one with sums too long for the arithmetic.
    """
    setting = Setting(uppers, tensors, _shapes(graph), arithmetic)
    stored = {graph.nodes[0].name: Stored(IMAGE, ZERO, IMAGE)}
    for node in graph.nodes[1:]:
        if node.operation not in rules:
            raise ValueError(
                f"network node {node.name!r} ({node.operation}) has no rule for its rounding, and none is assumed: "
                f"give lconvnet.bounds.error_rules.ERROR_RULES one for {node.operation!r}"
            )
        try:
            stored[node.name] = rules[node.operation](node, [stored[name] for name in node.inputs], setting)
        except TooManyError:
            raise ValueError(
                f"network node {node.name!r} ({node.operation}) adds up more numbers than their rounding is bounded "
                f"for in its dtype, {0.5 / arithmetic.unit:.0f}: certify network.double(), or smaller images"
            ) from None
    return stored


def _shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    shapes = {node.name: node.shape for node in graph.nodes if node.shape is not None}
    if len(shapes) < len(graph.nodes):
        raise ValueError("graph is of no known image size, on which its rounding depends: pass input_shape to trace")
    return shapes
