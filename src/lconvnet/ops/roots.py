"""Functions of the eigenvalues of a symmetric matrix in operations that PyTorch differentiates any number of times.

Derivatives of an eigen-decomposition divide by differences of eigenvalues, which are 0 for a multiple of an orthogonal
matrix. These iterations need sums and inverses only (Higham 2008, chapters 5 and 6):

    sign:            X <- (c X + (c X)^{-1}) / 2                                  (Newton, scaled by Byers & Xu 2008)
    inverse root:    Y <- (Y + Z^{-1}) / 2,   Z <- (Z + Y^{-1}) / 2               (Denman & Beavers 1976)
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

RESOLUTION = 2.0**-40
"""Eigenvalues nearer to 0, relative to the norm, have no sign: what lies between -1 and 1 stands for it."""

STEPS = 14
"""Nine bring the roots of condition numbers up to 2^16 within a factor of 2 of 1, the others square the distance."""


def positive_part(S: Tensor) -> Tensor:
    """The symmetric matrix with the eigenvectors of S and its positive eigenvalues, the others set to 0.

    >>> positive_part(torch.diag(torch.tensor([2.0, -3.0]).double())).round(decimals=9).tolist()
    [[2.0, 0.0], [0.0, 0.0]]
    """
    X = S / frobenius_norm(S)
    scale = 1 / sqrt(RESOLUTION)
    for step in range(10):
        X = (scale * X + torch.linalg.inv(scale * X)) / 2
        scale = sqrt(2 * sqrt(RESOLUTION) / (1 + RESOLUTION)) if step == 0 else 1 / sqrt((scale + 1 / scale) / 2)
    return (S + S @ X) / 2


def inverse_root(S: Tensor) -> Tensor:
    """``S^{-1/2}`` for symmetric positive definite matrices ``(..., m, m)`` of condition numbers up to 2^16.

    >>> inverse_root(torch.tensor([[4.0, 0.0], [0.0, 16.0]])).tolist()
    [[0.5, 0.0], [0.0, 0.25]]
    """
    trace, inverse_trace = (M.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] for M in (S, torch.linalg.inv(S)))
    middle = (trace / inverse_trace).sqrt()
    Y = S / middle
    Z = torch.eye(S.shape[-1], dtype=S.dtype, device=S.device).expand_as(S)
    for _ in range(STEPS):
        Y, Z = (Y + torch.linalg.inv(Z)) / 2, (Z + torch.linalg.inv(Y)) / 2
    return Z / middle.sqrt()


def frobenius_norm(S: Tensor, least: float = 0.0) -> Tensor:
    """``max(|S|_F, least)``, of shape ``(..., 1, 1)``."""
    return S.square().sum((-2, -1), keepdim=True).clamp_min(least**2).sqrt()
