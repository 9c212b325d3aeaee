r"""The dual of the Wasserstein-1 distance, and what samples tell of it: pure functions of tensors.

    W1(P, Q) = sup_{Lip(f) <= 1} E_P f - E_Q f                    (Kantorovich & Rubinstein 1958; Villani 2009, 5.16)

Distances are l2. Every f with Lipschitz constant at most L gives the lower bound $(E_P f - E_Q f) / L$.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn


def critic_values(critic: nn.Module, samples: Tensor) -> Tensor:
    """f of every sample, `(B,)`. Raises `ValueError` where the critic does not give one number a sample.

    >>> import torch
    >>> critic_values(nn.Flatten(), torch.ones(3, 1)).tolist()
    [1.0, 1.0, 1.0]
    """
    values = critic(samples)
    if tuple(values.shape) not in ((len(samples),), (len(samples), 1)):
        raise ValueError(
            f"critic gives outputs of shape {tuple(values.shape)} for {len(samples)} samples: "
            "build it with one output, such as classes=1"
        )
    return values.reshape(len(samples))


def difference(real: Tensor, fake: Tensor) -> Tensor:
    """mean f(real) - mean f(fake), the objective that a critic maximises, of values `(n,)` and `(m,)`.

    >>> import torch
    >>> difference(torch.tensor([1.0, 3.0]), torch.tensor([0.5])).item()
    1.5
    """
    return real.mean() - fake.mean()


@dataclass(frozen=True)
class Mean:
    """A mean over samples of which some are copies of others.

    Attributes:
        value: the mean over all samples.
        variance: of the mean, from sums over copies: what one distinct sample contributes is one observation.
        size: how many samples that were all different would say as much, n^2 / sum_g c_g^2 for c_g copies (Kish 1965).
    """

    value: float
    variance: float
    size: float

    @classmethod
    def of(cls, values: Tensor, groups: Tensor | None = None) -> "Mean":
        """That of values `(n,)`; equal `groups` `(n,)` mark copies, by default there are none.

        >>> Mean.of(torch.tensor([1.0, 1.0, 3.0, 3.0]), torch.tensor([0, 0, 1, 1]))
        Mean(value=2.0, variance=1.0, size=2.0)
        """
        values = values.double()
        groups = torch.arange(len(values)) if groups is None else groups
        _, place, counts = groups.unique(return_inverse=True, return_counts=True)
        mean, distinct = values.mean(), len(counts)
        sums = torch.zeros(distinct, dtype=torch.float64).index_add(0, place, values - mean)
        variance = float(sums.square().sum()) / len(values) ** 2 * distinct / max(distinct - 1, 1)
        return cls(float(mean), variance, len(values) ** 2 / float(counts.double().square().sum()))


def central_interval(real: Mean, fake: Mean, confidence: float, spread: float) -> tuple[float, float]:
    r"""Two-sided confidence interval for $E_P f - E_Q f$ from independent samples of P and of Q.

        mean(x) - mean(y) -+ (t_v sqrt(s_x^2 / n + s_y^2 / m) + spread (p_n + p_m)),       p_n = 1 - (a / 4)^{1 / n}

    with t the Student quantile for the degrees of freedom v of Welch (1947) and Satterthwaite, a = 1 - `confidence`.
    A value that none of n samples takes has at most the probability p_n, with confidence 1 - a / 4; what it can
    change where values lie within `spread` is the second part, which is never 0. **Asymptotic**: the coverage tends to
    `confidence` as n and m grow, by the central limit theorem. Values further away that no sample shows are not
    covered.

    >>> low, high = central_interval(Mean.of(torch.full((99,), 2.0)), Mean.of(torch.zeros(99)), 0.95, 2.0)
    >>> round(low, 2), round(high, 2)
    (1.83, 2.17)
    """
    middle, variance = real.value - fake.value, real.variance + fake.variance
    half = 0.0
    if variance > 0:
        parts = sum(side.variance**2 / max(side.size - 1, 1.0) for side in (real, fake))
        half = student_quantile((1 + confidence) / 2, variance**2 / parts) * math.sqrt(variance)
    unseen = sum(-math.expm1(math.log((1 - confidence) / 4) / side.size) for side in (real, fake))
    return middle - half - spread * unseen, middle + half + spread * unseen


def bernstein_interval(real: Tensor, fake: Tensor, confidence: float, diameter: float) -> tuple[float, float]:
    r"""Two-sided confidence interval for $E_P f - E_Q f$ that holds **for every number of samples**.

        | mean(x) - E x | <= sqrt(2 s^2 log(2 / d) / n) + 7 D log(2 / d) / (3 (n - 1))       with probability 1 - 2 d

    (Maurer & Pontil 2009, theorem 4, on either side) for independent values `(n,)` and `(m,)` that lie within an
    interval of length D, such as those of a 1-Lipschitz f on a support of this `diameter`; d = (1 - `confidence`) / 4.

    >>> low, high = bernstein_interval(torch.full((101,), 2.0), torch.zeros(101), 0.95, 1.0)
    >>> round(low, 2), round(high, 2)
    (1.76, 2.24)
    """
    middle, log = float(difference(real, fake)), math.log(8 / (1 - confidence))
    half = sum(
        math.sqrt(2 * float(values.var()) * log / len(values)) + 7 * diameter * log / (3 * (len(values) - 1))
        for values in (real, fake)
    )
    return middle - half, middle + half


def student_quantile(probability: float, freedom: float) -> float:
    """Quantile of Student's distribution above the median, from the integral of its density in the angle
    arctan(t / sqrt(freedom)), to 1e-6 relatively.

    >>> round(student_quantile(0.975, 30), 4)
    2.0423
    """
    angles = np.linspace(0, min(math.pi / 2, 40 / math.sqrt(freedom)), 20_001)
    with np.errstate(divide="ignore"):
        density = np.cos(angles) ** (freedom - 1)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    angle = float(np.interp((2 * probability - 1) * mass[-1], mass, angles))
    return math.sqrt(freedom) * math.tan(angle)
