"""Björck's iteration of order 1 as libraries cut it off: what it leaves after so many steps is part of their weights.

W <- W / |W|_2,     W <- 1.5 W - 0.5 W W^T W
"""

from __future__ import annotations

import torch
from torch import Tensor

from lconvnet.ops.polynomials import bjorck_step


def cut_off(W: Tensor, steps: int) -> Tensor:
    """Matrices (..., m, n) after division by their norm and so many steps; singular values are at most 1.

    >>> cut_off(torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64)), 12).diagonal().tolist()
    [1.0, 1.0]

    Raises ValueError for a matrix of zeros.
    """
    if W.shape[-2] > W.shape[-1]:
        return cut_off(W.mT, steps).mT
    norm = torch.linalg.matrix_norm(W, 2)[..., None, None]
    if not bool((norm > 0).all()):
        raise ValueError("a matrix of zeros has no direction that Björck's iteration could keep")
    W = W / norm
    for _ in range(steps):
        W = bjorck_step(W, 1)
    return W
