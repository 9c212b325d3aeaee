"""Polynomial iterations towards the polar factor: Björck's of any order, and Polar Express. They need only products.

Both consist of odd polynomials of a matrix X, where ``S = X X^T - a I``,

    Y = (c_0 I + p(S)) X,     p(S) = c_1 S + ... + c_d S^d = P_1,     P_k = S (c_k I + P_{k+1}),

which map every singular value s to ``s (c_0 + c_1 (s^2 - a) + ... + c_d (s^2 - a)^d)``. Singular values gather near 1,
so with a = 1 high powers and their rounding stay small. With ``D = dl/dY`` and ``M = D X^T + X D^T``

    dl/dX = (c_0 I + P_1) D + L_1 X,        L_k = c_k M + M P_{k+1} + S L_{k+1},        L_d = c_d M,

five products for a quintic; PyTorch's recorded operations need six.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lconvnet.ops.derivatives import gradient_of, plain_call
from lconvnet.ops.products import unit_scaled

Coefficients = tuple[float, ...]
Quintic = tuple[float, float, float]

CUSHION = 0.02407327424182761  # reproduces the published coefficients
SAFETY = 1.01
TAYLOR = (15 / 8, -10 / 8, 3 / 8)


def odd_polynomial(X: Tensor, coefficients: Coefficients, about: float = 0.0) -> Tensor:
    """``(c_0 I + c_1 S + ... + c_d S^d) X`` with ``S = X X^T - a I``. Its gradient ignores autocast.

    Args:
        X: wide matrices ``(..., m, n)``, float32 or float64.
        coefficients: ``c_0, ..., c_d``, at least two.
        about: a.

    >>> odd_polynomial(torch.tensor([[0.5]]), (1.5, -0.5)).item()
    0.6875
    """
    batch = X.reshape(math.prod(X.shape[:-2]), *X.shape[-2:])
    Y = _OddPolynomial.apply(batch, coefficients, about) if plain_call(batch) else _double(batch, coefficients, about)
    return Y.reshape(X.shape)


def _powers(S: Tensor, coefficients: Coefficients) -> list[Tensor]:
    """P_d, ..., P_1."""
    found = [coefficients[-1] * S]
    for c in reversed(coefficients[1:-1]):
        found.append(torch.baddbmm(S, S, found[-1], beta=c))
    return found


def _double(X: Tensor, coefficients: Coefficients, about: float) -> Tensor:
    """Y in plain operations and float64."""
    exact = X.double()
    S = exact @ exact.mT - about * torch.eye(X.shape[-2], dtype=exact.dtype, device=X.device)
    P = _powers(S, coefficients)[-1]
    return torch.baddbmm(exact, P, exact, beta=coefficients[0]).to(X.dtype)


class _OddPolynomial(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, X: Tensor, coefficients: Coefficients, about: float) -> Tensor:
        S = X @ X.mT
        if about:
            S.diagonal(dim1=-2, dim2=-1).sub_(about)
        P = _powers(S, coefficients)
        ctx.constants = (coefficients, about)
        ctx.save_for_backward(X, S, *P)
        return torch.baddbmm(X, P[-1], X, beta=coefficients[0])

    @staticmethod
    @gradient_of(_double)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        X, S, *P = ctx.saved_tensors
        coefficients, _ = ctx.constants
        M = grad @ X.mT
        M = M + M.mT
        L = coefficients[-1] * M
        for c, inner in zip(reversed(coefficients[1:-1]), P, strict=False):  # all but P_1
            L = torch.baddbmm(torch.baddbmm(M, M, inner, beta=c), S, L)
        return torch.baddbmm(torch.baddbmm(grad, P[-1], grad, beta=coefficients[0]), L, X), None, None


def safe_scale(W: Tensor) -> Tensor:
    """Divide ``(..., m, n)`` by ``sqrt(|W|_1 |W|_inf)``, an upper bound on the norm: the result has norm at most 1.

    >>> float(torch.linalg.matrix_norm(safe_scale(torch.tensor([[3.0, 4.0]])), 2)) <= 1
    True
    """
    if W.numel() == 0:
        return W
    W = unit_scaled(W)
    magnitude = W.abs()
    bound = magnitude.sum(-1).amax(-1) * magnitude.sum(-2).amax(-1)
    return W / bound.clamp_min(1 / 4).sqrt()[..., None, None]  # at least 1/4 unless W is nearly 0


def bjorck_step(W: Tensor, order: int) -> Tensor:
    """One step of the given order on a wide matrix, as a polynomial in ``W W^T - I``."""
    return odd_polynomial(W, tuple(math.comb(2 * j, j) / (-4) ** j for j in range(order + 1)), about=1.0)


def bjorck(W: Tensor, *, order: int = 1, iterations: int = 20) -> Tensor:
    """Björck-Bowie orthonormalisation (1971; Anil, Lucas & Grosse 2019); the gradient goes through every step.

        W <- sum_{j=0..p} c_j (I - W W^T)^j W,        c_j = binom(2j, j) / 4^j

    Args:
        W: matrices ``(..., m, n)``, scaled by :func:`safe_scale` first; small singular values end below 1.
        order: p >= 1; the iteration converges with order p + 1.
        iterations: number of steps.

    Returns:
        The same shape with singular values in (0, 1], up to rounding: every order maps [0, 1] into itself.

    Raises:
        ValueError: if ``order`` or ``iterations`` is below 1.

    >>> U = bjorck(torch.tensor([[3.0, 0.0], [1.0, 2.0]], dtype=torch.float64), order=3, iterations=8)
    >>> torch.allclose(U @ U.mT, torch.eye(2, dtype=torch.float64))
    True
    """
    if order < 1 or iterations < 1:
        raise ValueError(f"order={order} and iterations={iterations} must be at least 1")
    if W.shape[-2] > W.shape[-1]:
        return bjorck(W.mT, order=order, iterations=iterations).mT
    W = safe_scale(W)
    for _ in range(iterations):
        W = bjorck_step(W, order)
    return W


def residual(W: Tensor) -> Tensor:
    """How far ``(..., m, n)`` is from semi-orthogonal: the largest row sum of ``|W W^T - I|``, on the smaller side.

    Evaluated in float64, of shape ``(...)``. Every singular value s has ``|s^2 - 1| <= residual``, up to round-off.

    >>> float(residual(torch.eye(2, 3)))
    0.0
    """
    W = W.double()
    if W.shape[-2] > W.shape[-1]:
        W = W.mT
    identity = torch.eye(W.shape[-2], dtype=W.dtype, device=W.device)
    return (W @ W.mT - identity).abs().sum(-1).amax(-1)


def finished(U: Tensor) -> Tensor:
    """Two more steps of order 1 in float64 if all rows are orthonormal up to 2^-14, fading out at 2^-13.

    At that distance from orthogonal, the steps change U by less than rounding to float32 does. So float32 skips them,
    and the function is still the same.

    Args:
        U: wide matrices ``(..., m, n)`` with singular values of at most 1.
    """
    if U.dtype != torch.float64:
        return U
    share = (2 - 2**14 * residual(U)).clamp(0, 1)[..., None, None]
    return U + share * (bjorck_step(bjorck_step(U, 1), 1) - U)


def _quintic(coefficients: Quintic, s: float) -> float:
    a, b, c = coefficients
    return a * s + b * s**3 + c * s**5


def _remez(low: float, high: float) -> Quintic:
    """The odd quintic that deviates least from 1 on [low, high], by equi-oscillation at four points.

    The equations ``a + b t + c t^2 = (1 -+ E) / s`` with ``t = s^2`` at all four points fix E, because the third
    divided difference of a quadratic is 0. Python numbers throughout, so that a compiler can follow.
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
    """One cushioned step for [low, high], scaled so that the image of the interval is centred at 1."""
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
    """Polar factor by a minimax-optimal composition of odd quintics (Amsel et al. 2025, arXiv 2505.16932).

    Each step is ``a s + b s^3 + c s^5`` on singular values and may overshoot 1, so a cubic step, which maps [0, 2] into
    [-1, 1], always ends the composition. The gradient goes through every step.

    Args:
        W: matrices ``(..., m, n)``; singular values below ``lower`` end below 1.
        iterations: quintic steps, three products each.
        cubic_steps: closing steps of order 1, at least one.
        lower: smallest singular value, relative to the Frobenius norm, for which the coefficients are optimal.

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
    norm = torch.linalg.matrix_norm(W, keepdim=True).clamp_min(1 / 4)  # at least 1/4 unless W is nearly 0
    X = W / (SAFETY * norm)
    for index, (a, b, c) in enumerate(coefficients(iterations, lower)):
        safety = SAFETY if index < iterations - 1 else 1.0
        X = odd_polynomial(X, (a / safety, b / safety**3, c / safety**5))
    for _ in range(cubic_steps):
        X = odd_polynomial(X, (1.5, -0.5))
    return X
