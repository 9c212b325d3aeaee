"""Values, means and intervals."""

import pytest
import torch
from scipy import stats
from torch import nn

from lconvnet.wasserstein.objective import critic_values, difference, student_quantile, welch_interval


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("freedom", [5, 10, 40, 1000.5])
def test_student_quantile(freedom, confidence):
    """Four terms of a series in 1 / freedom: a few per cent at five degrees of freedom, 0.5 % from ten on."""
    exact = stats.t.ppf((1 + confidence) / 2, freedom)
    assert student_quantile((1 + confidence) / 2, freedom) == pytest.approx(exact, rel=0.03 if freedom < 10 else 5e-3)


def test_interval_equals_scipys():
    x, y = torch.randn(30, dtype=torch.float64), 3 * torch.randn(50, dtype=torch.float64) + 1
    exact = stats.ttest_ind(x.numpy(), y.numpy(), equal_var=False).confidence_interval(0.95)
    assert welch_interval(x, y, 0.95) == pytest.approx((exact.low, exact.high), rel=1e-5)  # the quantile's series


def test_coverage():
    """Two-sided: of 2,000 intervals for skewed values 95 % cover, with a standard error of 0.5 %."""
    draws = torch.distributions.Exponential(torch.tensor(1.0, dtype=torch.float64))
    intervals = [welch_interval(draws.sample((60,)), 2 * draws.sample((90,)), 0.95) for _ in range(2000)]
    covered = sum(low <= -1.0 <= high for low, high in intervals) / len(intervals)
    assert 0.925 < covered < 0.965


def test_constant_values_give_a_point():
    assert welch_interval(torch.full((3,), 2.0), torch.zeros(4), 0.95) == (2.0, 2.0)


def test_difference_changes_sign():
    x, y = torch.rand(5), torch.rand(7)
    assert difference(x, y) == -difference(y, x)


@pytest.mark.parametrize("width", [2, 3])
def test_a_critic_has_one_output(width):
    with pytest.raises(ValueError, match=rf"outputs of shape \(4, {width}\) for 4 samples: build it with one output"):
        critic_values(nn.Linear(5, width), torch.zeros(4, 5))
