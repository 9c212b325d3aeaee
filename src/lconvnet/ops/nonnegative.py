"""Norm of a matrix without negative entries, from above: for every positive vector v,

    |A|_2^2 = rho(A^T A) <= max_i (A^T A v)_i / v_i        (Collatz 1942, Wielandt 1950),

so a few steps of power iteration choose v, and whatever v they found the quotient is an upper bound.
"""

from __future__ import annotations

import math

from torch import Tensor

from .float64 import to_float64
from .rounding import up

SLACK = 2.0**-30
"""Added, relatively, so that somebody else can confirm the bound with float64 arithmetic of his own."""

FLOOR = 1e-6
"""Entries of v are at least this part of the largest one: a quotient of zero by zero bounds nothing."""


def nonnegative_bound(matrix: Tensor, *, steps: int = 8) -> float:
    """An upper bound on the largest singular value of a matrix with entries >= 0: never below it, whatever ``steps``.

    Args:
        matrix: ``(m, n)``, any floating dtype; read as exact numbers.
        steps: of power iteration.

    Raises:
        ValueError: a negative or non-finite entry, another number of dimensions.

    >>> import torch
    >>> 6 <= nonnegative_bound(torch.ones(4, 9)) < 6 + 1e-8
    True
    """
    A = to_float64(matrix)
    if A.ndim != 2 or A.numel() == 0 or bool((A < 0).any()):
        raise ValueError(f"matrix of shape {tuple(A.shape)}: expected a non-empty (m, n) without negative entries")
    largest = float(A.max())
    if largest == 0:
        return 0.0
    power = math.ldexp(1.0, min(max(math.frexp(largest)[1], -1000), 1000))
    A = A / power  # exact but for entries that underflow, which are nothing beside the largest one
    v = A.new_ones(A.shape[1])
    for _ in range(steps):
        v = A.T @ (A @ v)
        v = (v / v.max()).clamp(min=FLOOR)
    quotient = float(((A.T @ (A @ v)) / v).max()) * (1 + SLACK)
    return up(up(math.sqrt(up(quotient))) * power)
