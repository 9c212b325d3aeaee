"""How far rounding can move the difference of two logits, for every pair of classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lconvnet import allowance
from lconvnet.bounds import Bound
from lconvnet.bounds.error_rules import ERROR_RULES
from lconvnet.bounds.forward_error import INFLATION, Arithmetic, Line, forward_error
from lconvnet.bounds.graph import Graph
from lconvnet.ops.float64 import row_norms, to_float64

PAIR = 80
"""Bytes that a pair of classes takes in all that is computed of it."""


class Pairs:
    """A table of pairs of classes, float64 ``(classes, classes)``, of which a row is made when it is asked for.

    Rows are kept, as many as fit into a part of `allowance.BYTES`.

    >>> Pairs(lambda label: torch.eye(3, dtype=torch.float64)[label], 3)[torch.tensor([2, 0])].tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """

    def __init__(self, row: Callable[[int], Tensor], classes: int) -> None:
        self.classes = classes
        self.row = lru_cache(maxsize=max(1, allowance.BYTES // (PAIR * classes)))(row)

    def __getitem__(self, labels: Tensor) -> Tensor:
        """The rows of these labels: ``(N, classes)``."""
        found, places = labels.unique(return_inverse=True)
        rows = torch.empty(len(found), self.classes, dtype=torch.float64)
        for row, label in zip(rows, found.tolist(), strict=True):
            row.copy_(self.row(label))
        return rows[places]


@dataclass(frozen=True)
class Budget:
    """For an image of norm t <= reach, ``f_i - f_j`` of a float network and of the one in real arithmetic are at most
    ``slope[i, j] t + offset[i, j]`` apart; beyond, numbers may overflow."""

    slope: Pairs
    offset: Pairs
    reach: float

    def at(self, norms: Tensor, labels: Tensor) -> Tensor:
        """The error at images of these norms, answered by these labels: ``(N, classes)``."""
        return (self.slope[labels] * norms[:, None] + self.offset[labels]) * INFLATION


def budget(graph: Graph, bound: Bound, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Budget:
    """The budget of a network with this ``state_dict`` that runs in this dtype.

        error_ij = |w_i - w_j| D + g (||w_i| + |w_j|| R + |b_i| + |b_j|) + underflow

    where the network ends in a dense layer with rows w, else sqrt(2) D.
    """
    arithmetic, uppers = Arithmetic.of(dtype), {layer.name: layer.upper for layer in bound.layers}
    stored = forward_error(graph, uppers, tensors, arithmetic, ERROR_RULES)
    end = graph[graph.output]
    whole, classes = stored[end.name], classes_of(graph)
    reach = _reach(whole.peak, arithmetic)
    if end.operation != "Linear":
        root = math.sqrt(2) * INFLATION
        ones = torch.ones(classes, dtype=torch.float64)
        slopes, offsets = ones * whole.error.slope * root, ones * whole.error.offset * root
        return Budget(Pairs(lambda _: slopes, classes), Pairs(lambda _: offsets, classes), reach)
    body = stored[end.inputs[0]]
    W, bias = to_float64(tensors[end.tensors["weight"]]), end.tensors.get("bias")
    b = W.new_zeros(len(W)) if bias is None else tensors[bias].detach().cpu().double().abs()
    rounding, underflow, A = arithmetic.gamma(W.shape[1]), 2 * arithmetic.underflow(W.shape[1]), W.abs()
    apart = Pairs(lambda i: row_norms(W - W[i]), classes)
    sums = Pairs(lambda i: row_norms(A + A[i]), classes)  # of the rows' absolute values, from above

    def slope(i: int) -> Tensor:
        return (apart.row(i) * body.error.slope + rounding * sums.row(i) * body.norm.slope) * INFLATION

    def offset(i: int) -> Tensor:
        biases = rounding * (sums.row(i) * body.norm.offset + b[i] + b)
        return (apart.row(i) * body.error.offset + biases + underflow) * INFLATION

    return Budget(Pairs(slope, classes), Pairs(offset, classes), reach)


def refuse_subnormal(graph: Graph, tensors: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` for a weight or constant below the normal numbers: hardware may read it as 0.

    A running variance only counts where that is seen beside the eps that it is added to.
    """
    for node in graph.nodes:
        for role, key in node.tensors.items():
            values = tensors[key].detach()
            if not values.is_floating_point():
                continue
            info = torch.finfo(values.dtype)
            unseen = role == "running_var" and node.options["eps"] * info.eps >= 2 * info.tiny
            if not unseen and bool(((values != 0) & (values.abs() < info.tiny)).any()):
                raise ValueError(
                    f"network tensor {key!r} holds subnormal numbers, which hardware may read as 0: set them to 0"
                )


def classes_of(graph: Graph) -> int:
    """The number of logits; raises ``ValueError`` where the output is no row of two or more."""
    shape = graph[graph.output].shape
    if shape is None or len(shape) != 1 or shape[0] < 2:
        raise ValueError(
            f"network gives an output of shape (N, *{shape}): a certificate needs (N, classes) with two classes or more"
        )
    return shape[0]


def _reach(peak: Line, arithmetic: Arithmetic) -> float:
    """Up to which norm of the image nothing exceeds half of the largest number."""
    room = (arithmetic.largest / 2 - peak.offset) * (1 - 2.0**-40)
    return room / peak.slope if peak.slope > 0 else math.inf
