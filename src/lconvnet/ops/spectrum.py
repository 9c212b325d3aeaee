"""Exact spectrum of a circular convolution: the singular values of its matrices at all frequencies of the torus."""

from __future__ import annotations

import torch
from torch import Tensor

from lconvnet.ops.fourier import transfer_matrices
from lconvnet.ops.threads import map_batch

WELL_CONDITIONED = 1e-8
"""From this ratio of its extreme eigenvalues on, a Gram matrix gives the singular values without loss that matters."""


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

    >>> circular_singular_values(torch.ones(1, 1, 2, 2) / 4, (2, 2)).round(decimals=12).tolist()
    [1.0, 0.0, 0.0, 0.0]
    """
    values = map_batch(_singular_values, transfer_matrices(K.double(), size)).unflatten(0, (size[0], -1))
    mirrored = values[:, 1 : (size[1] + 1) // 2]
    return torch.cat([values.flatten(), mirrored.flatten()]).sort(descending=True).values
