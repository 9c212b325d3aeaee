"""Single values as people write them, read alike in files, in `--set key=value` and in options.

A plain value is null (or ~, or nothing), true or false, a whole number without leading zeros, or a decimal number
(`.nan` and `.inf` with them, which nearly every key refuses); whatever else is text. So `0123`, `1_000`, `0x10`,
`1:30`, `on` and dates are text, as they stand. Where a number that need not be whole is meant, a fraction of two
decimal numbers is one too: `36/255`.
"""

import math
import re

from lconvnet.ops.numbers import quotient

WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **{".nan": math.nan, ".inf": math.inf, "-.inf": -math.inf},
}
WHOLE = r"(?:0|[1-9][0-9]*)"
INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,99})")
DECIMAL = re.compile(rf"[-+]?(?:{WHOLE}(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")


def plain(text: str) -> bool | int | float | str | None:
    """Return what an unquoted text stands for.

    >>> [plain(text) for text in ("1e-3", "7", "true", "~", "0123", "cells #2")]
    [0.001, 7, True, None, '0123', 'cells #2']
    """
    if text in WORDS:
        return WORDS[text]
    if INTEGER.fullmatch(text):
        return int(text)
    return float(text) if DECIMAL.fullmatch(text) else text


def number(text: str) -> float:
    """Return the number that an option is given as; ValueError for what is not one.

    >>> number("36/255"), number("1")
    (0.1411764705882353, 1.0)
    """
    value = quotient(plain(text.strip()))
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
        raise ValueError(f"{text!r} is not a finite number; write it as 0.5, 1e-3 or 36/255")
    return float(value)


def short(value: object) -> str:
    """Return a value as it is written, cut off where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
