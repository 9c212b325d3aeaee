"""Block convolution with the elementary factors of orthogonal convolutions (Xiao et al. 2018; Li et al. 2019).

Matrix-valued kernels compose by ``(A [] B)[i] = sum_p A[p] B[i - p]``. The elementary orthogonal factor along one
axis is ``P + (I - P) z`` with a symmetric projector ``P = R R^T``; a 2 x 2 factor is one along each axis, and its four
blocks are PQ, P(I - Q), (I - P)Q, (I - P)(I - Q).
"""

from __future__ import annotations

import torch
from torch import Tensor


def append_factor(X: Tensor, R: Tensor, dim: int) -> Tensor:
    """Multiply a kernel on the right by ``P + (I - P) z`` along one spatial axis: it grows by one there.

    Args:
        X: kernel ``(a, b, m, n)`` of m x n matrices.
        R: orthonormal columns ``(n, r)`` with ``P = R R^T``.
        dim: spatial axis, 0 or 1.
    """
    kept = (X @ R) @ R.mT
    moved = X - kept
    if X.shape[dim] == 1:
        return torch.cat([kept, moved], dim)
    edge = torch.zeros_like(X.narrow(dim, 0, 1))
    return torch.cat([kept, edge], dim) + torch.cat([edge, moved], dim)


def block_orthogonal_kernel(H: Tensor, R: Tensor) -> Tensor:
    """The kernel ``H [] B(P_1, Q_1) [] ... [] B(P_{k-1}, Q_{k-1})`` (Li et al. 2019, algorithm 1).

    Args:
        H: semi-orthogonal ``(m, n)``, m <= n; being the thin side, it is multiplied first.
        R: orthonormal columns ``(2(k - 1), n, r)``; consecutive pairs give P_j (first axis) and Q_j (second axis).

    Returns:
        Kernel ``(k, k, m, n)`` whose polyphase matrix has orthonormal rows at every frequency.

    >>> block_orthogonal_kernel(torch.eye(2), torch.eye(2)[:, :1].expand(4, 2, 1)).shape
    torch.Size([3, 3, 2, 2])
    """
    X = H[None, None]
    for index, factor in enumerate(R):
        X = append_factor(X, factor, index % 2)
    return X
