"""Products of symmetric and triangular matrices, block by block, so that no half is computed twice or is zero."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128


def blocks(size: int) -> list[slice]:
    """Neighbouring ranges that cover a side.

    >>> blocks(BLOCK + 1)
    [slice(0, 128, None), slice(128, 129, None)]
    """
    return [slice(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK)]


def gram(W: Tensor) -> Tensor:
    """The lower triangle of ``W W^T``, ``(..., m, m)``, which is what factorisations read; above it stands no result.

    >>> import torch
    >>> gram(torch.tensor([[3.0, 4.0]]))
    tensor([[25.]])
    """
    m = W.shape[-2]
    if m <= BLOCK:
        return W @ W.mT
    S = W.new_zeros(*W.shape[:-1], m)
    for columns in blocks(m):
        S[..., columns.start :, columns] = W[..., columns.start :, :] @ W[..., columns, :].mT
    return S


def mirrored(S: Tensor) -> Tensor:
    """The symmetric matrix with the lower triangle of S.

    >>> mirrored(torch.tensor([[1.0, 9.0], [2.0, 3.0]]))
    tensor([[1., 2.],
            [2., 3.]])
    """
    return torch.where(torch.ones(S.shape[-2:], dtype=torch.bool, device=S.device).tril(), S, S.mT)


def congruence(A: Tensor, C: Tensor) -> Tensor:
    """``A^T S A`` for a lower triangular A and the symmetric S with the lower triangle of C, all ``(..., m, m)``.

    >>> congruence(torch.tensor([[2.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
    tensor([[7., 3.],
            [3., 3.]])
    """
    S = mirrored(C)
    m = A.shape[-1]
    if m <= BLOCK:
        return A.mT @ (S @ A)
    SA, upper = torch.empty_like(A), torch.empty_like(A)
    for columns in blocks(m):
        below = slice(columns.start, m)
        SA[..., below, columns] = S[..., below, below] @ A[..., below, columns]
    for columns in blocks(m):
        below = slice(columns.start, m)
        upper[..., : columns.stop, columns] = SA[..., below, : columns.stop].mT @ A[..., below, columns]
    return mirrored(upper.mT)
