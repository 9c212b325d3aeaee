"""Orthonormal basis of a span by Cholesky whitening.

    Y = R A^T,       A = L^{-1},       R^T R = L L^T,       Y^T Y = I.

A projector Y Y^T depends on the span alone, so the polar factor's extra work would be lost on it. As an engine, with
the rows of a wide X in place of the columns of R, ``U = A X``, and with C = dl/dU U^T

    dl/dX = A^T (dl/dU - S U),       S = tril(C) + tril(C, -1)^T.

A dense layer takes ``y = x U^T = (x X^T) A^T`` and never forms U: with dz = dl/dy A and C = (dl/dy)^T y,

    dl/dX = dz^T x - (A^T S A) X,        dl/dx = dz X,

so the constraint costs two products with X, the half one of its Gram matrix and that of the gradient. A tall layer
takes ``y = x U = (x A) X``, whose C is x^T dl/dx. The inverse A is formed, by blocks: products with it are faster
than triangular solves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lconvnet.ops.precision import without_autocast
from lconvnet.ops.products import BLOCK, congruence, gram, mirrored


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
    """A with ``A S A^T = I``, lower triangular, from the lower triangle of S.

    By halves, ``L_21 = S_21 A_11^T`` and ``A_21 = -A_22 L_21 A_11``: most of it is products.
    """
    m = S.shape[-1]
    if m <= BLOCK or S.device.type != "cpu":
        L = _factor(S)
        identity = torch.eye(m, dtype=L.dtype, device=L.device)
        return torch.linalg.solve_triangular(L, identity.expand_as(L), upper=False)
    first, second = slice(0, m // 2), slice(m // 2, m)
    A = torch.zeros_like(S)
    A[..., first, first] = A_11 = _inverse_factor(S[..., first, first])
    L_21 = S[..., second, first] @ A_11.mT
    A[..., second, second] = A_22 = _inverse_factor(S[..., second, second] - L_21 @ L_21.mT)
    A[..., second, first] = -A_22 @ (L_21 @ A_11)
    return A


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
    @without_autocast
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        U, A = ctx.saved_tensors
        return A.mT @ (grad - mirrored(grad @ U.mT) @ U)


class _WideLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, X: Tensor) -> Tensor:
        A = _inverse_factor(gram(X))
        y = (x @ X.mT) @ A.mT
        ctx.save_for_backward(x, X, A, y)
        return y

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, X, A, y = ctx.saved_tensors
        image, weight = ctx.needs_input_grad
        dz = grad @ A
        dX = (dz.mT @ x).addmm_(congruence(A, grad.mT @ y), X, alpha=-1) if weight else None
        return dz @ X if image else None, dX


class _TallLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, X: Tensor) -> Tensor:
        A = _inverse_factor(gram(X))
        z = x @ A
        ctx.save_for_backward(x, X, A, z)
        return z @ X

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        x, X, A, z = ctx.saved_tensors
        dx = (grad @ X.mT) @ A.mT
        weight = ctx.needs_input_grad[1]
        return dx, (z.mT @ grad).addmm_(congruence(A, x.mT @ dx), X, alpha=-1) if weight else None


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


def cholesky_linear(x: Tensor, W: Tensor) -> Tensor:
    """``x U^T`` with ``U = cholesky(W)``, which is never formed; differentiable once.

    Args:
        x: rows ``(B, n)``.
        W: one matrix ``(m, n)`` of full rank.

    >>> round(cholesky_linear(torch.tensor([[2.0, 1.0]]), torch.tensor([[3.0, 4.0]])).item(), 6)
    2.0
    """
    if W.shape[0] > W.shape[1]:
        return _TallLinear.apply(x, W.mT)
    return _WideLinear.apply(x, W)
