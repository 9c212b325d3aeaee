"""Optional libraries: each is imported on use, and if it is missing, the error names the command that installs it."""

import importlib
import warnings
from types import ModuleType


class MissingExtraError(ValueError, ImportError):
    """An optional library is not installed; the message holds the `pip install` command."""


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, or raise `MissingExtraError` with the extra of `lconvnet` that installs it.

    >>> require("json", "data").__name__
    'json'
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # from the library's own imports
            return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(f"this needs {module!r}: pip install 'lconvnet[{extra}]'") from error
