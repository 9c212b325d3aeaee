"""Exact spectrum of a circular convolution (Sedghi, Gupta & Long 2019).

On an h x w torus the operator is block-diagonalised by the two-dimensional Fourier transform: its singular values are
the union, over all h w frequencies, of those of ``K_hat(w) = sum_a K[:, :, a] exp(-i <w, a>)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lconvnet.ops.threads import map_batch

WELL_CONDITIONED = 1e-8
"""From this ratio of its extreme eigenvalues on, a Gram matrix gives the singular values without loss that matters."""


def wrap_kernel(K: Tensor, size: tuple[int, int]) -> Tensor:
    """Place a kernel ``(co, ci, k, k)`` on the h x w torus, adding up the taps that fall on the same pixel."""
    height, width = size
    rows = torch.arange(K.shape[-2], device=K.device) % height
    columns = torch.arange(K.shape[-1], device=K.device) % width
    wrapped = K.new_zeros(*K.shape[:2], height, width)
    return wrapped.index_put(
        (
            torch.arange(K.shape[0], device=K.device)[:, None, None, None],
            torch.arange(K.shape[1], device=K.device)[None, :, None, None],
            rows[:, None],
            columns[None, :],
        ),
        K,
        accumulate=True,
    )


def transfer_matrices(K: Tensor, size: tuple[int, int]) -> Tensor:
    """``K_hat`` on the half plane of frequencies that determines the rest: ``(h, w // 2 + 1, co, ci)``, complex."""
    return torch.fft.rfft2(wrap_kernel(K, size)).permute(2, 3, 0, 1)


def _singular_values(A: Tensor) -> Tensor:
    """Singular values of ``(N, m, n)`` matrices, unordered: roots of the eigenvalues of the smaller Gram matrix.

    Several times faster than a decomposition of A. An eigenvalue is off by ``n eps`` of the largest at most, hence its
    root by ``n eps cond(A) / 2``; where the condition number exceeds 1e4, A itself is decomposed.
    """
    scale = A.abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    A = A / scale
    S = A @ A.mH if A.shape[-2] <= A.shape[-1] else A.mH @ A
    eigenvalues = torch.linalg.eigvalsh(S)
    doubtful = ~(eigenvalues[:, 0] > WELL_CONDITIONED * eigenvalues[:, -1])
    values = eigenvalues.masked_fill(doubtful[:, None], 1).sqrt()
    return scale[..., 0] * values.index_put((doubtful,), torch.linalg.svdvals(A[doubtful]))


def circular_singular_values(K: Tensor, size: tuple[int, int]) -> Tensor:
    """All singular values of the circular convolution on an h x w image, descending.

    Args:
        K: kernel ``(co, ci, k, k)``; evaluated in float64.
        size: image size (h, w).

    Returns:
        Float64 tensor of ``h w min(co, ci)`` values, off by at most ``1e4 n eps / 2`` of the largest, n = min(co, ci),
        and by round-off typically: not rounded outward.

    >>> circular_singular_values(torch.ones(1, 1, 2, 2) / 4, (2, 2)).tolist()
    [1.0, 0.0, 0.0, 0.0]
    """
    matrices = transfer_matrices(K.double(), size)
    values = map_batch(_singular_values, matrices.flatten(0, 1)).unflatten(0, matrices.shape[:2])
    mirrored = values[:, 1 : (size[1] + 1) // 2]
    return torch.cat([values.flatten(), mirrored.flatten()]).sort(descending=True).values
