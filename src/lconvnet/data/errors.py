"""What a user can get wrong with data."""

import difflib
from collections.abc import Iterable


class DataError(ValueError):
    """Unusable images, labels, files or arguments; the message names the culprit and the way out."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the nearest known words, or `""` where none is near.

    >>> nearest("mnits", ["mnist", "cifar10"])
    "; did you mean 'mnist'?"
    >>> nearest("qqq", ["mnist"])
    ''
    """
    lowered = {item.lower(): item for item in known}
    close = [lowered[key] for key in difflib.get_close_matches(word.lower(), lowered, n=2, cutoff=0.5)]
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
