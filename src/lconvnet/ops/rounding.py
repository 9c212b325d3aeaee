"""Outward rounding for bounds that are computed in float64.

Every upper bound of this package is the exact value of a formula plus what rounding can have taken away from
it. The tools are Higham's constant for ``n`` rounded operations,

    g(n) = n u / (1 - n u),        u = 2^-53  (float64),

and single steps to the neighbouring float. Reference: Higham, *Accuracy and Stability of Numerical
Algorithms* (2002), lemma 3.1.
"""

import math
from collections.abc import Iterable
from decimal import ROUND_CEILING, Decimal
from fractions import Fraction

UNIT_ROUNDOFF = 2.0**-53
"""Half the distance from 1 to the next float64."""


def gamma(operations: float, unit: float = UNIT_ROUNDOFF) -> float:
    """Relative error that ``operations`` roundings can add up to: ``n u / (1 - n u)``, by default in float64.

    Raises ``ValueError`` where the estimate no longer holds (``n u >= 1/2``).

    >>> gamma(1000) < 1.2e-13
    True
    """
    product = operations * unit
    if not 0 <= product < 0.5:
        raise ValueError(
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


def rounded_up(value: float, digits: int) -> str:
    """A float in decimal, rounded upward, so that a printed upper bound is still one.

    >>> rounded_up(1.0000001, 6), rounded_up(1.0, 6)
    ('1.000001', '1.000000')
    """
    if not math.isfinite(value):
        return str(value)
    return str(Decimal(value).quantize(Decimal(1).scaleb(-digits), rounding=ROUND_CEILING))


def product_up(factors: Iterable[float]) -> float:
    """An upper bound of the product of non-negative floats: every inexact multiplication is rounded upward.

    A zero factor gives zero (the map is constant), also beside an infinite one.

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
    """An upper bound of the quotient of two non-negative floats; infinite where the denominator is zero.

    >>> quotient_up(1.0, 4.0), quotient_up(1.0, 3.0) * 3 >= 1
    (0.25, True)
    """
    if denominator == 0 or math.isinf(numerator):
        return math.inf
    quotient = numerator / denominator
    exact = math.isinf(quotient) or Fraction(quotient) * Fraction(denominator) >= Fraction(numerator)
    return quotient if exact else up(quotient)


def root_up(square: Fraction | int) -> float:
    """The square root of a rational number, rounded upward: exact where it is a float.

    >>> root_up(Fraction(9, 4)), Fraction(root_up(2)) ** 2 >= 2
    (1.5, True)
    """
    shift = (square.numerator.bit_length() - square.denominator.bit_length()) // 2  # keeps the float near 1
    scaled = Fraction(square) / Fraction(4) ** shift
    root = math.sqrt(scaled)
    while Fraction(root) ** 2 < scaled:
        root = up(root)
    return math.ldexp(root, shift) if shift > -1000 else up(math.ldexp(root, shift))
