"""Values, means and intervals."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from lconvnet.tasks.estimates import (
    Mean,
    bernstein_interval,
    central_interval,
    critic_values,
    difference,
    student_quantile,
)

MISSED = 0.025 + 3 * (0.025 * 0.975 / 500) ** 0.5  # of 500 intervals at 95 %, on either side of them


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("freedom", [1, 1.5, 2, 5, 10, 40, 1000.5, 1e6])
def test_student_quantile(freedom, confidence):
    exact = stats.t.ppf((1 + confidence) / 2, freedom)
    assert student_quantile((1 + confidence) / 2, freedom) == pytest.approx(exact, rel=1e-5)


def test_without_unseen_values_the_interval_is_welchs():
    x, y = torch.randn(30, dtype=torch.float64), 3 * torch.randn(50, dtype=torch.float64) + 1
    exact = stats.ttest_ind(x.numpy(), y.numpy(), equal_var=False).confidence_interval(0.95)
    found = central_interval(Mean.of(x), Mean.of(y), 0.95, 0.0)
    assert found == pytest.approx((exact.low, exact.high), rel=1e-5)  # the quantile's integral


def test_the_variance_of_a_mean_with_copies_is_that_over_clusters():
    """Means of groups of sizes 1 to 4, drawn anew 4,000 times; 5 % are three standard errors of a variance."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(200).repeat_interleave(torch.arange(200) % 4 + 1)
    drawn = [Mean.of(torch.randn(200, generator=generator)[groups], groups) for _ in range(4000)]
    variance = np.var([mean.value for mean in drawn])
    assert np.mean([mean.variance for mean in drawn]) == pytest.approx(variance, rel=0.07)
    assert drawn[0].size == pytest.approx(500**2 / (50 * (1 + 4 + 9 + 16)))


def covered(draw, truth, interval, times=500):
    """How many intervals lie above the truth, and below it, of all."""
    found = np.array([interval(*draw()) for _ in range(times)])
    return (found[:, 0] > truth).mean(), (found[:, 1] < truth).mean()


def central(x, y, groups=None):
    return central_interval(Mean.of(x, groups), Mean.of(y), 0.95, float(torch.cat([x, y]).aminmax().max) or 1.0)


@pytest.mark.parametrize("rate", [0.002, 0.01, 0.05])
def test_rare_values_are_covered(rate):
    """1 with a small probability, else 0: among 100 samples often nothing but zeros, whose variance is 0."""
    generator = torch.Generator().manual_seed(0)

    def draw():
        return (torch.rand(100, generator=generator) < rate).double(), torch.zeros(100)

    assert max(covered(draw, rate, central)) <= MISSED
    assert max(covered(draw, rate, lambda x, y: bernstein_interval(x, y, 0.95, 1.0))) <= MISSED


def test_repeated_samples_are_covered():
    """Every sample five times; counted as different ones, seven of ten intervals miss."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(40).repeat_interleave(5)

    def draw():
        return torch.randn(40, generator=generator)[groups].double(), torch.zeros(200)

    def without_spread(groups):
        return lambda x, y: central_interval(Mean.of(x, groups), Mean.of(y), 0.95, 0.0)

    assert sum(covered(draw, 0.0, without_spread(groups))) <= 2 * MISSED
    assert sum(covered(draw, 0.0, without_spread(None))) > 0.2


def test_skewed_values_are_covered():
    draws = torch.distributions.Exponential(torch.tensor(1.0, dtype=torch.float64))
    torch.manual_seed(0)
    missed = covered(lambda: (draws.sample((60,)), 2 * draws.sample((90,))), -1.0, central)
    assert max(missed) <= MISSED
    pairs = [(draws.sample((60,)), 2 * draws.sample((90,))) for _ in range(500)]
    sharp = [central_interval(Mean.of(x), Mean.of(y), 0.95, 0.0) for x, y in pairs]
    assert 0.015 < np.mean([low > -1 or high < -1 for low, high in sharp]) < 0.1  # and not by being far too wide


def test_bernstein_equals_its_formula_and_is_wider():
    x, y = torch.rand(50, dtype=torch.float64), torch.rand(80, dtype=torch.float64)
    low, high = bernstein_interval(x, y, 0.9, 2.0)
    log = np.log(2 / 0.025)
    sides = x.numpy(), y.numpy()
    half = sum((2 * np.var(v, ddof=1) * log / len(v)) ** 0.5 + 14 * log / (3 * (len(v) - 1)) for v in sides)
    assert (high - low) / 2 == pytest.approx(half)
    assert (high + low) / 2 == pytest.approx(float(x.mean() - y.mean()))


@pytest.mark.parametrize("count", [2, 10, 1000])
def test_constant_values_never_give_a_point(count):
    """What has the probability 1 - 0.0125^(1 / n) is not seen in n samples with a probability of 1.25 %."""
    low, high = central_interval(Mean.of(torch.full((count,), 2.0)), Mean.of(torch.zeros(count)), 0.95, 2.0)
    assert (high - low) / 2 == pytest.approx(4 * (1 - 0.0125 ** (1 / count)))
    assert low < 2 < high


def test_difference_changes_sign():
    x, y = torch.rand(5), torch.rand(7)
    assert difference(x, y) == -difference(y, x)


@pytest.mark.parametrize("width", [2, 3])
def test_a_critic_has_one_output(width):
    with pytest.raises(ValueError, match=rf"outputs of shape \(4, {width}\) for 4 samples: build it with one output"):
        critic_values(nn.Linear(5, width), torch.zeros(4, 5))
