"""Euclidean norms from above, however small or large the numbers are.

A row is brought near 1 by a power of two, which is exact, before its entries are squared: what underflows then is
nothing beside the largest entry.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .rounding import gamma


def row_norms(A: Tensor) -> Tensor:
    """Upper bounds on the l2 norms of the rows of ``(m, n)`` in float64: ``(m,)``; 0 for a row of zeros.

    Each entry may have been rounded a few times before.

    >>> row_norms(torch.tensor([[3e-200, 4e-200], [0.0, 0.0]], dtype=torch.float64)).tolist()
    [5.0000000000000063e-200, 0.0]
    """
    unit, exponent = rescaled(A)
    norms = torch.linalg.vector_norm(unit, dim=1) * (1 + gamma(A.shape[1] + 8))
    above = torch.nextafter(norms * power_of_two(exponent), torch.full_like(norms, torch.inf))
    return torch.where(norms == 0, norms, above)


def rescaled(G: Tensor) -> tuple[Tensor, Tensor]:
    """Bring the largest entry of each of ``(F, ...)`` near 1 by an exact power of two; also returns its
    exponent, (F,)."""
    shift = torch.frexp(G.abs().flatten(1).amax(dim=1)).exponent.long().clamp(-1000, 1000)
    return G * power_of_two(-shift).reshape(-1, *[1] * (G.ndim - 1)), shift


def power_of_two(exponent: Tensor) -> Tensor:
    """Exactly ``2^exponent`` in float64 for exponents in [-1022, 1023]: written into the bits
    (``torch.ldexp`` rounds to float32)."""
    return ((exponent.long() + 1023) << 52).view(torch.float64)
