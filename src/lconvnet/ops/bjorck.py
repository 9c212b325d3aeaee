"""Björck-Bowie orthonormalisation of any order (Björck & Bowie 1971; Anil, Lucas & Grosse 2019).

    W <- sum_{j=0..p} c_j (I - W W^T)^j W,        c_j = binom(2j, j) / 4^j

acts on every singular value as ``s -> s sum_j c_j (1 - s^2)^j`` and converges with order p + 1.
"""

from __future__ import annotations

from math import comb

import torch
from torch import Tensor


def safe_scale(W: Tensor) -> Tensor:
    """Divide by ``sqrt(|W|_1 |W|_inf)``, an upper bound on the spectral norm: the result has norm at most 1.

    Args:
        W: matrices ``(..., m, n)``.

    >>> float(torch.linalg.matrix_norm(safe_scale(torch.tensor([[3.0, 4.0]])), 2)) <= 1
    True
    """
    magnitude = W.abs()
    bound = (magnitude.sum(-1).amax(-1) * magnitude.sum(-2).amax(-1)).sqrt()
    return W / bound.clamp_min(torch.finfo(W.dtype).tiny)[..., None, None]


def bjorck_step(W: Tensor, order: int) -> Tensor:
    """One step of the given order on a wide matrix, ``order + 1`` products in Horner form."""
    defect = torch.eye(W.shape[-2], dtype=W.dtype, device=W.device) - W @ W.mT
    polynomial = torch.zeros_like(defect)
    identity = torch.eye(W.shape[-2], dtype=W.dtype, device=W.device)
    for j in range(order, 0, -1):
        polynomial = defect @ (polynomial + comb(2 * j, j) / 4**j * identity)
    return W + polynomial @ W


def bjorck(W: Tensor, *, order: int = 1, iterations: int = 20) -> Tensor:
    """Orthonormalise by Björck's iteration after a safe scaling; autograd records every step.

    Args:
        W: matrices ``(..., m, n)`` of full rank.
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
