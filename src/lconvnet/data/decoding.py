"""Encoded images (bytes or files) to one uint8 tensor, and `.npy` files to arrays; nothing is guessed or trusted."""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lconvnet import allowance
from lconvnet.data.sets import DataError
from lconvnet.extras import require

_GREY = ("1", "L", "LA")
_COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "La", "RGBa", "LAB", "HSV")
_ORIENTATION = 0x0112  # EXIF tag: how the camera was held
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # no others, because reading some starts other programs
_PER_PIXEL = 12  # bytes during decoding: four channels, in three copies
_RESIZING = (
    ", or pass image_size=(height, width), in a configuration data.image_size (--set data.image_size=SIDE), to resize "
    "all"
)


@dataclass(frozen=True)
class Shape:
    """Channels and size that every image must have, what set them, and the hint on how to resize all images."""

    channels: int
    height: int
    width: int
    origin: str
    resizing: str = _RESIZING


@dataclass(frozen=True, eq=False)
class Decoded:
    """uint8 images `(N, C, H, W)`, their shape, and how many of them were stored as JPEG (lossy)."""

    images: Tensor
    shape: Shape
    jpeg: int


def decode(
    cells: Sequence[bytes | Path],
    origins: Sequence[str],
    *,
    image_size: tuple[int, int] | None = None,
    channels: int | None = None,
    shape: Shape | None = None,
) -> Decoded:
    """Decode `cells` (encoded bytes or paths); errors call image i `origins[i]`.

    All images must have one size and one number of channels: those of `shape` if given, else those of the first image.
    `image_size=(height, width)` scales and centre-crops instead, `channels=1|3` converts instead. The EXIF rotation of
    cameras is applied. Raises `DataError`, which names the image, for unreadable, 16-bit, transparent, oversized,
    moving, many-paged or ill-fitting images.
    """
    jpeg = 0
    pixels = np.empty(0, dtype=np.uint8)
    pil, ops = require("PIL.Image", "data"), require("PIL.ImageOps", "data")
    for i, (cell, origin) in enumerate(zip(cells, origins, strict=True)):
        with warnings.catch_warnings(action="ignore"):  # Pillow's own; real faults are refused here
            image, lossy = _open(pil, ops, cell, origin)
            image = _convert(image, channels, origin)
            if image_size and (image.height, image.width) != image_size:
                image = ops.fit(image, image_size[::-1])
        jpeg += lossy
        found = Shape(len(image.getbands()), image.height, image.width, origin)
        shape = shape or found
        _require_fit(found, shape)
        if i == 0:
            pixels = _allocate(cells, shape, origin, counted=image_size is None)
        pixels[i] = np.frombuffer(image.tobytes(), dtype=np.uint8).reshape(pixels.shape[1:])
    if shape is None:
        raise DataError("there is no image to decode: give at least one")
    return Decoded(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), shape, jpeg)


def read_npy(path: Path) -> np.ndarray:
    """Return the numbers of a `.npy` file as a writable copy in the machine's byte order.

    The file is mapped first, so that a shape larger than the file is an error and takes no memory. Raises `DataError`
    for archives, pickled objects, truncated files, and any type other than truth values, integers and floats of at most
    64 bits.
    """
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy raises nearly anything for a broken header
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DataError(f"{path} is not a readable .npy file ({reason}): save one numeric array with np.save") from None
    if not isinstance(values, np.ndarray):
        values.close()
        raise DataError(f"{path} holds an archive, not one array of numbers: save one array with np.save")
    if values.dtype.kind not in "fiub" or values.dtype.itemsize > 8:
        raise DataError(f"{path} holds {values.dtype}, not one array of numbers: convert it")
    return np.array(values, dtype=values.dtype.newbyteorder("="))


def _allocate(cells: Sequence[bytes | Path], shape: Shape, origin: str, *, counted: bool) -> np.ndarray:
    """Make room for all images. If the files themselves set the size, it is `counted` against their bytes."""
    full = (len(cells), shape.height, shape.width, shape.channels)
    if counted:
        size = sum(len(cell) if isinstance(cell, bytes) else cell.stat().st_size for cell in cells)
        allowance.require(int(np.prod(full)), size, f"{len(cells)} images such as {origin}", DataError)
    try:
        return np.empty(full, dtype=np.uint8)
    except MemoryError as error:
        size = f"{len(cells)} images of {shape.height}x{shape.width}"
        raise DataError(f"{size} do not fit in memory: pass a smaller image_size=(height, width)") from error


def _open(pil: Any, ops: Any, cell: bytes | Path, origin: str) -> tuple[Any, bool]:
    """Return the loaded upright image and whether it was a JPEG."""
    try:
        content = cell if isinstance(cell, bytes) else cell.read_bytes()
        image = pil.open(io.BytesIO(content), formats=FORMATS)
        what = f"{origin} with {image.height}x{image.width} pixels"
        allowance.require(_PER_PIXEL * image.width * image.height, len(content), what, DataError)
        _refuse_lost(image, origin)
        image.load()
        lossy = image.format in ("JPEG", "MPO")
        if image.getexif().get(_ORIENTATION, 1) != 1:
            image = ops.exif_transpose(image)
    except DataError:
        raise
    except pil.UnidentifiedImageError as error:
        raise DataError(f"{origin} is not a readable image, none of {', '.join(FORMATS)}: convert it") from error
    except Exception as error:  # decoders raise nearly anything for broken files
        raise DataError(f"{origin} is not a readable image ({error}): repair or remove it") from error
    return image, lossy


def _refuse_lost(image: Any, origin: str) -> None:
    """Refuse images that Pillow would cut: to 8 of 16 bits of colour, or to the first of several frames or pages.

    MPO files are accepted: a camera's second frame is a small copy of the first, or a view from beside it.
    """
    for _, _, _, stored in image.tile:
        parts: tuple[Any, ...] = (stored,) if isinstance(stored, str) else tuple(stored or ())
        deep = image.format == "PPM" and any(isinstance(part, int) and part > 255 for part in parts)
        if deep or any(";16" in str(part) for part in parts):
            raise DataError(f"{origin} has 16 bits a channel, not 8-bit grey or colour: convert it to 8 bits")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise DataError(f"{origin} has {frames} frames or pages, an example is one: write each to a file of its own")


def _convert(image: Any, channels: int | None, origin: str) -> Any:
    if image.mode not in _GREY + _COLOUR:
        raise DataError(f"{origin} has pixels of mode {image.mode!r}, not 8-bit grey or colour: convert it to 8 bits")
    mode = "L" if (channels or (1 if image.mode in _GREY else 3)) == 1 else "RGB"
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] < 255:
            raise DataError(f"{origin} has transparent pixels: flatten it on a background")
    return image if image.mode == mode else image.convert(mode)


def _require_fit(found: Shape, shape: Shape) -> None:
    if (found.height, found.width) != (shape.height, shape.width):
        sizes = f"is {found.height}x{found.width}, but {shape.origin} is {shape.height}x{shape.width}"
        raise DataError(f"{found.origin} {sizes} (height x width): resize it{shape.resizing}")
    if found.channels != shape.channels:
        kinds = {1: "grey", 3: "colour"}
        mixed = f"is {kinds[found.channels]}, but {shape.origin} is {kinds[shape.channels]}"
        way = "in a configuration data.channels (--set data.channels=3), to convert all"
        raise DataError(f"{found.origin} {mixed}: pass channels=1 or channels=3, {way}")
