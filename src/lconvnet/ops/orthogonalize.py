"""Engines: the algorithms that make a matrix orthogonal.

An engine is a function from a matrix to a semi-orthogonal one with the same row space (column space, if tall). For all
but ``cholesky`` it is the polar factor. Near singular matrices every engine is a contraction and continuous.
``orthogonalize`` picks one by device and dtype and runs it with autocast disabled in at least float32.

**The polar factor through eigenvalues**, with its implicit gradient, for any matrix, even a singular one.
The polar factor of a wide matrix W (m <= n) is the nearest semi-orthogonal matrix,

    U = R W,        R = f(S),   S = W W^T,        f(x) = x^{-1/2} for x >= rho,       rho = RIDGE |S|_F.

Below rho, where W is nearly singular, f is the Taylor polynomial at rho, ``(1 + t/2 + 3/8 t^2) / sqrt(rho)`` with
``t = 1 - x / rho``: a quintic Newton-Schulz step on ``W / sqrt(rho)``. So U is a contraction and a smooth function of W
with slopes below ``2 / sqrt(rho)``. A direction that W loses at a singular matrix can come back. RIDGE is part of the
function, so it is the same in float32 and float64.

Only S is decomposed, S = Q diag(x) Q^T, and the derivative of f needs only m x m matrices,

    dl/dS = Q [ (Q^T dl/dR Q)_{ij} (f(x_i) - f(x_j)) / (x_i - x_j) ] Q^T + (term of rho),     dl/dW = 2 dl/dS W,

with divided differences in closed form. Forming U costs five m^2 n products, forward and backward together. Applying it
to B vectors as ``x U^T = (x W^T) R`` costs two and never forms R: with z = x W^T and g = dl/d(z R), the product
``Q^T dl/dR Q = (z Q)^T (g Q)`` has only B rows.

Derivatives of an eigen-decomposition divide by differences of eigenvalues, which are 0 for a multiple of an orthogonal
matrix. If the caller needs more than a plain gradient, iterations of sums and inverses compute R. PyTorch can
differentiate these any number of times (Higham 2008, chapters 5 and 6):

    sign:            X <- (c X + (c X)^{-1}) / 2                                  (Newton, scaled by Byers & Xu 2008)
    inverse root:    Y <- (Y + Z^{-1}) / 2,   Z <- (Z + Y^{-1}) / 2               (Denman & Beavers 1976)
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lconvnet.ops.derivatives import gradient_of, plain_call
from lconvnet.ops.polynomials import finished, polar_express
from lconvnet.ops.products import NOT_FINITE, frobenius_norm, gram, unit_scaled
from lconvnet.ops.whitening import cholesky, cholesky_linear

RIDGE = 2.0**-16
RESOLUTION = 2.0**-40  # eigenvalues nearer to 0, relative to the norm, get a "sign" between -1 and 1
ROOT_STEPS = 14  # nine reach a factor of 2 for condition numbers up to 2^16; each later one squares the error


class _Roots(NamedTuple):
    """Eigenvectors Q of S, eigenvalues x, their norm, and f(x)."""

    Q: Tensor
    x: Tensor
    norm: Tensor
    f: Tensor

    @classmethod
    def of(cls, W: Tensor) -> _Roots:
        """Roots for a matrix whose largest entry is in [1/2, 1), or that is 0.

        Eigenvalues are raised by two roundings of their norm. In float32, norms of U then exceed 1 by at most 1e-4
        (measured up to 512 x 4096).
        """
        try:
            x, Q = torch.linalg.eigh(gram(W))
        except torch.linalg.LinAlgError as error:
            raise ValueError(NOT_FINITE) from error
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1 / 4)  # at least 1/4 unless W is nearly 0
        x = x + 2 * torch.finfo(x.dtype).eps * norm
        rho = RIDGE * norm
        t = (1 - x / rho).clamp_min(0)
        return cls(Q, x, norm, (1 + t * (1 / 2 + 3 / 8 * t)) / torch.maximum(x, rho).sqrt())

    def through(self, grad: Tensor) -> Tensor:
        """``dl/dS + dl/dS^T`` from ``dl/dR`` in the basis Q."""
        rho = RIDGE * self.norm
        t = (1 - self.x / rho).clamp_min(0)
        by_rho = (grad.diagonal(dim1=-2, dim2=-1) * (-15 / 8 * RIDGE) * t * t / rho.pow(1.5)).sum(-1, keepdim=True)
        grad = (grad + grad.mT) * _divided_differences(self.x, rho)
        grad.diagonal(dim1=-2, dim2=-1).add_(by_rho * self.x / self.norm)
        return self.Q @ grad @ self.Q.mT


def _divided_differences(x: Tensor, rho: Tensor) -> Tensor:
    """``(f(x_i) - f(x_j)) / (x_i - x_j)``, and the derivative where the two are equal.

    f is a function of ``max(x, rho)`` plus one of ``min(x, rho)``. So this is the mean of their divided differences,
    weighted by the share of the interval from x_i to x_j that lies above rho.
    """
    h, t = torch.maximum(x, rho).sqrt(), (1 - x / rho).clamp_min(0)
    rows, columns = h.unsqueeze(-1), h.unsqueeze(-2)
    above = -1 / (rows * columns * (rows + columns))
    below = -(1 / 2 + 3 / 8 * (t.unsqueeze(-1) + t.unsqueeze(-2))) / rho.pow(1.5).unsqueeze(-1)
    way = (x.unsqueeze(-1) - x.unsqueeze(-2)).abs()
    part = (torch.maximum(x, rho).unsqueeze(-1) - torch.maximum(x, rho).unsqueeze(-2)).abs()
    share = torch.where(way > 0, part / way, (x >= rho).to(x.dtype).unsqueeze(-1))
    return share * above + (1 - share) * below  # in this order: below may be far larger


def _positive_part(S: Tensor) -> Tensor:
    """The symmetric matrix with the eigenvectors of S and its positive eigenvalues, the others set to 0."""
    X = S / frobenius_norm(S)
    scale = 1 / sqrt(RESOLUTION)
    for step in range(10):
        X = (scale * X + torch.linalg.inv(scale * X)) / 2
        scale = sqrt(2 * sqrt(RESOLUTION) / (1 + RESOLUTION)) if step == 0 else 1 / sqrt((scale + 1 / scale) / 2)
    return (S + S @ X) / 2


def _inverse_root(S: Tensor) -> Tensor:
    """``S^{-1/2}`` for symmetric positive definite matrices ``(..., m, m)`` of condition numbers up to 2^16."""
    trace, inverse_trace = (M.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] for M in (S, torch.linalg.inv(S)))
    middle = (trace / inverse_trace).sqrt()
    Y = S / middle
    Z = torch.eye(S.shape[-1], dtype=S.dtype, device=S.device).expand_as(S)
    for _ in range(ROOT_STEPS):
        Y, Z = (Y + torch.linalg.inv(Z)) / 2, (Z + torch.linalg.inv(Y)) / 2
    return Z / middle.sqrt()


def _gram_inverse_root(W: Tensor) -> Tensor:
    """R in plain operations and float64: f is a function of ``max(x, rho)`` plus one of ``min(x, rho)``."""
    S = W.double() @ W.double().mT
    rho = RIDGE * frobenius_norm(S, 1 / 4)
    identity = torch.eye(S.shape[-1], dtype=S.dtype, device=S.device)
    above = _positive_part(S - rho * identity)
    t = identity - (S - above) / rho
    return _inverse_root(rho * identity + above) + (1 / 2 * t + 3 / 8 * t @ t) / rho.sqrt()


def _polar_factor(W: Tensor) -> Tensor:
    return (_gram_inverse_root(W) @ W.double()).to(W.dtype)


def _apply_gram_inverse_root(z: Tensor, W: Tensor) -> Tensor:
    return (z.double() @ _gram_inverse_root(W)).to(z.dtype)


class _PolarFactor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, W: Tensor) -> Tensor:
        roots = _Roots.of(W)
        R = (roots.Q * roots.f.unsqueeze(-2)) @ roots.Q.mT
        ctx.save_for_backward(W, R, *roots)
        return R @ W

    @staticmethod
    @gradient_of(_polar_factor)
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        W, R, *roots = ctx.saved_tensors
        roots = _Roots(*roots)
        return R @ grad + roots.through(roots.Q.mT @ (grad @ W.mT) @ roots.Q) @ W


class _ApplyGramInverseRoot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, W: Tensor) -> Tensor:
        roots = _Roots.of(W)
        rotated = z @ roots.Q
        ctx.save_for_backward(z, W, rotated, *roots)
        return (rotated * roots.f) @ roots.Q.mT

    @staticmethod
    @gradient_of(_apply_gram_inverse_root)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        _, W, rotated, *roots = ctx.saved_tensors
        roots = _Roots(*roots)
        grad = grad @ roots.Q
        return (grad * roots.f) @ roots.Q.mT, roots.through(rotated.mT @ grad) @ W


def _times_root(z: Tensor, W: Tensor) -> Tensor:
    return _ApplyGramInverseRoot.apply(z, W) if plain_call(z, W) else _apply_gram_inverse_root(z, W)


def polar_linear(x: Tensor, W: Tensor) -> Tensor:
    """``x U^T`` with U the polar factor of W, which is never formed.

    Args:
        x: rows ``(B, n)``.
        W: one matrix ``(m, n)``.

    >>> round(polar_linear(torch.tensor([[2.0, 1.0]]), torch.tensor([[3.0, 4.0]])).item(), 6)
    2.0
    """
    W = unit_scaled(W)
    if W.shape[0] > W.shape[1]:
        return _times_root(x, W.mT) @ W.mT
    return _times_root(x @ W.mT, W)


def polar_eigh(W: Tensor) -> Tensor:
    """Polar factor through the eigen-decomposition of the small Gram matrix.

    Args:
        W: matrices ``(..., m, n)``, float32 or float64.

    Returns:
        The same shape. If the smallest singular value s has ``s^2 >= 2^-16 |W W^T|_F``, then ``U U^T = I`` for m <= n
        and ``U^T U = I`` else; otherwise U is a contraction. The residual is about ``eps * cond(W)^2`` in float32, and
        round-off in float64.

    Raises:
        ValueError: if W is not finite.

    >>> U = polar_eigh(torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.5, 0.0]]))
    >>> torch.allclose(U, torch.eye(2, 3), atol=1e-5)
    True
    """
    if W.numel() == 0:
        return W
    if W.shape[-2] > W.shape[-1]:
        return polar_eigh(W.mT).mT
    W = unit_scaled(W)
    return finished(_PolarFactor.apply(W) if plain_call(W) else _polar_factor(W))


Engine = Callable[[Tensor], Tensor]

# functions that multiply by the result of an engine and never form it
LINEAR: dict[Engine, Callable[[Tensor, Tensor], Tensor]] = {polar_eigh: polar_linear, cholesky: cholesky_linear}


def default_engine(W: Tensor) -> Engine:
    """Eigen-decomposition on a CPU and in float64; Polar Express, which needs only products, on an accelerator."""
    if W.device.type == "cpu" or W.dtype == torch.float64:
        return polar_eigh
    return polar_express


def orthogonalize(W: Tensor, engine: Engine | None = None) -> Tensor:
    """A semi-orthogonal matrix, computed in at least float32, also under autocast.

    Args:
        W: matrices ``(..., m, n)``; half precision is promoted to float32.
        engine: the algorithm; by default one for the polar factor that suits the device and the dtype of ``W``.

    >>> orthogonalize(2 * torch.eye(3, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    with torch.autocast(W.device.type, enabled=False):
        W = W.to(torch.promote_types(W.dtype, torch.float32))
        return (engine or default_engine(W))(W)


def orthogonal_linear(x: Tensor, W: Tensor, bias: Tensor | None = None, engine: Engine | None = None) -> Tensor:
    """``x U^T + b`` with U the orthogonalised W, without forming U if the engine allows it.

        x U^T = (x W^T) A^T   for a wide W with U = A W,        x U^T = (x A) W^T   for a tall one with U^T = A W^T.

    U is formed in float64, for exactness, and under autocast, which would round products with the raw W before A
    amplifies them.

    Args:
        x: ``(..., n)``, of the dtype of W except under autocast.
        W: one matrix ``(m, n)``, float32 or float64.
        bias: ``(m,)`` or None.
        engine: as in :func:`orthogonalize`.

    Returns:
        ``(..., m)``, equal to ``F.linear(x, orthogonalize(W, engine), bias)`` up to round-off times the square of the
        condition number of W.

    >>> orthogonal_linear(torch.tensor([[1.0, 2.0]]), 3 * torch.eye(2)).round(decimals=4)
    tensor([[1., 2.]])
    """
    engine = engine or default_engine(W)
    if engine not in LINEAR or W.dtype == torch.float64 or torch.is_autocast_enabled(x.device.type):
        return F.linear(x, orthogonalize(W, engine), bias)
    y = LINEAR[engine](x.reshape(-1, x.shape[-1]), W).reshape(*x.shape[:-1], W.shape[0])
    return y if bias is None else y + bias
