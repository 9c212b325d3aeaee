"""Encoded images (bytes or files) to one uint8 tensor, with nothing guessed: what does not fit is named."""

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
from lconvnet.data.errors import DataError
from lconvnet.extras import require

_GREY, _COLOUR = (
    ("1", "L", "LA"),
    ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "La", "RGBa", "LAB", "HSV"),
)
_ORIENTATION = 0x0112  # EXIF tag: how the camera was held
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # no others: reading some starts other programs
EACH = 12  # bytes a pixel takes while it is decoded: four channels, in three copies


@dataclass(frozen=True)
class Shape:
    """Channels and size that every image must have, what set them, and how all may be resized, if they may."""

    channels: int
    height: int
    width: int
    origin: str
    resizing: str = (
        ", or pass image_size=(height, width), in a configuration data.image_size (--set data.image_size=SIDE), to "
        "resize all"
    )


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
    """Decode `cells` (encoded bytes or paths); `origins[i]` is what an error calls image i.

    All images must share one size and one number of channels (that of `shape` when given, else of the first
    image). `image_size=(height, width)` scales and centre-crops instead, `channels=1|3` converts instead.
    Cameras' EXIF rotation is applied. Raises `DataError` for unreadable, 16-bit, transparent, oversized,
    moving or ill-fitting images and for those of several pages, naming them.
    """
    jpeg = 0
    pixels = np.empty(0, dtype=np.uint8)
    pil, ops = require("PIL.Image", "data"), require("PIL.ImageOps", "data")
    for i, (cell, origin) in enumerate(zip(cells, origins, strict=True)):
        with warnings.catch_warnings(action="ignore"):  # of Pillow: what matters is refused here
            image, lossy = _open(pil, ops, cell, origin)
            image = _fit(ops, _convert(image, channels, origin), image_size)
        jpeg += lossy
        found = Shape(len(image.getbands()), image.height, image.width, origin)
        shape = shape or found
        _check(found, shape)
        if i == 0:
            if image_size is None:
                held, size = len(cells) * shape.height * shape.width * shape.channels, sum(map(_size, cells))
                allowance.require(held, size, f"{len(cells)} images such as {origin}", DataError)
            pixels = _allocate(len(cells), shape)
        pixels[i] = np.frombuffer(image.tobytes(), dtype=np.uint8).reshape(pixels.shape[1:])
    if shape is None:
        raise DataError("there is no image to decode: give at least one")
    return Decoded(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), shape, jpeg)


def _size(cell: bytes | Path) -> int:
    return len(cell) if isinstance(cell, bytes) else cell.stat().st_size


def _allocate(count: int, shape: Shape) -> np.ndarray:
    try:
        return np.empty((count, shape.height, shape.width, shape.channels), dtype=np.uint8)
    except MemoryError as error:
        size = f"{count} images of {shape.height}x{shape.width}"
        raise DataError(f"{size} do not fit in memory: pass a smaller image_size=(height, width)") from error


def _open(pil: Any, ops: Any, cell: bytes | Path, origin: str) -> tuple[Any, bool]:
    """Return the loaded upright image and whether it was a JPEG."""
    try:
        content = cell if isinstance(cell, bytes) else cell.read_bytes()
        image = pil.open(io.BytesIO(content), formats=FORMATS)
        what = f"{origin} with {image.height}x{image.width} pixels"
        allowance.require(EACH * image.width * image.height, len(content), what, DataError)
        _refuse_lost(image, origin)
        image.load()
        lossy = image.format in ("JPEG", "MPO")
        if image.getexif().get(_ORIENTATION, 1) != 1:
            image = ops.exif_transpose(image)
    except DataError:
        raise
    except pil.UnidentifiedImageError as error:
        raise DataError(f"{origin} is not a readable image, none of {', '.join(FORMATS)}: convert it") from error
    except Exception as error:  # decoders of broken files raise nearly anything
        raise DataError(f"{origin} is not a readable image ({error}): repair or remove it") from error
    return image, lossy


def _refuse_lost(image: Any, origin: str) -> None:
    """Refuse what Pillow would leave out: the lower bits of 16-bit colour, and all frames or pages but the first.

    A camera's second frame (MPO) is a small copy of the first, or a view from beside it.
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
    wanted = channels or (1 if image.mode in _GREY else 3)
    alpha = "transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "La", "RGBa")
    image = image.convert("RGBA") if alpha else image
    if alpha and image.getchannel("A").getextrema()[0] < 255:
        raise DataError(f"{origin} has transparent pixels: flatten it on a background")
    mode = "L" if wanted == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _fit(ops: Any, image: Any, image_size: tuple[int, int] | None) -> Any:
    if image_size is None or (image.height, image.width) == image_size:
        return image
    return ops.fit(image, image_size[::-1])


def _check(found: Shape, shape: Shape) -> None:
    if (found.height, found.width) != (shape.height, shape.width):
        sizes = f"is {found.height}x{found.width}, but {shape.origin} is {shape.height}x{shape.width}"
        raise DataError(f"{found.origin} {sizes} (height x width): resize it{shape.resizing}")
    if found.channels != shape.channels:
        kinds = {1: "grey", 3: "colour"}
        mixed = f"is {kinds[found.channels]}, but {shape.origin} is {kinds[shape.channels]}"
        raise DataError(
            f"{found.origin} {mixed}: pass channels=1 or channels=3, in a "
            "configuration data.channels (--set data.channels=3), to convert all"
        )
