"""Exact transport between samples: what an estimate can be checked against.

    W1 = min_T sum_ij T_ij |x_i - y_j|,   T 1 = a,   T' 1 = b,   T >= 0            (Kantorovich 1942; l2 distances)

For equal numbers of equally weighted samples the minimum is an assignment (Birkhoff 1946), solved by scipy; otherwise
it is a linear programme, solved by POT (network simplex, Bonneel et al. 2011). Both are in the extra `wasserstein`. The
empirical distance is itself no estimate of the distance of the distributions in high dimensions: it is far above.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lconvnet.extras import require
from lconvnet.wasserstein.samples import floats

EXTRA = "wasserstein"
NEAR = 1e-3
CHUNK = 2000  # pairs subtracted at a time
Weights = Tensor | None


def transport(real: Tensor, fake: Tensor, *, weights: tuple[Weights, Weights] = (None, None)) -> float:
    """Exact Wasserstein-1 distance (l2) between two weighted sets of samples.

    Args:
        real, fake: samples `(n, ...)` and `(m, ...)` of one shape, uint8 images divided by 255. Takes n·m numbers of
            memory and about n^3 operations: 1,000 samples take about a second, 5,000 a minute.
        weights: non-negative `(n,)` and `(m,)`, scaled to sum 1; None: equal.

    Raises:
        ValueError: shapes or weights do not fit, a value is not finite, or a library is missing (extra `wasserstein`).

    >>> transport(torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [1.0]]))
    1.5
    >>> transport(torch.tensor([[0.0]]), torch.tensor([[3.0], [1.0]]), weights=(None, torch.tensor([1.0, 3.0])))
    1.5
    """
    cost = distances(real, fake)
    if len(real) == len(fake) and weights == (None, None):
        rows, columns = require("scipy.optimize", EXTRA).linear_sum_assignment(cost)
        return math.fsum(cost[rows, columns]) / len(cost)
    masses = [
        _masses(part, count, name) for part, count, name in zip(weights, cost.shape, ("real", "fake"), strict=True)
    ]
    plan, log = require("ot", EXTRA).emd(*masses, cost, numItermax=10**7, log=True)
    if log["warning"]:
        raise ValueError(f"the transport of {cost.shape} samples was not solved ({log['warning']}): give fewer samples")
    return math.fsum((plan * cost).ravel())


def distances(real: Tensor, fake: Tensor) -> np.ndarray:
    """The l2 distances `(n, m)` between samples, in float64.

    By |x - y|^2 = |x|^2 + |y|^2 - 2 <x, y>, one product of matrices. Pairs nearer than `NEAR` times their norms, for
    which that loses more digits, are subtracted one by one. The relative error is typically below 1e-9 (1e-16 / NEAR^2
    with room); that is no bound, for it grows with the length of a sample.

    >>> distances(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])).tolist()
    [[5.0]]
    """
    for name, samples in (("real", real), ("fake", fake)):
        if samples.ndim < 2 or not len(samples) or not bool(torch.isfinite(samples).all()):
            raise ValueError(f"{name} of shape {tuple(samples.shape)}: give finite samples of shape (N, ...)")
    if real.shape[1:] != fake.shape[1:]:
        raise ValueError(f"fake has samples of shape {tuple(fake.shape[1:])}, real of shape {tuple(real.shape[1:])}")
    one, other = (floats(samples).double().flatten(1).cpu() for samples in (real, fake))
    scale = one.square().sum(1)[:, None] + other.square().sum(1)
    squares = torch.addmm(scale, one, other.T, alpha=-2)
    near = squares < NEAR**2 * scale
    rows, columns = near.nonzero(as_tuple=True)
    for part in torch.arange(len(rows)).split(CHUNK):
        squares[rows[part], columns[part]] = (one[rows[part]] - other[columns[part]]).square().sum(1)
    return squares.sqrt().numpy()


def _masses(weights: Weights, count: int, name: str) -> Any:
    if weights is None:
        return np.full(count, 1 / count)
    masses = weights.double().cpu().numpy()
    if masses.shape != (count,) or not np.isfinite(masses).all() or (masses < 0).any() or not masses.any():
        raise ValueError(f"weights of {name} must be {count} finite non-negative numbers, not all 0")
    return masses / masses.sum()
