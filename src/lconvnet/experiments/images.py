"""A user's image files as one float tensor for a network: encoded images, or `.npy` arrays of floats in [0,
1]."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lconvnet.data.decoding import Shape, decode, read_npy


def read_images(paths: Sequence[str | Path], shape: tuple[int, ...]) -> Tensor:
    """Return float32 images (N, C, H, W) in [0, 1], each of the network's shape (C, H, W).

    Grey and colour are converted to the network's channels; a size is never changed, because the certificate
    holds for the pixels the network sees. Raises ValueError for a file that is missing, unreadable, of
    another size, or an array with NaN or values outside [0, 1].
    """
    return torch.cat([_read(Path(path), shape) for path in paths])


def _read(path: Path, shape: tuple[int, ...]) -> Tensor:
    if path.is_dir():
        raise ValueError(f"image {str(path)!r} is a folder; name its files, or the folder with --data")
    if not path.is_file():
        raise ValueError(f"image {str(path)!r} does not exist; name a png, jpg or npy file")
    if path.suffix == ".npy":
        return _read_array(path, shape)[None]
    if len(shape) != 3:
        raise ValueError(f"image {str(path)!r} is a picture; the network takes inputs of shape {shape}, as npy files")
    expected = Shape(*shape, origin="the network", resizing="")
    return decode([path], [str(path)], channels=shape[0], shape=expected).images.float() / 255


def _read_array(path: Path, shape: tuple[int, ...]) -> Tensor:
    array = read_npy(path)
    if array.shape != shape or array.dtype.kind != "f":
        raise ValueError(
            f"image {str(path)!r} is {array.dtype} of shape {array.shape}; the network takes floats of shape {shape}"
        )
    values = torch.from_numpy(array.astype(np.float32))
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError(f"image {str(path)!r} has NaN or values outside [0, 1]; scale the pixels to [0, 1]")
    return values
