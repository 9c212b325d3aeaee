"""How much memory reading a file may take, checked before anything is allocated.

A file of a few bytes can ask for gigabytes: through values that repeat, sizes that it declares, or tensors that it
enlarges. The limit is the larger of `BYTES` and `TIMES` the size of the file, so large files keep the room they need.
For files that you trust, the environment variable LCONVNET_MEMORY replaces `BYTES`, such as LCONVNET_MEMORY=16GB.
"""

import os
import re

BYTES = 2**29
TIMES = 64
ENVIRONMENT = "LCONVNET_MEMORY"
UNITS = {"MB": 10**6, "GB": 10**9}


def allowed(size: int) -> int:
    """Return how many bytes of memory a file of `size` bytes may take.

    >>> allowed(100) == BYTES, allowed(10**9) == TIMES * 10**9
    (True, True)
    """
    return max(_least(), TIMES * size)


def require(needed: int, size: int, what: str, error: type[ValueError] = ValueError) -> None:
    """Raise `error` if something from a file of `size` bytes would take more memory than is allowed."""
    if needed > (limit := allowed(size)):
        raise error(
            f"{what} would take {_short(needed)} of memory, more than the {_short(limit)} that {size} bytes may cause; "
            f"if you trust the file, set {ENVIRONMENT}={-(-needed // 10**9)}GB"
        )


def _least() -> int:
    text = os.environ.get(ENVIRONMENT, "")
    found = re.fullmatch(r"([0-9]{1,9})(MB|GB)", text)
    if text and not found:
        raise ValueError(f"{ENVIRONMENT}={text!r} is not an amount of memory; write it as 500MB or 16GB")
    return int(found[1]) * UNITS[found[2]] if found else BYTES


def _short(count: int) -> str:
    return f"{count / 10**9:.3g} GB" if count >= 10**9 else f"{count / 10**6:.3g} MB"
