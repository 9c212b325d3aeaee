"""Orthonormal basis of a span by Cholesky whitening.

    Y = R A^T,       A = L^{-1},       R^T R = L L^T,       Y^T Y = I.

A projector Y Y^T depends on the span alone, so the polar factor's extra work would be lost on it. As an engine, with
the rows of a wide X in place of the columns of R, ``U = A X``, and with C = dl/dU U^T

    dl/dX = A^T (dl/dU - S U),       S = tril(C) + tril(C, -1)^T.

Applied to B vectors as ``x U^T = (x X^T) A^T``, it costs two products with X, one of them of a symmetric result, and
never forms U. The inverse A of the small factor is formed: products with it are faster than triangular solves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lconvnet.ops.products import gram


def _factor(S: Tensor) -> Tensor:
    """Cholesky factor; where asking whether it exists would stall an accelerator, NaN if it does not."""
    if S.device.type != "cpu":
        return _factor_or_nan(S)
    try:
        return torch.linalg.cholesky(S)
    except torch.linalg.LinAlgError as error:
        raise ValueError(
            "a matrix holds NaN or infinity, or its columns (rows, if wide) are dependent: they span no basis; "
            "lower the learning rate, or load weights of full rank"
        ) from error


def _factor_or_nan(S: Tensor) -> Tensor:
    L, info = torch.linalg.cholesky_ex(S)
    return L.masked_fill((info != 0)[..., None, None], torch.nan)


def _inverse_factor(S: Tensor) -> Tensor:
    """A with ``A S A^T = I``, lower triangular."""
    L = _factor(S)
    identity = torch.eye(L.shape[-1], dtype=L.dtype, device=L.device)
    return torch.linalg.solve_triangular(L, identity.expand_as(L), upper=False)


def whiten(R: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal columns with the span of the columns of R, and the triangular matrix that makes them, ``Y = R A^T``.

    Args:
        R: ``(..., n, r)`` of full column rank, r <= n, float32 or float64.

    Returns:
        Y of the same shape and A ``(..., r, r)``, lower triangular. In float64 the step is taken twice, which makes Y
        orthonormal to round-off up to condition numbers of about 1e7 (CholeskyQR2, Yamamoto et al. 2015).

    Raises:
        ValueError: if the columns are dependent to working precision, or not finite (on an accelerator, NaN instead).

    >>> Y, A = whiten(torch.tensor([[3.0], [4.0]]))
    >>> torch.allclose(Y, torch.tensor([[0.6], [0.8]])), round(1 / A.item(), 5)
    (True, 5.0)
    """
    if R.numel() == 0:
        return R, R.new_zeros(*R.shape[:-2], R.shape[-1], R.shape[-1])
    A = _inverse_factor(gram(R.mT))
    Y = R @ A.mT
    if R.dtype != torch.float64:
        return Y, A
    correction = _inverse_factor(gram(Y.mT))
    return Y @ correction.mT, correction @ A


class _Cholesky(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, X: Tensor) -> Tensor:
        Y, A = whiten(X.mT)
        U = Y.mT
        ctx.save_for_backward(U, A)
        return U

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        U, A = ctx.saved_tensors
        return A.mT @ (grad - _from_lower(grad @ U.mT) @ U)


class _ApplyCholesky(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, X: Tensor, transposed: bool) -> Tensor:
        A = _inverse_factor(gram(X))
        y = z @ (A if transposed else A.mT)
        ctx.transposed = transposed
        ctx.save_for_backward(z if transposed else y, X, A)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        saved, X, A = ctx.saved_tensors
        dz = grad @ (A.mT if ctx.transposed else A)
        C = saved.mT @ dz if ctx.transposed else grad.mT @ saved
        return dz, (A.mT @ (_from_lower(C) @ -A)) @ X, None


def _from_lower(C: Tensor) -> Tensor:
    """The symmetric matrix with the lower triangle of C."""
    return C.tril() + C.tril(-1).mT


def cholesky(W: Tensor) -> Tensor:
    """Whiten the rows of a wide matrix, or the columns of a tall one: Gram-Schmidt in one factorisation.

        U = L^{-1} W,      W W^T = L L^T.

    Not the polar factor: it depends on the order of the rows, and is a parametrisation of its own (the Cholesky dense
    layer of LiResNet, Hu et al. 2023, without their ridge), several times cheaper.

    Args:
        W: matrices ``(..., m, n)`` of full rank, float32 or float64.

    Returns:
        The same shape: ``U U^T = I`` if m <= n, else ``U^T U = I``, up to ``eps cond(W)^2`` in float32 and to round-off
        in float64. Differentiable once.

    Raises:
        ValueError: if W is rank-deficient to working precision (in float32, of a condition number above about 3000), or
            not finite. On an accelerator, NaN instead.

    >>> cholesky(torch.tensor([[2.0, 0.0, 0.0], [1.0, 3.0, 0.0]]))
    tensor([[1., 0., 0.],
            [0., 1., 0.]])
    """
    if W.shape[-2] > W.shape[-1]:
        return cholesky(W.mT).mT
    return _Cholesky.apply(W)


def apply_cholesky(z: Tensor, X: Tensor, transposed: bool = False) -> Tensor:
    """``z L^{-T}``, or ``z L^{-1}`` if transposed, with ``X X^T = L L^T``; differentiable once.

    Args:
        z: rows ``(B, m)``.
        X: one wide matrix ``(m, n)`` of full rank.

    >>> round(apply_cholesky(torch.tensor([[5.0]]), torch.tensor([[3.0, 4.0]])).item(), 6)
    1.0
    """
    return _ApplyCholesky.apply(z, X, transposed)
