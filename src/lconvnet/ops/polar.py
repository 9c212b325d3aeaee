"""Exact polar factor with its implicit gradient.

The polar factor of a wide matrix W (m <= n) is the nearest semi-orthogonal matrix,

    U = R W,        R = S^{-1/2},   S = W W^T.

Only S is decomposed, S = Q diag(h^2) Q^T, and only m x m matrices are needed to differentiate its inverse root:

    dl/dS = -Q [ (Q^T dl/dR Q)_{ij} / (h_i h_j (h_i + h_j)) ] Q^T,        dl/dW = (dl/dS + dl/dS^T) W,

from ``H dR + dR H = -R dS R`` with H = S^{1/2}. Forming U costs five m^2 n products, forward and backward together;
applying it to B vectors as ``x U^T = (x W^T) R`` costs two, and R is never formed: with z = x W^T and g = dl/d(z R),
``Q^T dl/dR Q = (z Q)^T (g Q)`` needs products with B rows only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lconvnet.ops.bjorck import bjorck_step
from lconvnet.ops.precision import without_autocast
from lconvnet.ops.products import gram


class _PolarFactor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, W: Tensor) -> Tensor:
        Q, h = _square_roots(gram(W))
        R = (Q / h.unsqueeze(-2)) @ Q.mT
        ctx.save_for_backward(W, R, Q, h)
        return R @ W

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        W, R, Q, h = ctx.saved_tensors
        return R @ grad + _through_gram(Q.mT @ (grad @ W.mT) @ Q, Q, h) @ W


class _ApplyGramInverseRoot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, W: Tensor) -> Tensor:
        Q, h = _square_roots(gram(W))
        rotated = z @ Q
        ctx.save_for_backward(W, Q, h, rotated)
        return (rotated / h) @ Q.mT

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        W, Q, h, rotated = ctx.saved_tensors
        grad = grad @ Q
        return (grad / h) @ Q.mT, _through_gram(rotated.mT @ grad, Q, h) @ W


def _through_gram(grad: Tensor, Q: Tensor, h: Tensor) -> Tensor:
    """``dl/dS + dl/dS^T`` from ``dl/dR`` in the basis Q."""
    rows, columns = h.unsqueeze(-1), h.unsqueeze(-2)
    return Q @ ((grad + grad.mT) / (-rows * columns * (rows + columns))) @ Q.mT


def _square_roots(S: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors of S and the roots of its eigenvalues."""
    try:
        eigenvalues, Q = torch.linalg.eigh(S)
    except torch.linalg.LinAlgError as error:
        raise ValueError(
            f"W holds NaN or infinity, or its square overflows {S.dtype}: it has no polar factor; "
            "lower the learning rate, or load weights that are finite"
        ) from error
    return Q, _clamped(eigenvalues).sqrt()


def _clamped(eigenvalues: Tensor) -> Tensor:
    """Raise eigenvalues below round-off: a rank-deficient W then gives a contraction, never infinities."""
    information = torch.finfo(eigenvalues.dtype)
    return torch.maximum(eigenvalues, information.eps * eigenvalues[..., -1:]).clamp_min(information.tiny)


def polar_linear(x: Tensor, W: Tensor) -> Tensor:
    """``x U^T`` with U the polar factor of W, which is never formed; differentiable once.

    Args:
        x: rows ``(B, n)``.
        W: one matrix ``(m, n)`` of full rank.

    >>> round(polar_linear(torch.tensor([[2.0, 1.0]]), torch.tensor([[3.0, 4.0]])).item(), 6)
    2.0
    """
    if W.shape[0] > W.shape[1]:
        return _ApplyGramInverseRoot.apply(x, W.mT) @ W.mT
    return _ApplyGramInverseRoot.apply(x @ W.mT, W)


def polar_eigh(W: Tensor) -> Tensor:
    """Polar factor through the eigen-decomposition of the small Gram matrix.

    Args:
        W: matrices ``(..., m, n)`` of full rank, float32 or float64.

    Returns:
        The semi-orthogonal factor, same shape: ``U U^T = I`` if m <= n, else ``U^T U = I``.

    The residual is about ``eps * cond(W)^2`` in float32: it is for training, where condition numbers stay small. In
    float64, which is what gets baked, one cubic step follows and squares it, so that the result is orthogonal to
    round-off up to condition numbers of about 1e6, and a contraction where ``W`` is rank-deficient. Differentiable
    once. Source: the derivation in the module docstring.

    >>> U = polar_eigh(torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.5, 0.0]]))
    >>> torch.allclose(U, torch.eye(2, 3))
    True
    """
    if W.numel() == 0:
        return W
    if W.shape[-2] > W.shape[-1]:
        return polar_eigh(W.mT).mT
    U = _PolarFactor.apply(W)
    return bjorck_step(U, 1) if U.dtype == torch.float64 else U
