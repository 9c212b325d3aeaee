"""Block convolution with the elementary factors of orthogonal convolutions (Xiao et al. 2018; Li et al. 2019).

Matrix-valued kernels compose by ``(A [] B)[i] = sum_p A[p] B[i - p]``. The elementary orthogonal factor along one
axis is ``P + (I - P) z`` with a symmetric projector P onto a column span; a 2 x 2 factor is one along each axis, its
four blocks are PQ, P(I - Q), (I - P)Q, (I - P)(I - Q). With R = Y L^T, Y^T Y = I, a loss changes through P = Y Y^T by

    dl/dR = (I - P) (dl/dP + dl/dP^T) Y L^{-1}.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lconvnet.ops.whitening import whiten


def append_factor(X: Tensor, P: Tensor, dim: int) -> Tensor:
    """Multiply a kernel on the right by ``P + (I - P) z`` along one spatial axis: it grows by one there.

    Args:
        X: kernel ``(a, b, m, n)`` of m x n matrices.
        P: projector ``(n, n)``.
        dim: spatial axis, 0 or 1.
    """
    kept = X @ P
    moved = X - kept
    if X.shape[dim] == 1:
        return torch.cat([kept, moved], dim)
    size = X.shape[dim]
    first, last = kept.narrow(dim, 0, 1), moved.narrow(dim, size - 1, 1)
    return torch.cat([first, kept.narrow(dim, 1, size - 1) + moved.narrow(dim, 0, size - 1), last], dim)


class _BlockOrthogonalKernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, H: Tensor, R: Tensor) -> Tensor:
        Y, L = whiten(R)
        P = Y @ Y.mT
        kernels = [H[None, None]]
        for index, projector in enumerate(P):
            kernels.append(append_factor(kernels[-1], projector, index % 2))
        ctx.save_for_backward(Y, L, P, *kernels[:-1])
        return kernels[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        Y, L, P, *kernels = ctx.saved_tensors
        dP = torch.empty_like(P)
        for index in reversed(range(len(P))):
            X, dim = kernels[index], index % 2
            moved = grad.narrow(dim, 1, X.shape[dim])
            difference = grad.narrow(dim, 0, X.shape[dim]) - moved
            torch.mm(X.reshape(-1, X.shape[-1]).mT, difference.reshape(-1, X.shape[-1]), out=dP[index])
            grad = moved + difference @ P[index]
        dY = (dP + dP.mT) @ Y
        dR = torch.linalg.solve_triangular(L, dY - P @ dY, upper=False, left=False)
        return grad[0, 0], dR


def block_orthogonal_kernel(H: Tensor, R: Tensor) -> Tensor:
    """The kernel ``H [] B(P_1, Q_1) [] ... [] B(P_{k-1}, Q_{k-1})`` (Li et al. 2019, algorithm 1); differentiable once.

    Args:
        H: semi-orthogonal ``(m, n)``, m <= n; being the thin side, it is multiplied first.
        R: ``(2(k - 1), n, r)`` of full column rank; the columns of consecutive pairs span the ranges of P_j (first
            axis) and Q_j (second axis).

    Returns:
        Kernel ``(k, k, m, n)`` whose polyphase matrix has orthonormal rows at every frequency.

    Raises:
        ValueError: if columns of R are dependent to working precision, or not finite (on an accelerator, NaN instead).

    >>> block_orthogonal_kernel(torch.eye(2), torch.eye(2)[:, :1].expand(4, 2, 1)).shape
    torch.Size([3, 3, 2, 2])
    """
    return _BlockOrthogonalKernel.apply(H, R)
