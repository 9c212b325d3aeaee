"""Outward rounding for bounds that are computed in float64.

Every upper bound of this package covers the exact value of a formula: it adds the most that rounding can have lost. The
tools are Higham's constant for ``n`` rounded operations,

    g(n) = n u / (1 - n u),        u = 2^-53  (float64),

and single steps to the neighbouring float. Reference: Higham, *Accuracy and Stability of Numerical
Algorithms* (2002), lemma 3.1.
"""

import math
from collections.abc import Iterable
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from fractions import Fraction
from numbers import Integral

UNIT_ROUNDOFF = 2.0**-53
"""Half the distance from 1 to the next float64."""

LONGEST = 800
"""More digits than any float64 has before and after the point together."""


class TooManyError(ValueError):
    """More rounded operations than the analysis covers."""


def gamma(operations: float, unit: float = UNIT_ROUNDOFF) -> float:
    """Relative error that ``operations`` roundings can add up to: ``n u / (1 - n u)``, by default in float64.

    Raises `TooManyError` if the estimate does not hold (``n u >= 1/2``).

    >>> gamma(1000) < 1.2e-13
    True
    """
    product = operations * unit
    if not 0 <= product < 0.5:
        raise TooManyError(
            f"operations={operations!r}: the rounding analysis holds for 0 <= operations < {0.5 / unit:.0f}; split the "
            "matrix"
        )
    return product / (1 - product) * (1 + 4 * UNIT_ROUNDOFF)


def up(value: float) -> float:
    """The next float64 above ``value``.

    >>> up(1.0) > 1.0
    True
    """
    return math.nextafter(value, math.inf)


def down(value: float) -> float:
    """The next float64 below ``value``.

    >>> down(1.0) < 1.0
    True
    """
    return math.nextafter(value, -math.inf)


def float_up(value: int | float | Fraction) -> float:
    """The least float64 that is not below a non-negative number: an integer (also of NumPy), a float or a fraction.

    >>> float_up(2**53 + 1) - 2**53, float_up(Fraction(1, 2)), float_up(10**400)
    (2.0, 0.5, inf)
    """
    exact = int(value) if isinstance(value, Integral) else value  # NumPy compares its integers as floats
    try:
        nearest = float(exact)
    except OverflowError:
        return math.inf
    return up(nearest) if nearest < exact else nearest


def rounded_up(value: float | Decimal, digits: int) -> str:
    """A number with `digits` decimals, rounded upward, so that a printed upper bound stays an upper bound.

    >>> rounded_up(1.0000001, 6), rounded_up(1.0, 6)
    ('1.000001', '1.000000')
    """
    return _rounded(value, digits, ROUND_CEILING)


def rounded_down(value: float | Decimal, digits: int) -> str:
    """A number with `digits` decimals, rounded downward, so that a printed radius or lower bound stays valid.

    >>> rounded_down(0.12349, 3), rounded_down(-0.5, 0)
    ('0.123', '-1')
    """
    return _rounded(value, digits, ROUND_FLOOR)


def _rounded(value: float | Decimal, digits: int, rounding: str) -> str:
    if not math.isfinite(value):
        return str(value)
    exact = Decimal(value).quantize(Decimal(1).scaleb(-digits), rounding, Context(prec=LONGEST))
    return format(exact, "f")


def percent_down(fraction: float) -> str:
    """A proven fraction of images as a percentage, rounded downward.

    The shortest decimal of the float is rounded, so 57 of 100 images are 57 % although the nearest float is below 0.57.

    >>> percent_down(0.57), percent_down(2 / 3)
    ('57.00%', '66.66%')
    """
    return f"{rounded_down(decimal(fraction) * 100, 2)}%"


def percent_up(fraction: float) -> str:
    """A fraction as a percentage, rounded upward: for accuracy under attack, an upper bound on robust accuracy.

    >>> percent_up(0.57), percent_up(2 / 3)
    ('57.00%', '66.67%')
    """
    return f"{rounded_up(decimal(fraction) * 100, 2)}%"


def decimal(value: float) -> Decimal:
    """The shortest decimal number that parses to this float.

    >>> decimal(0.1)
    Decimal('0.1')
    """
    return Decimal(repr(float(value)))


def decimals(value: float, digits: int = 6) -> int:
    """The number of decimals that shows `digits` significant digits of a number; 0 for a large one.

    >>> decimals(0.001234), decimals(1.5), decimals(1e9)
    (8, 5, 0)
    """
    exponent = Decimal(value).adjusted() if value and math.isfinite(value) else 0
    return max(0, digits - 1 - exponent)


def product_up(factors: Iterable[float]) -> float:
    """An upper bound of the product of non-negative floats: every inexact multiplication is rounded upward.

    A zero factor gives zero, even beside an infinite one: the map is constant.

    >>> product_up([2.0, 0.5, 3.0])
    3.0
    """
    values = list(factors)
    if any(value == 0 for value in values):
        return 0.0
    result = 1.0
    for value in values:
        product = result * value
        exact = math.isinf(product) or Fraction(product) >= Fraction(result) * Fraction(value)
        result = product if exact else up(product)
    return result


def sum_up(terms: Iterable[float]) -> float:
    """An upper bound of the sum of non-negative floats: every inexact addition is rounded upward.

    >>> sum_up([0.5, 0.25])
    0.75
    """
    result = 0.0
    for term in terms:
        total = result + term
        exact = math.isinf(total) or Fraction(total) >= Fraction(result) + Fraction(term)
        result = total if exact else up(total)
    return result


def quotient_up(numerator: float, denominator: float) -> float:
    """An upper bound of the quotient of two non-negative floats; infinite if the denominator is zero.

    >>> quotient_up(1.0, 4.0), quotient_up(1.0, 3.0) * 3 >= 1
    (0.25, True)
    """
    if denominator == 0 or math.isinf(numerator):
        return math.inf
    quotient = numerator / denominator
    exact = math.isinf(quotient) or Fraction(quotient) * Fraction(denominator) >= Fraction(numerator)
    return quotient if exact else up(quotient)


def root_up(square: Fraction | int) -> float:
    """The square root of a rational number, rounded upward; exact if it is a float.

    >>> root_up(Fraction(9, 4)), Fraction(root_up(2)) ** 2 >= 2
    (1.5, True)
    """
    shift = (square.numerator.bit_length() - square.denominator.bit_length()) // 2  # keeps the float near 1
    scaled = Fraction(square) / Fraction(4) ** shift
    root = math.sqrt(scaled)
    while Fraction(root) ** 2 < scaled:
        root = up(root)
    return math.ldexp(root, shift) if shift > -1000 else up(math.ldexp(root, shift))
