"""Orthonormal basis of a column span by Cholesky whitening.

    R <- R L^{-T},       R^T R = L L^T.

A projector R R^T depends on the span alone, so this serves where the polar factor's extra work would be lost.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _whiten(R: Tensor) -> Tensor:
    try:
        L = torch.linalg.cholesky(R.mT @ R)
    except torch.linalg.LinAlgError as error:
        raise ValueError(
            "R holds NaN or infinity, or its columns are linearly dependent: they span no basis; "
            "lower the learning rate, or load weights of full rank"
        ) from error
    return torch.linalg.solve_triangular(L.mT, R, upper=True, left=False)


def orthonormal_basis(R: Tensor) -> Tensor:
    """Orthonormal columns with the span of the columns of R, in at least float32 whatever autocast says.

    Args:
        R: ``(..., n, r)`` of full column rank, r <= n; half precision is promoted to float32.

    Returns:
        The same shape. In float64 the step is taken twice, which makes the result orthonormal to round-off up to
        condition numbers of about 1e7 (CholeskyQR2, Yamamoto et al. 2015).

    Raises:
        ValueError: if the columns are dependent to working precision, or not finite.

    >>> orthonormal_basis(torch.tensor([[3.0], [4.0]])).squeeze(1)
    tensor([0.6000, 0.8000])
    """
    if R.numel() == 0:
        return R
    with torch.autocast(R.device.type, enabled=False):
        R = _whiten(R.to(torch.promote_types(R.dtype, torch.float32)))
        return _whiten(R) if R.dtype == torch.float64 else R
