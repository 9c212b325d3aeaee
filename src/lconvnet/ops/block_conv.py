"""Block convolution with the elementary factors of orthogonal convolutions (Xiao et al. 2018; Li et al. 2019).

Matrix-valued kernels compose by ``(A [] B)[i] = sum_p A[p] B[i - p]``. The elementary orthogonal factor along one
axis is ``P + (I - P) z`` with a symmetric projector P onto a column span. A 2 x 2 factor has one along each axis; its
four blocks are PQ, P(I - Q), (I - P)Q, (I - P)(I - Q). ``P = Y Y^T`` is twice as large as the basis Y and is never
formed: ``Z = X P = (X Y) Y^T``, and with ``D = dl/dZ``

    dl/dY = X^T (D Y) + D^T (X Y).

If its columns were nearly dependent, Y is a contraction. Then so is the factor: it is ``p + (1 - p) z`` on the
eigenvectors of P, with eigenvalues p between 0 and 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lconvnet.ops.derivatives import gradient_of, plain_call
from lconvnet.ops.whitening import whiten


def append_factor(kept: Tensor, moved: Tensor, dim: int) -> Tensor:
    """The kernel ``X [] (P + (I - P) z)`` along one spatial axis, where it grows by one.

    Args:
        kept: X P, a kernel ``(a, b, m, n)`` of m x n matrices.
        moved: X - X P, of the same shape.
        dim: spatial axis, 0 or 1.
    """
    size = kept.shape[dim]
    if size == 1:
        return torch.cat([kept, moved], dim)
    first, last = kept.narrow(dim, 0, 1), moved.narrow(dim, size - 1, 1)
    return torch.cat([first, kept.narrow(dim, 1, size - 1) + moved.narrow(dim, 0, size - 1), last], dim)


def _expanded(H: Tensor, bases: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The kernel, and for its gradient X and X Y of each factor."""
    X, saved = H[None, None], []
    for index, Y in enumerate(bases.unbind()):
        C = _rows(X) @ Y
        kept = (C @ Y.mT).view_as(X)
        saved += [X, C]
        X = append_factor(kept, X - kept, index % 2)
    return X, saved


def _kernel(H: Tensor, bases: Tensor) -> Tensor:
    """The kernel in plain operations and float64."""
    return _expanded(H.double(), bases.double())[0].to(H.dtype)


class _BlockOrthogonalKernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, H: Tensor, bases: Tensor) -> Tensor:
        X, saved = _expanded(H, bases)
        ctx.save_for_backward(H, bases, *saved)
        return X

    @staticmethod
    @gradient_of(_kernel)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        _, bases, *saved = ctx.saved_tensors
        gradients = bases.new_empty(bases.shape)  # contiguous; the bases need not be
        for index in reversed(range(len(bases))):
            Y, X, C, dim = bases[index], saved[2 * index], saved[2 * index + 1], index % 2
            last = grad.narrow(dim, 1, X.shape[dim])
            D = grad.narrow(dim, 0, X.shape[dim]) - last
            DY = _rows(D) @ Y
            torch.mm(_rows(X).mT, DY, out=gradients[index]).addmm_(_rows(D).mT, C)
            grad = last + (DY @ Y.mT).view_as(D)
        return grad[0, 0], gradients


def _rows(X: Tensor) -> Tensor:
    """The rows of all taps stacked: one product of two matrices is cheaper to call than one of four dimensions."""
    return X.flatten(0, -2)


def block_orthogonal_kernel(H: Tensor, R: Tensor) -> Tensor:
    """The kernel ``H [] B(P_1, Q_1) [] ... [] B(P_{k-1}, Q_{k-1})`` (Li et al. 2019, algorithm 1).

    Args:
        H: semi-orthogonal ``(m, n)``, m <= n. It is the thin side, so it is multiplied first.
        R: ``(2(k - 1), n, r)``; the columns of consecutive pairs span the ranges of P_j (first axis) and Q_j (second
            axis).

    Returns:
        Kernel ``(k, k, m, n)``. Its polyphase matrix has norm at most 1 for every R, and orthonormal rows at every
        frequency if :func:`whiten` finds orthonormal bases.

    Raises:
        ValueError: if R is not finite (on an accelerator, NaN instead).

    >>> block_orthogonal_kernel(torch.eye(2), torch.eye(2)[:, :1].expand(4, 2, 1)).shape
    torch.Size([3, 3, 2, 2])
    """
    bases = whiten(R)
    return _BlockOrthogonalKernel.apply(H, bases) if plain_call(H, bases) else _kernel(H, bases)
