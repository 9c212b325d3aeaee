"""Checkpoints of TensorFlow's `Saver`, read without TensorFlow: plain data, of which nothing can run.

`NAME.index` is a table of sorted keys in blocks (LevelDB's format), whose values give the type, shape and place of each
variable; `NAME.data-0000I-of-0000N` holds the numbers, little-endian, one behind the other. Every length is checked
against the file before it is used.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lconvnet.data.tables import varint

MAGIC = 0xDB4775248B80FB57
FOOTER = 48  # bytes: two places of blocks, padding, the magic number
TRAILER = 5  # bytes behind a block: compression and checksum
MAXIMAL_INDEX = 16_000_000
FLOATS = {1: np.dtype("<f4"), 2: np.dtype("<f8")}
"""TensorFlow's number of a type -> the type; variables of others, such as step counters, are left out."""


class _Entry(NamedTuple):
    """What the index says of one variable."""

    kind: int
    shape: list[int]
    shard: int
    offset: int
    size: int


def read(index: Path) -> dict[str, Tensor]:
    """Return the floating-point variables of the checkpoint by name.

    Raises ValueError for a file that is missing, damaged, compressed, or no such index.
    """
    if not index.is_file():
        raise ValueError(f"{index} does not exist; name the .index file of a TensorFlow checkpoint")
    if index.stat().st_size > MAXIMAL_INDEX:
        raise ValueError(f"{index} has {index.stat().st_size} bytes; it is not an index of a TensorFlow checkpoint")
    try:
        values = dict(_values(index.read_bytes()))
        header = dict(_fields(values.pop("")))
        if header.get(2, 0) != 0:
            raise ValueError("big-endian data")
        entries = {name: _entry(value) for name, value in values.items()}
        suffix = f"-of-{_number(header.get(1, 1)):05d}"
        return {name: _tensor(index, entry, suffix) for name, entry in entries.items() if entry.kind in FLOATS}
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename} does not exist; copy all files of the checkpoint into one folder") from None
    except (IndexError, KeyError, struct.error, ValueError, OverflowError) as error:
        raise ValueError(
            f"{index} is damaged, or no index of a TensorFlow checkpoint ({type(error).__name__}); other files, "
            "pickles above all, are never loaded"
        ) from None


def _values(data: bytes) -> Iterator[tuple[str, bytes]]:
    """All keys with their values, block by block."""
    if len(data) < FOOTER or struct.unpack_from("<Q", data, len(data) - 8)[0] != MAGIC:
        raise ValueError("magic number")
    footer = io.BytesIO(data[-FOOTER:])
    _place(footer)  # of blocks with further information
    for _, handle in _block(data, *_place(footer)):
        for key, value in _block(data, *_place(io.BytesIO(handle))):
            yield key.decode("utf-8"), value


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a block; a key repeats the start of the one before."""
    if offset + size + TRAILER > len(data) or data[offset + size] != 0:
        raise ValueError("block that is cut off or compressed")
    block = io.BytesIO(data[offset : offset + size])
    (restarts,) = struct.unpack_from("<I", block.getbuffer(), size - 4)
    key = b""
    while block.tell() < size - 4 - 4 * restarts:
        shared, fresh, length = varint(block), varint(block), varint(block)
        key = key[:shared] + block.read(fresh)
        yield key, block.read(length)


def _place(data: io.BytesIO) -> tuple[int, int]:
    """Offset and size of a block."""
    return varint(data), varint(data)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of a protocol buffer's fields."""
    data = io.BytesIO(message)
    while data.tell() < len(message):
        tag = varint(data)
        kind = tag & 7
        if kind not in (0, 1, 2, 5):
            raise ValueError("field of an unknown kind")
        yield tag >> 3, varint(data) if kind == 0 else data.read({1: 8, 5: 4}.get(kind) or varint(data))


def _entry(value: bytes) -> _Entry:
    fields = list(_fields(value))
    found = {key: content for key, content in fields if isinstance(content, int)}
    shapes = [content for key, content in fields if key == 2 and isinstance(content, bytes)]
    dims = [inner for shape in shapes for key, inner in _fields(shape) if key == 2 and isinstance(inner, bytes)]
    shape = [_number(dict(_fields(dim)).get(1, 0)) for dim in dims]
    return _Entry(found.get(1, 0), shape, found.get(3, 0), found.get(4, 0), found.get(5, 0))


def _number(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("bytes in place of a number")
    return value


def _tensor(index: Path, entry: _Entry, suffix: str) -> Tensor:
    path, kind, count = index.with_suffix(f".data-{entry.shard:05d}{suffix}"), FLOATS[entry.kind], prod(entry.shape)
    if entry.size != count * kind.itemsize or entry.offset + entry.size > path.stat().st_size:
        raise ValueError("variable that is longer than its file or than its shape")
    return torch.from_numpy(np.fromfile(path, kind, count, offset=entry.offset).reshape(entry.shape).copy())
