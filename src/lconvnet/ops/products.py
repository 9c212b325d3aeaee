"""Products of symmetric and triangular matrices by blocks: no half is computed twice, and no zeros are multiplied.

Products of rows square the range of their entries, so the entries are first scaled to at most 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lconvnet.ops.derivatives import gradient_of, plain_call

BLOCK = 128
LEAST = 2.0**-110
NOT_FINITE = "a matrix to be made orthogonal holds NaN or infinity: load weights that are finite"


def blocks(size: int) -> list[tuple[int, int]]:
    """The first index and the size of each block of a side.

    >>> blocks(BLOCK + 1)
    [(0, 128), (128, 1)]
    """
    return [(start, min(BLOCK, size - start)) for start in range(0, size, BLOCK)]


def unit(W: Tensor) -> Tensor:
    """The powers of two ``(..., 1, 1)`` that bring the largest entry of matrices into [1/2, 1).

    Entries below ``LEAST`` count as nearly 0 and stay below 1/2, in every dtype, because gradients grow as weights
    shrink. For a matrix of zeros the power is 1/2.

    >>> unit(torch.tensor([[3.0, 4.0]])).item()
    0.125
    """
    largest = W.detach().abs().amax((-2, -1), keepdim=True)
    largest = largest.masked_fill(largest == 0, 1).clamp_min(max(LEAST, torch.finfo(W.dtype).tiny))
    return torch.frexp(largest)[0] / largest


def unit_scaled(W: Tensor) -> Tensor:
    """Matrices times their :func:`unit`, which the gradient treats as a constant. For functions that ignore scale.

    >>> unit_scaled(torch.tensor([[3.0e30, 4.0e30]])), unit_scaled(torch.zeros(1, 2))
    (tensor([[0.5916, 0.7889]]), tensor([[0., 0.]]))
    """
    return W * unit(W) if W.numel() else W


def gram(X: Tensor) -> Tensor:
    """The lower triangle of ``X X^T``, ``(..., m, m)``. Entries above it are undefined.

    >>> gram(torch.tensor([[3.0, 4.0]]))
    tensor([[25.]])
    """
    m = X.shape[-2]
    if m <= BLOCK:
        return X @ X.mT
    S = X.new_zeros(*X.shape[:-1], m)
    for start, size in blocks(m):
        below = m - start
        product = X.narrow(-2, start, below) @ X.narrow(-2, start, size).mT
        S.narrow(-2, start, below).narrow(-1, start, size).copy_(product)
    return S


def _square_double(X: Tensor) -> Tensor:
    """``X X^T`` in plain operations and float64."""
    return (X.double() @ X.double().mT).to(X.dtype)


class _Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, X: Tensor) -> Tensor:
        ctx.save_for_backward(X)
        return X @ X.mT

    @staticmethod
    @gradient_of(_square_double)
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return (grad + grad.mT) @ ctx.saved_tensors[0]


def square(X: Tensor) -> Tensor:
    """The whole ``X X^T``, with a gradient that ignores autocast.

    >>> square(torch.tensor([[3.0, 4.0]]))
    tensor([[25.]])
    """
    return _Square.apply(X) if plain_call(X) else _square_double(X)


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
    SA, upper = torch.empty_like(S), torch.empty_like(S)
    for start, size in blocks(m):
        below, columns = m - start, A.narrow(-2, start, m - start).narrow(-1, start, size)
        product = S.narrow(-2, start, below).narrow(-1, start, below) @ columns
        SA.narrow(-2, start, below).narrow(-1, start, size).copy_(product)
    for start, size in blocks(m):
        below, columns = m - start, A.narrow(-2, start, m - start).narrow(-1, start, size)
        product = SA.narrow(-2, start, below).narrow(-1, 0, start + size).mT @ columns
        upper.narrow(-2, 0, start + size).narrow(-1, start, size).copy_(product)
    return mirrored(upper.mT)


def frobenius_norm(S: Tensor, least: float = 0.0) -> Tensor:
    """``max(|S|_F, least)``, of shape ``(..., 1, 1)``."""
    return S.square().sum((-2, -1), keepdim=True).clamp_min(least**2).sqrt()
