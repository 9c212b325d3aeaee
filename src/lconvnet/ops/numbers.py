"""Types of the numbers that options take. A configuration is checked against them; Python callers are not."""

import re
from fractions import Fraction as Exact
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

QUOTIENT = re.compile(r"([-+]?[0-9]{1,40}(?:\.[0-9]{1,40})?) ?/ ?([0-9]{1,40}(?:\.[0-9]{1,40})?)")


def quotient(value: Any) -> Any:
    """Return the float nearest to a fraction, and anything else unchanged. Raises ValueError for a division by zero.

    >>> quotient("36/255"), quotient("a/b"), quotient(2)
    (0.1411764705882353, 'a/b', 2)
    """
    found = QUOTIENT.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return value
    if not (divisor := Exact(found[2])):
        raise ValueError(f"{value!r} divides by zero")
    return float(Exact(found[1]) / divisor)


Number = Annotated[float, BeforeValidator(quotient)]
"""A float, or in a configuration a fraction such as `36/255`."""

PositiveInt = Annotated[int, Field(ge=1, lt=2**31)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[Number, Field(gt=0)]
NonNegativeFloat = Annotated[Number, Field(ge=0)]
OpenFraction = Annotated[Number, Field(gt=0, lt=1)]
Fraction = Annotated[Number, Field(ge=0, lt=1)]
