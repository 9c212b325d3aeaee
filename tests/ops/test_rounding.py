"""Outward rounding: never on the wrong side, checked in exact arithmetic."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lconvnet.ops.rounding import down, gamma, product_up, up


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
