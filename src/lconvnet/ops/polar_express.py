"""Polar Express: minimax-optimal composition of odd quintics (Amsel et al. 2025, arXiv 2505.16932).

Each step ``X <- (a I + b S + c S^2) X`` with ``S = X X^T`` maps a singular value s to ``a s + b s^3 + c s^5``. The
coefficients are optimal for s in [l, u]; they may overshoot 1, so a cubic step, which maps [0, 2] into [-1, 1],
always ends the composition. With the Taylor coefficients (15/8, -10/8, 3/8) it is the quintic Newton-Schulz iteration.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from lconvnet.ops.odd_polynomial import odd_polynomial
from lconvnet.ops.products import unit_scaled

CUSHION = 0.02407327424182761  # the published coefficients are reproduced with this value
SAFETY = 1.01
TAYLOR = (15 / 8, -10 / 8, 3 / 8)
Quintic = tuple[float, float, float]


def _quintic(coefficients: Quintic, s: float) -> float:
    a, b, c = coefficients
    return a * s + b * s**3 + c * s**5


def _remez(low: float, high: float) -> Quintic:
    """The odd quintic that deviates least from 1 on [low, high], by equi-oscillation at four points.

    ``a + b t + c t^2 = (1 -+ E) / s`` with ``t = s^2`` at all four of them fixes E, since the third divided difference
    of a quadratic is 0. Plain numbers throughout, which a compiler can follow.
    """
    q, r = (3 * low + high) / 4, (low + 3 * high) / 4
    error = math.inf
    while True:
        points = (low, q, r, high)
        t = [s * s for s in points]
        weights = [1 / (s * math.prod([u - v for v in t if v != u])) for s, u in zip(points, t, strict=True)]
        new_error = sum(weights) / (weights[0] - weights[1] + weights[2] - weights[3])
        p0, p1, p2 = (1 - new_error) / low, (1 + new_error) / q, (1 - new_error) / r
        slope = (p1 - p0) / (t[1] - t[0])
        c = ((p2 - p1) / (t[2] - t[1]) - slope) / (t[2] - t[0])
        b = slope - c * (t[0] + t[1])
        a = p0 - t[0] * (b + c * t[0])
        root = math.sqrt(9 * b * b - 20 * a * c)
        q, r = math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c))
        if abs(new_error - error) <= 1e-15:
            return a, b, c
        error = new_error


def _optimal_step(low: float, high: float) -> Quintic:
    """One cushioned step for [low, high], recentred so that the image of the interval is centred at 1."""
    inner = max(low, CUSHION * high)
    if inner / high >= 1 - 5e-6:
        a, b, c = TAYLOR
        return a / high, b / high**3, c / high**5
    a, b, c = _remez(inner, high)
    if inner > low:
        scale = 2 / (_quintic((a, b, c), low) + _quintic((a, b, c), high))
        a, b, c = a * scale, b * scale, c * scale
    return a, b, c


@cache
def coefficients(iterations: int, lower: float = 1e-3) -> tuple[Quintic, ...]:
    """Coefficients of the first ``iterations`` steps for singular values in ``[lower, 1]``, without the safety factor.

    >>> [round(x, 10) for x in coefficients(1)[0]]
    [8.2872120181, -23.5958865191, 17.3003873125]
    """
    steps: list[Quintic] = []
    low, high = lower, 1.0
    for _ in range(iterations):
        step = _optimal_step(low, high)
        steps.append(step)
        low = _quintic(step, low)
        high = 2 - low
    return tuple(steps)


def polar_express(W: Tensor, *, iterations: int = 8, cubic_steps: int = 1, lower: float = 1e-3) -> Tensor:
    """Polar factor by Polar Express, ended by cubic steps; the gradient goes through every step.

    Args:
        W: matrices ``(..., m, n)``; singular values below ``lower`` end below 1, since all steps are polynomials.
        iterations: quintic steps, three products each.
        cubic_steps: closing steps of order 1; at least one, since the quintics may overshoot 1.
        lower: smallest singular value, relative to the Frobenius norm, that the coefficients are optimal for.

    Raises:
        ValueError: if ``iterations`` or ``cubic_steps`` is below 1, or ``lower`` outside (0, 1).

    >>> U = polar_express(torch.tensor([[3.0, 0.0], [1.0, 2.0]], dtype=torch.float64))
    >>> torch.allclose(U @ U.mT, torch.eye(2, dtype=torch.float64))
    True
    """
    if iterations < 1 or cubic_steps < 1:
        raise ValueError(f"iterations={iterations} and cubic_steps={cubic_steps} must be at least 1")
    if not 0 < lower < 1:
        raise ValueError(f"lower={lower} must lie strictly between 0 and 1")
    if W.shape[-2] > W.shape[-1]:
        return polar_express(W.mT, iterations=iterations, cubic_steps=cubic_steps, lower=lower).mT
    W = unit_scaled(W)
    norm = torch.linalg.matrix_norm(W, keepdim=True).clamp_min(1 / 4)  # which it is, but for what is nearly 0
    X = W / (SAFETY * norm)
    for index, (a, b, c) in enumerate(coefficients(iterations, lower)):
        safety = SAFETY if index < iterations - 1 else 1.0
        X = odd_polynomial(X, (a / safety, b / safety**3, c / safety**5))
    for _ in range(cubic_steps):
        X = odd_polynomial(X, (1.5, -0.5))
    return X
