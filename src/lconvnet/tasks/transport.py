"""Exact transport between samples, as a check of an estimate.

    W1 = min_T sum_ij T_ij |x_i - y_j|,   T 1 = a,   T' 1 = b,   T >= 0            (Kantorovich 1942; l2 distances)

For equal numbers of equally weighted samples the minimum is an assignment (Birkhoff 1946), solved by scipy. Otherwise
it is a linear programme, solved by POT (network simplex, Bonneel et al. 2011). Both are in the extra `wasserstein`. In
high dimensions the empirical distance does not estimate the distance of the distributions: it is far above.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lconvnet.extras import require
from lconvnet.ops.rounding import UNIT_ROUNDOFF
from lconvnet.tasks.samples import displaced, numbers

EXTRA = "wasserstein"
TOLERANCE = 1e-9  # relative to the result or to the median distance
SMALLEST = 2.0**-500  # smallest number whose square keeps its digits
Weights = Tensor | np.ndarray | None


def transport(real: Tensor, fake: Tensor, *, weights: tuple[Weights, Weights] = (None, None)) -> float:
    """Exact Wasserstein-1 distance (l2) between two weighted sets of samples, to 1e-9 of it or of the median distance.

    Args:
        real, fake: samples `(n, ...)` and `(m, ...)` of one shape; uint8 images are divided by 255. Takes memory for
            n·m numbers and about n^3 operations: 1,000 samples take a few seconds, 5,000 minutes.
        weights: non-negative `(n,)` and `(m,)`, scaled to sum 1; None: equal.

    Raises:
        ValueError: shapes or weights do not fit, a value is not finite, integers lie 2^53 apart, 8-bit pixels meet
            values outside [0, 1], distances are too unequal for float64 to resolve the result, or a library is missing
            (extra `wasserstein`).

    >>> transport(torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [1.0]]))
    1.5
    >>> transport(torch.tensor([[0.0]]), torch.tensor([[3.0], [1.0]]), weights=(None, torch.tensor([1.0, 3.0])))
    1.5
    """
    cost, (of_real, of_fake) = distances(real, fake), _pair(weights)
    if len(real) == len(fake) and of_real is of_fake is None:
        rows, columns = require("scipy.optimize", EXTRA).linear_sum_assignment(cost)
        found = math.fsum(cost[rows, columns]) / len(cost)
    else:
        found = _weighted(cost, (of_real, of_fake))
    lost = sum(cost.shape) * UNIT_ROUNDOFF * float(cost.max())
    if found and lost > TOLERANCE * max(found, float(np.median(cost))):
        raise ValueError(
            f"real and fake have samples up to {float(cost.max()):.4g} apart, beside which float64 does not tell a "
            f"transport of about {found:.4g}: leave the farthest samples out, or move them nearer"
        )
    return found


def distances(real: Tensor, fake: Tensor) -> np.ndarray:
    """The l2 distances `(n, m)` between samples, in float64, from the difference of every pair.

    For d numbers per sample the relative error is at most (d + 4) 2^-53, even if all samples share a large offset.

    >>> distances(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])).tolist()
    [[5.0]]
    """
    real, fake = numbers(real, "real"), numbers(fake, "fake")
    for name, samples in (("real", real), ("fake", fake)):
        if samples.ndim < 2 or not samples.numel():
            raise ValueError(
                f"{name} of shape {tuple(samples.shape)}: give samples of shape (N, ...), none of them empty"
            )
    if real.shape[1:] != fake.shape[1:]:
        raise ValueError(f"fake has samples of shape {tuple(fake.shape[1:])}, real of shape {tuple(real.shape[1:])}")
    one, other, unit = displaced(real, fake)
    one, other = one.flatten(1), other.flatten(1)
    low, high = torch.cat([one, other]).aminmax(dim=0)
    one, other = one[:, low < high], other[:, low < high]
    exponent = math.frexp(float((high / 2 - low / 2).max()))[1] + 1  # of the largest difference
    left, right = (torch.from_numpy(np.ldexp(side.numpy(), -exponent)) for side in (one, other))  # squares stay finite
    found = torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist")
    near = found < SMALLEST
    if bool(near.any()) and bool((torch.cdist(one, other, p=math.inf)[near] > 0).any()):
        raise ValueError("real and fake have distances that differ by more than 1e150: leave the farthest samples out")
    with np.errstate(over="ignore"):
        cost = np.ldexp(found.numpy(), exponent) * unit
    if not np.isfinite(cost).all():
        raise ValueError("real and fake have distances beyond the largest float64: divide both by one number")
    return cost


def _pair(weights: object) -> tuple[Weights, Weights]:
    if not isinstance(weights, tuple | list) or len(weights) != 2:
        raise ValueError(f"weights is {type(weights).__name__}: give a pair (weights of real, weights of fake)")
    return weights[0], weights[1]


def _weighted(cost: np.ndarray, weights: tuple[Weights, Weights]) -> float:
    masses = [
        _masses(part, count, name) for part, count, name in zip(weights, cost.shape, ("real", "fake"), strict=True)
    ]
    plan, log = require("ot", EXTRA).emd(*masses, cost, numItermax=10**7, log=True)
    if log["warning"]:
        raise ValueError(f"the transport of {cost.shape} samples was not solved ({log['warning']}): give fewer samples")
    return math.fsum((plan * cost).ravel())


def _masses(weights: Weights, count: int, name: str) -> Any:
    if weights is None:
        return np.full(count, 1 / count)
    given = numbers(weights, f"weights of {name}")
    masses = given.double().cpu().numpy()
    if masses.shape != (count,) or (masses < 0).any() or not masses.any():
        raise ValueError(f"weights of {name} must be {count} finite non-negative numbers, not all 0")
    masses = masses / masses.max()  # so that the sum is finite
    return masses / math.fsum(masses)
