"""Exact polar factor with its implicit gradient.

The polar factor of a wide matrix W (m <= n) is the nearest semi-orthogonal matrix,

    U = (W W^T)^{-1/2} W,        W = H U,   H = (W W^T)^{1/2}.

With G = dl/dU and M = G U^T, the gradient is

    dl/dW = H^{-1} G + (A - H^{-1} M) U,      H A + A H = M - M^T,

so forward and backward together cost five m^2 n products; all else happens on m x m matrices.
The Sylvester equation is solved in the eigenbasis of H, which the forward pass already has.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lconvnet.ops.bjorck import bjorck_step


class _WidePolar(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, W: Tensor) -> Tensor:
        eigenvalues, Q = _eigh(W @ W.mT)
        h = _clamped(eigenvalues).sqrt()
        inverse_root = (Q / h.unsqueeze(-2)) @ Q.mT
        U = inverse_root @ W
        if W.dtype == torch.float64:
            U = bjorck_step(U, 1)
        ctx.save_for_backward(U, inverse_root, Q, h)
        return U

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, G: Tensor) -> Tensor:
        U, inverse_root, Q, h = ctx.saved_tensors
        M = G @ U.mT
        skew = Q.mT @ (M - M.mT) @ Q
        A = Q @ (skew / (h.unsqueeze(-1) + h.unsqueeze(-2))) @ Q.mT
        return inverse_root @ G + (A - inverse_root @ M) @ U


def _eigh(S: Tensor) -> tuple[Tensor, Tensor]:
    try:
        return torch.linalg.eigh(S)
    except torch.linalg.LinAlgError as error:
        raise ValueError(
            f"W holds NaN or infinity, or its square overflows {S.dtype}: it has no polar factor; "
            "lower the learning rate, or load weights that are finite"
        ) from error


def _clamped(eigenvalues: Tensor) -> Tensor:
    """Raise eigenvalues below round-off: a rank-deficient W then gives a contraction, never infinities."""
    information = torch.finfo(eigenvalues.dtype)
    floor = eigenvalues[..., -1:].clamp_min(information.tiny) * information.eps
    return torch.maximum(eigenvalues, floor.clamp_min(information.tiny))


def polar_eigh(W: Tensor) -> Tensor:
    """Polar factor through the eigen-decomposition of the small Gram matrix.

    Args:
        W: matrices ``(..., m, n)`` of full rank, float32 or float64.

    Returns:
        The semi-orthogonal factor, same shape: ``U U^T = I`` if m <= n, else ``U^T U = I``.

    The residual is about ``eps * cond(W)^2`` in float32. In float64 one cubic step follows, which squares it, so that
    the result is orthogonal to round-off up to condition numbers of about 1e6; a rank-deficient ``W`` gives a
    contraction. Differentiable once. Source: the derivation in the module docstring.

    >>> U = polar_eigh(torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.5, 0.0]]))
    >>> torch.allclose(U, torch.eye(2, 3))
    True
    """
    if W.shape[-1] == 0 or W.shape[-2] == 0:
        return W
    if W.shape[-2] > W.shape[-1]:
        return _WidePolar.apply(W.mT).mT
    return _WidePolar.apply(W)
