"""Björck-Bowie orthonormalisation of any order (Björck & Bowie 1971; Anil, Lucas & Grosse 2019).

    W <- sum_{j=0..p} c_j (I - W W^T)^j W,        c_j = binom(2j, j) / 4^j

acts on every singular value as ``s -> s sum_j c_j (1 - s^2)^j`` and converges with order p + 1.
"""

from __future__ import annotations

from math import comb

import torch
from torch import Tensor

from lconvnet.ops.odd_polynomial import odd_polynomial
from lconvnet.ops.products import unit_scaled


def safe_scale(W: Tensor) -> Tensor:
    """Divide by ``sqrt(|W|_1 |W|_inf)``, an upper bound on the spectral norm: the result has norm at most 1.

    Args:
        W: matrices ``(..., m, n)``.

    >>> float(torch.linalg.matrix_norm(safe_scale(torch.tensor([[3.0, 4.0]])), 2)) <= 1
    True
    """
    if W.numel() == 0:
        return W
    W = unit_scaled(W)
    magnitude = W.abs()
    bound = magnitude.sum(-1).amax(-1) * magnitude.sum(-2).amax(-1)
    return W / bound.clamp_min(1 / 4).sqrt()[..., None, None]  # which it is, but for what is nearly 0


def bjorck_step(W: Tensor, order: int) -> Tensor:
    """One step of the given order on a wide matrix, as a polynomial in ``W W^T - I``."""
    return odd_polynomial(W, tuple(comb(2 * j, j) / (-4) ** j for j in range(order + 1)), about=1.0)


def bjorck(W: Tensor, *, order: int = 1, iterations: int = 20) -> Tensor:
    """Orthonormalise by Björck's iteration after a safe scaling; the gradient goes through every step.

    Args:
        W: matrices ``(..., m, n)``; singular values that are small end below 1, since all steps are polynomials.
        order: order p >= 1 of the step.
        iterations: number of steps.

    Returns:
        A matrix of the same shape whose singular values lie in (0, 1] in exact arithmetic at every
        iteration, because all orders map [0, 1] into itself and the scaling starts there.

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
    """How far matrices are from semi-orthogonal: the largest row sum of ``|W W^T - I|``, on the smaller side.

    Args:
        W: matrices ``(..., m, n)``; evaluated in float64.

    Returns:
        A tensor of shape ``(...)``. Every singular value s satisfies ``|s^2 - 1| <= residual``, up to float64
        round-off.

    >>> float(residual(torch.eye(2, 3)))
    0.0
    """
    W = W.double()
    if W.shape[-2] > W.shape[-1]:
        W = W.mT
    identity = torch.eye(W.shape[-2], dtype=W.dtype, device=W.device)
    return (W @ W.mT - identity).abs().sum(-1).amax(-1)


def finished(U: Tensor) -> Tensor:
    """In float64 two more steps of order 1 where all rows are orthonormal up to 2^-14, and none from 2^-13 on.

    They change U by less than what rounding to float32 does to a factor that far from orthogonal, so the function is
    the same one in float32, which goes without them.

    Args:
        U: wide matrices ``(..., m, n)`` with singular values of at most 1.
    """
    if U.dtype != torch.float64:
        return U
    share = (2 - 2**14 * residual(U)).clamp(0, 1)[..., None, None]
    return U + share * (bjorck_step(bjorck_step(U, 1), 1) - U)
