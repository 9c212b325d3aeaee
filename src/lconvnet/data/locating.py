"""Where the files of a named set or of the user's own data are."""

import os
from pathlib import Path

from lconvnet.data.errors import DataError, nearest
from lconvnet.data.hub import download

ENVIRONMENT = "LCONVNET_DATA"
_DIGITS = tuple("0123456789")
_CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_STL = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
NAMED = {  # name: (repository on the hub, classes); all three are published lossless
    "mnist": ("ylecun/mnist", _DIGITS),
    "cifar10": ("uoft-cs/cifar10", _CIFAR),
    "stl10": ("tanganke/stl10", _STL),
}
NAMES = ("digits", *NAMED)


def locate(name: str, directory: str | Path | None) -> Path:
    """Return where `name` is: a named set below `directory`, `LCONVNET_DATA` or from the hub; or a path.

    Raises `DataError` for what is nowhere, with the nearest known names.
    """
    if directory is not None and not Path(directory).is_dir():
        raise DataError(
            f"directory {str(directory)!r} (--data-dir) does not exist or is not a folder: correct it or drop it"
        )
    if name in NAMED:
        return _locate_named(name, directory)
    for path in (Path(name), Path(directory or ".", name), *_moved(name, directory)) if name else ():
        if path.is_dir() or (path.suffix == ".parquet" and path.is_file()):
            return path
    known = ", ".join(NAMES)
    kind = "is not a .parquet file" if Path(name).is_file() else "is neither a data set nor an existing path"
    raise DataError(f"data {name!r} {kind}; known names: {known}, or a folder or .parquet file{nearest(name, NAMES)}")


def _moved(name: str, directory: str | Path | None) -> tuple[Path, ...]:
    """Where a folder or file lies whose place has changed, but for its own name."""
    return (Path(directory, Path(name).name),) if directory is not None and Path(name).name else ()


def _locate_named(name: str, directory: str | Path | None) -> Path:
    if directory is not None:
        if Path(directory, name).is_dir():
            return Path(directory, name)
        found = ", ".join(sorted(path.name for path in Path(directory).iterdir())[:10]) or "nothing"
        raise DataError(
            f"directory {str(directory)!r} (--data-dir) has no folder {name!r}, only {found}: pass its parent"
        )
    root = os.environ.get(ENVIRONMENT, "")
    if root and not Path(root).is_dir():
        raise DataError(f"{ENVIRONMENT}={root!r} does not exist or is not a folder: correct it or unset it")
    if root and Path(root, name).is_dir():
        return Path(root, name)
    return download(name, NAMED[name][0])
