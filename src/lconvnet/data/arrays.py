"""NumPy files, read without pickles and without believing their headers."""

from pathlib import Path

import numpy as np

from lconvnet.data.errors import DataError


def read_npy(path: Path) -> np.ndarray:
    """Return the numbers of a `.npy` file, a writable copy in the machine's byte order.

    The file is mapped first, so that a shape larger than the file is an error and takes no memory. Raises `DataError`
    for archives, pickled objects, truncated files, and anything but truth values, integers and floats of 64 bits at
    most.
    """
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # of headers that are not, NumPy raises nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DataError(f"{path} is not a readable .npy file ({reason}): save one numeric array with np.save") from None
    if not isinstance(values, np.ndarray):
        values.close()
        raise DataError(f"{path} holds an archive, not one array of numbers: save one array with np.save")
    if values.dtype.kind not in "fiub" or values.dtype.itemsize > 8:
        raise DataError(f"{path} holds {values.dtype}, not one array of numbers: convert it")
    return np.array(values, dtype=values.dtype.newbyteorder("="))
