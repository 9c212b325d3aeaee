"""Orthonormal basis of a column span by Cholesky whitening.

    R = Y L^T,       R^T R = L L^T,       Y^T Y = I.

A projector Y Y^T depends on the span alone, so this serves where the polar factor's extra work would be lost.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _step(R: Tensor) -> tuple[Tensor, Tensor]:
    try:
        L = torch.linalg.cholesky(R.mT @ R)
    except torch.linalg.LinAlgError as error:
        raise ValueError(
            "R holds NaN or infinity, or its columns are linearly dependent: they span no basis; "
            "lower the learning rate, or load weights of full rank"
        ) from error
    return torch.linalg.solve_triangular(L.mT, R, upper=True, left=False), L


def whiten(R: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal columns with the span of the columns of R, and the triangular factor between them.

    Args:
        R: ``(..., n, r)`` of full column rank, r <= n, float32 or float64.

    Returns:
        Y of the same shape and L ``(..., r, r)``, lower triangular. In float64 the step is taken twice, which makes Y
        orthonormal to round-off up to condition numbers of about 1e7 (CholeskyQR2, Yamamoto et al. 2015).

    Raises:
        ValueError: if the columns are dependent to working precision, or not finite.

    >>> Y, L = whiten(torch.tensor([[3.0], [4.0]]))
    >>> Y.squeeze(1), L.item()
    (tensor([0.6000, 0.8000]), 5.0)
    """
    if R.numel() == 0:
        return R, R.new_zeros(*R.shape[:-2], R.shape[-1], R.shape[-1])
    Y, L = _step(R)
    if R.dtype != torch.float64:
        return Y, L
    Y, correction = _step(Y)
    return Y, L @ correction
