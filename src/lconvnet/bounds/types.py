"""What a bound is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from lconvnet.ops.rounding import product_up

Method = Literal["auto", "spectrum"]
"""How the norm of a layer is bounded: by certificates that hold for every size, or by the exact spectrum at
the true size."""

CERTIFYING_LEVELS = ("analytic",)
"""Levels from which a radius may be derived. "analytic": an upper bound on the network in real arithmetic,
computed in float64 and rounded outward; the rounding of a forward pass is not part of it."""


@dataclass(frozen=True)
class LayerBound:
    """Bounds on the Lipschitz constant of one operation, in l2.

    Attributes:
        name: of the node: the path of the module in the network, such as ``"conv1"`` or ``"block.0"``.
        upper: never below the constant; of an operation with several inputs, the constant in all of them together.
        lower: never above it, from power iteration; None where the size of the input is unknown.
        method: where ``upper`` comes from.
        reach: upper bound on the constant from the network's input to the output of this operation.
    """

    name: str
    upper: float
    lower: float | None
    method: str
    reach: float | None = None


@dataclass(frozen=True)
class Bound:
    """Bounds on the Lipschitz constant of a network, in l2 from its input to its output.

    Attributes:
        upper: never below the constant. It certifies.
        lower: reached by the Jacobian at some input, or None. It only diagnoses.
        layers: one entry for every operation, in order.
        level: what ``upper`` accounts for; only :data:`CERTIFYING_LEVELS` certify.
        input_shape: the shape, without the batch, that the bound was computed for. None: it holds for every
            size at which each circular convolution meets an image whose sides are multiples of its stride.
        fingerprint: of the network that it was computed for (:func:`lconvnet.bounds.fingerprint`), the only
            one that it certifies. Empty: none.
        program: of the forward pass as it was read at ``input_shape``; it must be the same, too.

    >>> layers = LayerBound("a", 4.0, None, "exact"), LayerBound("b", 0.5, None, "exact")
    >>> Bound(2.0, None, layers).body_upper
    4.0
    """

    upper: float
    lower: float | None
    layers: tuple[LayerBound, ...]
    level: str = "analytic"
    input_shape: tuple[int, ...] | None = None
    fingerprint: str = ""
    program: str = ""

    @property
    def body_upper(self) -> float:
        """Upper bound of what the last operation reads, where that is one tensor."""
        before = self.layers[:-1]
        reach = before[-1].reach if before else 1.0
        return product_up(layer.upper for layer in before) if reach is None else reach


@dataclass(frozen=True)
class Operation:
    """A module of the graph, with the circular padding that belongs to it, at its input shape where known."""

    name: str
    module: nn.Module
    padding: nn.CircularPad2d | None = None
    input_shape: tuple[int, ...] | None = None

    @property
    def parts(self) -> nn.Sequential:
        """The operation as it runs: padding, then module."""
        return nn.Sequential(self.module) if self.padding is None else nn.Sequential(self.padding, self.module)

    def refuse(self, problem: str) -> ValueError:
        """The error that names this operation."""
        return ValueError(f"network module {self.name!r} ({type(self.module).__name__}) {problem}")
