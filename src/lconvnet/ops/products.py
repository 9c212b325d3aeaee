"""Products whose structure a general matrix product cannot see."""

from __future__ import annotations

from torch import Tensor

BLOCK = 128


def gram(W: Tensor) -> Tensor:
    """``W W^T`` of shape ``(..., m, m)``, block row by block row so that no block is computed twice.

    >>> import torch
    >>> gram(torch.tensor([[3.0, 4.0]]))
    tensor([[25.]])
    """
    m = W.shape[-2]
    if m <= BLOCK:
        return W @ W.mT
    S = W.new_empty(*W.shape[:-1], m)
    for start in range(0, m, BLOCK):
        size = min(BLOCK, m - start)
        block = W.narrow(-2, start, size) @ W.narrow(-2, 0, start + size).mT
        S.narrow(-2, start, size).narrow(-1, 0, start + size).copy_(block)
        S.narrow(-2, 0, start).narrow(-1, start, size).copy_(block.narrow(-1, 0, start).mT)
    return S
