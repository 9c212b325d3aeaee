"""The arguments of `load`, checked once."""

from dataclasses import dataclass
from typing import Any

from lconvnet.data.errors import DataError


@dataclass(frozen=True)
class Options:
    """How to decode and split; fields as in `load`, `image_size` as (height, width)."""

    validation: int | float | None
    test: int | float | None
    seed: int
    image_size: tuple[int, int] | None
    channels: int | None
    limit: int | None


def checked(
    *,
    validation: int | float | None,
    test: int | float | None,
    seed: int,
    image_size: int | tuple[int, int] | None,
    channels: int | None,
    limit: int | None,
) -> Options:
    """Return the arguments of `load` as `Options`; raises `DataError` naming the first unusable one.

    >>> checked(validation=None, test=None, seed=0, image_size=32, channels=None, limit=None).image_size
    (32, 32)
    """
    if not _whole(seed, 0, 2**63 - 1):
        raise DataError(f"seed must be an integer of at least 0, got {seed!r}")
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if size is not None and not (
        isinstance(size, tuple | list) and len(size) == 2 and all(_whole(n, 1, 4096) for n in size)
    ):
        raise DataError(f"image_size must be one number or (height, width), each in 1..4096, got {image_size!r}")
    if channels is not None and not (_whole(channels, 1, 3) and channels != 2):
        raise DataError(f"channels must be 1 (grey) or 3 (colour), got {channels!r}")
    if limit is not None and not _whole(limit, 1, 2**63 - 1):
        raise DataError(f"limit must be a number of images of at least 1, got {limit!r}")
    return Options(validation, test, seed, None if size is None else (size[0], size[1]), channels, limit)


def _whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
