"""Margins of a classifier and what they certify (Tsuzuku et al. 2018).

With f = (logits), i the answer, m_j = f_i - f_j and an L-Lipschitz f, the answer cannot change within

    r = min_j m_j / (sqrt(2) L),                   because f_i - f_j is sqrt(2) L-Lipschitz;
    r = min_j m_j / (L_body |w_i - w_j|),          where the last layer is dense with rows w (Singla, Singla &
    Feizi, ICLR 2022).

The second is never smaller, and equal when the rows are orthonormal. Radii are l2, in the units of the input.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .float64 import row_norms, to_float64
from .rounding import UNIT_ROUNDOFF


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """All margins f_i - f_j of class i = labels, with infinity at j = i.

    Args:
        logits: ``(B, classes)``.
        labels: ``(B,)``, integers.

    Returns:
        ``(B, classes)`` in the dtype of the logits; negative where another class is ahead.

    >>> margins(torch.tensor([[3.0, 1.0]]), torch.tensor([0])).tolist()
    [[inf, 2.0]]
    """
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"logits has shape {tuple(logits.shape)}: a margin needs (B, classes) with at least 2 classes")
    ahead = logits.gather(1, labels[:, None]) - logits
    return ahead.scatter(1, labels[:, None], math.inf)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The smallest margin of each example: top-1 minus runner-up when the answer is right, negative when it
    is wrong.

    >>> margin(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0])).tolist()
    [1.0]
    """
    return margins(logits, labels).amin(dim=1)


def row_distances(weight: Tensor) -> Tensor:
    """Upper bounds, in float64, on the distances |w_i - w_j| between the rows of ``(classes, n)``:
    ``(classes, classes)``.

    >>> bool(row_distances(torch.eye(2))[0, 1] >= 2**0.5)
    True
    """
    W = to_float64(weight)
    return torch.stack([row_norms(W - row) for row in W])


def global_radius(ahead: Tensor, lipschitz: float) -> Tensor:
    """``min_j m_j / (sqrt(2) L)`` rounded down, from the margins ``(B, classes)`` in float64: ``(B,)``; 0
    where not positive.

    >>> float(global_radius(torch.tensor([[math.inf, 2**0.5]], dtype=torch.float64), 1.0)) <= 1.0
    True
    """
    return _rounded_down(ahead.amin(dim=1) / (math.sqrt(2) * lipschitz))


def pairwise_radius(ahead: Tensor, labels: Tensor, distances: Tensor, lipschitz: float) -> Tensor:
    """``min_j m_j / (L |w_i - w_j|)`` rounded down, with L that of everything before the last layer:
    ``(B,)``.

    Args:
        ahead: margins ``(B, classes)`` in float64.
        labels: class i of every example ``(B,)``.
        distances: from :func:`row_distances`.
        lipschitz: upper bound L of the body.

    >>> ahead = torch.tensor([[math.inf, 2.0]], dtype=torch.float64)
    >>> distances = row_distances(torch.tensor([[0.0], [1.0]]))
    >>> 1.999 < float(pairwise_radius(ahead, torch.tensor([0]), distances, 1.0)) <= 2.0
    True
    """
    return _rounded_down((ahead / (distances[labels] * lipschitz)).amin(dim=1))


def _rounded_down(radius: Tensor) -> Tensor:
    """Lower by more than the four roundings of a quotient; NaN, ties and wrong answers have radius 0."""
    lowered = radius * (1 - 8 * UNIT_ROUNDOFF)
    return torch.where(lowered > 0, lowered, torch.zeros_like(lowered))
