"""Optional libraries: imported where they are used, and missed with the command that installs them."""

import importlib
import warnings
from types import ModuleType


class MissingExtraError(ValueError, ImportError):
    """An optional library is not installed; the message holds the `pip install` command."""


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, or raise `MissingExtraError` naming the extra of `lconvnet` that brings it.

    >>> require("json", "data").__name__
    'json'
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of what the library itself imports
            return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(f"this needs {module!r}: pip install 'lconvnet[{extra}]'") from error
