"""Orthonormal basis of a span by Cholesky whitening, for any matrix, even a singular one.

    U = (I + rho/2 A A^T) A X,       A = L^{-1},       X X^T + rho I = L L^T,       rho = RIDGE |X X^T|_F.

``A X X^T A^T = I - rho A A^T``, so A X has the singular values ``sqrt(1 - t)`` with t between 0 and ``rho |A|^2``. The
first factor is a Björck step, which turns them into ``sqrt(1 - t) (1 + t / 2) = 1 - 3/8 t^2 - ...``. So U is a
contraction with rows orthonormal up to t^2, and a smooth function of X with slopes below ``2 / sqrt(rho)``. A direction
that X loses at a singular matrix can come back. RIDGE exceeds what rounding to float32 adds to a Gram matrix. It is
part of the function, so it is the same in float64.

Products with U do not form it. With ``B = (I + rho/2 A A^T) A``

    y = z B^T = v A^T,    v = z + rho/2 a A,   a = z A^T,       dl/dz = dv + rho/2 b A,   b = dv A^T,   dv = dl/dy A,

    dl/d(X X^T + rho I) = -K / 2,       K = A^T C A,

where C is symmetric with the lower triangle of ``(dl/dy)^T y + rho/2 (a^T b + b^T a)``, and ``dl/d rho`` is the sum of
``a b / 2`` minus half the trace of K. A wide dense layer has ``z = x X^T``; a tall one is the mirror image with
``y = (x B) X``. Either costs two products with X, half a product for the Gram matrix and one for its gradient. The
inverse A is formed by blocks, because products with it are faster than triangular solves.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lconvnet.ops.derivatives import gradient_of, plain_call
from lconvnet.ops.polynomials import finished
from lconvnet.ops.products import BLOCK, NOT_FINITE, congruence, frobenius_norm, gram, mirrored, unit_scaled

RIDGE = 2.0**-18


class _Factor(NamedTuple):
    """``A (S + rho I) A^T = I`` with A lower triangular, and the derivative of rho by S, for ``S = X X^T``."""

    A: Tensor
    rho: Tensor
    slope: Tensor

    @classmethod
    def of(cls, X: Tensor) -> _Factor:
        lower = gram(X)
        S = mirrored(lower) if lower.shape[-1] > BLOCK else lower.clone()
        norm = torch.linalg.matrix_norm(S, keepdim=True).clamp_min(1 / 4)  # at least 1/4 unless X is nearly 0
        lower.diagonal(dim1=-2, dim2=-1).add_(RIDGE * norm[..., 0])
        return cls(_inverse_factor(lower), RIDGE * norm, S.mul_(RIDGE / norm))

    def polished(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """``v (I + rho/2 A^T A)`` and ``v A^T``."""
        a = v @ self.A.mT
        return torch.addcmul(v, self.rho / 2, a @ self.A), a

    def through(self, C: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """K from C, a and b of the equations above, plus the term of rho."""
        cross = b.mT @ a
        K = congruence(self.A, C + self.rho / 2 * (cross + cross.mT))
        by_rho = (a * b).sum((-2, -1)) - K.diagonal(dim1=-2, dim2=-1).sum(-1)
        return torch.addcmul(K, by_rho[..., None, None], self.slope, value=-1)


def _cholesky(S: Tensor) -> Tensor:
    """Cholesky factor. If it does not exist, an accelerator returns NaN, because a check would stall it."""
    if S.device.type != "cpu":
        return _cholesky_or_nan(S)
    try:
        return torch.linalg.cholesky(S)
    except torch.linalg.LinAlgError as error:
        raise ValueError(NOT_FINITE) from error


def _cholesky_or_nan(S: Tensor) -> Tensor:
    L, info = torch.linalg.cholesky_ex(S)
    return L.masked_fill((info != 0)[..., None, None], torch.nan)


def _inverse_factor(S: Tensor) -> Tensor:
    """A with ``A S A^T = I``, lower triangular, from the lower triangle of S.

    By halves, ``L_21 = S_21 A_11^T`` and ``A_21 = -A_22 L_21 A_11``: most of the work is products.
    """
    m = S.shape[-1]
    if m <= BLOCK or S.device.type != "cpu":
        L = _cholesky(S)
        identity = torch.eye(m, dtype=L.dtype, device=L.device)
        return torch.linalg.solve_triangular(L, identity.expand_as(L), upper=False)
    first, second = slice(0, m // 2), slice(m // 2, m)
    A = torch.zeros_like(S)
    A[..., first, first] = A_11 = _inverse_factor(S[..., first, first])
    L_21 = S[..., second, first] @ A_11.mT
    A[..., second, second] = A_22 = _inverse_factor(S[..., second, second] - L_21 @ L_21.mT)
    A[..., second, first] = -A_22 @ (L_21 @ A_11)
    return A


def _rows(X: Tensor) -> Tensor:
    """U in plain operations and float64."""
    X = X.double()
    S = X @ X.mT
    rho = RIDGE * frobenius_norm(S, 1 / 4)
    identity = torch.eye(S.shape[-1], dtype=S.dtype, device=S.device)
    A = torch.linalg.solve_triangular(_cholesky(S + rho * identity), identity.expand_as(S), upper=False)
    return (A + rho / 2 * A @ A.mT @ A) @ X


def _columns(R: Tensor) -> Tensor:
    return _rows(R.mT).mT.to(R.dtype)


def _wide_linear(x: Tensor, X: Tensor) -> Tensor:
    return (x.double() @ _rows(X).mT).to(x.dtype)


def _tall_linear(x: Tensor, X: Tensor) -> Tensor:
    return (x.double() @ _rows(X)).to(x.dtype)


class _Whiten(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, R: Tensor) -> Tensor:
        factor = _Factor.of(R.mT)
        v, a = factor.polished(R)
        Y = v @ factor.A.mT
        ctx.save_for_backward(R, a, Y, *factor)
        return Y

    @staticmethod
    @gradient_of(_columns)
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        R, a, Y, *factor = ctx.saved_tensors
        factor = _Factor(*factor)
        dz, b = factor.polished(grad @ factor.A)
        return dz - R @ factor.through(grad.mT @ Y, a, b)


class _WideLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, X: Tensor) -> Tensor:
        factor = _Factor.of(X)
        v, a = factor.polished(x @ X.mT)
        y = v @ factor.A.mT
        ctx.save_for_backward(x, X, a, y, *factor)
        return y

    @staticmethod
    @gradient_of(_wide_linear)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, X, a, y, *factor = ctx.saved_tensors
        factor = _Factor(*factor)
        image, weight = ctx.needs_input_grad
        dz, b = factor.polished(grad @ factor.A)
        if not weight:
            return dz @ X, None
        dX = torch.addmm(dz.mT @ x, factor.through(grad.mT @ y, a, b), X, alpha=-1)
        return dz @ X if image else None, dX


class _TallLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, X: Tensor) -> Tensor:
        factor = _Factor.of(X)
        q, a = factor.polished(x @ factor.A)
        ctx.save_for_backward(x, X, a, q, *factor)
        return q @ X

    @staticmethod
    @gradient_of(_tall_linear)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        x, X, a, q, *factor = ctx.saved_tensors
        factor = _Factor(*factor)
        dv, b = factor.polished(grad @ X.mT)
        dx = dv @ factor.A.mT
        if not ctx.needs_input_grad[1]:
            return dx, None
        return dx, torch.addmm(q.mT @ grad, factor.through(x.mT @ dx, a, b), X, alpha=-1)


def whiten(R: Tensor) -> Tensor:
    """Orthonormal columns with the span of the columns of R.

    Args:
        R: ``(..., n, r)``, r <= n, float32 or float64.

    Returns:
        The same shape: ``Y^T Y = I`` up to t^2, where ``t = 2^-18 |R^T R|_F / s^2`` and s is the smallest singular
        value; in float64 up to round-off if t^2 is below 2^-14. A contraction if columns are dependent.

    Raises:
        ValueError: if R is not finite (on an accelerator, NaN instead).

    >>> torch.allclose(whiten(torch.tensor([[3.0], [4.0]])), torch.tensor([[0.6], [0.8]]))
    True
    """
    if R.numel() == 0:
        return R
    R = unit_scaled(R)
    return finished((_Whiten.apply(R) if plain_call(R) else _columns(R)).mT).mT


def cholesky(W: Tensor) -> Tensor:
    """Whiten the rows of a wide matrix, or the columns of a tall one: Gram-Schmidt in one factorisation.

        U = L^{-1} W,      W W^T = L L^T,      regularised as in :mod:`lconvnet.ops.whitening`.

    Not the polar factor: it depends on the order of the rows. It is another parametrisation (the Cholesky dense layer
    of LiResNet, Hu et al. 2023) and several times cheaper.

    Args:
        W: matrices ``(..., m, n)``, float32 or float64.

    Returns:
        The same shape: ``U U^T = I`` if m <= n, else ``U^T U = I``, as :func:`whiten` makes it.

    Raises:
        ValueError: if W is not finite (on an accelerator, NaN instead).

    >>> torch.allclose(cholesky(torch.tensor([[2.0, 0.0, 0.0], [1.0, 3.0, 0.0]])), torch.eye(2, 3), atol=1e-4)
    True
    """
    return whiten(W) if W.shape[-2] > W.shape[-1] else whiten(W.mT).mT


def cholesky_linear(x: Tensor, W: Tensor) -> Tensor:
    """``x U^T`` with ``U = cholesky(W)``, which is never formed.

    Args:
        x: rows ``(B, n)``.
        W: one matrix ``(m, n)``.

    >>> round(cholesky_linear(torch.tensor([[2.0, 1.0]]), torch.tensor([[3.0, 4.0]])).item(), 6)
    2.0
    """
    W = unit_scaled(W)
    if W.shape[0] > W.shape[1]:
        return _TallLinear.apply(x, W.mT) if plain_call(x, W) else _tall_linear(x, W.mT)
    return _WideLinear.apply(x, W) if plain_call(x, W) else _wide_linear(x, W)
