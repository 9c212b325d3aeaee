"""Outward rounding: never on the wrong side, checked in exact arithmetic."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lconvnet.ops.rounding import (
    decimals,
    down,
    gamma,
    percent_down,
    percent_up,
    product_up,
    rounded_down,
    rounded_up,
    up,
)


@given(st.lists(st.floats(0.01, 100), max_size=8))
def test_product_is_never_below_the_exact_one_and_close(factors):
    exact = math.prod(map(Fraction, factors), start=Fraction(1))
    assert exact <= Fraction(product_up(factors)) <= exact * (1 + Fraction(1, 2**48))


def test_factors_of_one_cost_nothing_and_zero_wins():
    assert product_up([1.0, 1.0, 1.0000001, 1.0]) == 1.0000001
    assert product_up([math.inf, 0.0]) == 0.0
    assert product_up([]) == 1.0


def test_gamma_is_above_its_formula():
    u = Fraction(1, 2**53)
    for n in (1, 3, 1000, 2**40):
        assert Fraction(gamma(n)) >= n * u / (1 - n * u)
    with pytest.raises(ValueError, match=r"operations=.*split the matrix"):
        gamma(2**53)


def test_up_and_down_are_neighbours():
    assert down(up(0.1)) == 0.1
    assert down(0.1) < 0.1 < up(0.1)


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 12))
def test_printed_ends_enclose_the_number_and_are_near(value, digits):
    """In exact arithmetic, over all floats, the subnormal and the huge ones too."""
    low, high = (Fraction(rounded(value, digits)) for rounded in (rounded_down, rounded_up))
    assert low <= Fraction(value) <= high <= low + Fraction(1, 10**digits)
    assert all(len(rounded(value, digits).partition(".")[2]) == digits for rounded in (rounded_down, rounded_up))


@given(st.integers(1, 100_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_percentages_of_counts_enclose_the_exact_one(counted):
    """Of k / n itself, not of the float beside it; where the percentage has two decimals it is the exact one."""
    exact = Fraction(100 * counted[0], counted[1])
    low, high = (Fraction(show(counted[0] / counted[1]).removesuffix("%")) for show in (percent_down, percent_up))
    assert low <= exact <= high
    assert high - low == (0 if (exact * 100).denominator == 1 else Fraction(1, 100))


@given(st.floats(1e-12, 1e12), st.integers(1, 9))
def test_decimals_show_the_digits_that_are_asked_for(value, digits):
    shown = rounded_down(value, decimals(value, digits))
    assert len(shown.replace(".", "").lstrip("0")) >= digits
    assert decimals(0.0, 3) == 2


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_no_number_is_printed_as_it_is(value):
    assert rounded_down(value, 3) == rounded_up(value, 3) == str(value)
