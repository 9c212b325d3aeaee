"""What a user can get wrong with data, and the optional libraries that reading it needs."""

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class DataError(ValueError):
    """Unusable images, labels, files or arguments; the message names the culprit and the way out."""


class MissingExtraError(DataError, ImportError):
    """An optional library is not installed; the message holds the `pip install` command."""


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, or raise `MissingExtraError` naming the extra of `lconvnet` that brings it.

    >>> require("json", "data").__name__
    'json'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(f"reading this data needs {module!r}: pip install 'lconvnet[{extra}]'") from error


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
