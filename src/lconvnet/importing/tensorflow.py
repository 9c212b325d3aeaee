"""Checkpoints of TensorFlow's `Saver`, read without TensorFlow: plain data, of which nothing can run.

`NAME.index` is a table of sorted keys in blocks (LevelDB's format) whose values say of each variable its type, shape
and place; `NAME.data-0000I-of-0000N` holds the numbers, little-endian, one behind the other. Every length is checked
against the file before it is used.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

MAGIC = 0xDB4775248B80FB57
FOOTER = 48  # bytes: two places of blocks, padding, the magic number
TRAILER = 5  # bytes behind a block: compression and checksum
MAXIMAL_INDEX = 16_000_000
FLOATS = {1: np.dtype("<f4"), 2: np.dtype("<f8")}
"""TensorFlow's number of a type -> the type; variables of others, such as step counters, are left out."""


@dataclass
class _Entry:
    """What the index says of one variable."""

    kind: int = 0
    shape: list[int] = field(default_factory=list)
    shard: int = 0
    offset: int = 0
    size: int = 0


def read(index: Path) -> dict[str, Tensor]:
    """Return the floating-point variables of the checkpoint by name.

    Raises ValueError for a file that is missing, damaged, compressed, or no such index.
    """
    if not index.is_file():
        raise ValueError(f"{index} does not exist; name the .index file of a TensorFlow checkpoint")
    if index.stat().st_size > MAXIMAL_INDEX:
        raise ValueError(f"{index} has {index.stat().st_size} bytes; it is no index of a TensorFlow checkpoint")
    try:
        entries = dict(_entries(index.read_bytes()))
        shards = _shards(entries.pop(""))
        return {name: _values(index, _parsed(value), shards) for name, value in entries.items() if _is_float(value)}
    except (IndexError, KeyError, struct.error, UnicodeDecodeError, OverflowError) as error:
        raise ValueError(
            f"{index} is damaged, or no index of a TensorFlow checkpoint ({type(error).__name__}); other files, "
            "pickles above all, are never loaded"
        ) from None


def _entries(data: bytes) -> Iterator[tuple[str, bytes]]:
    """All keys with their values, block by block."""
    if len(data) < FOOTER or struct.unpack_from("<Q", data, len(data) - 8)[0] != MAGIC:
        raise KeyError("magic number")
    footer = data[-FOOTER:]
    _, position = _place(footer, 0)
    place, _ = _place(footer, position)
    for _, handle in _block(data, *place):
        block, _ = _place(handle, 0)
        for key, value in _block(data, *block):
            yield key.decode("utf-8"), value


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a block; a key repeats the start of the one before."""
    if offset + size + TRAILER > len(data) or data[offset + size] != 0:
        raise KeyError("block that is cut off or compressed")
    block = data[offset : offset + size]
    (restarts,) = struct.unpack_from("<I", block, size - 4)
    position, end, key = 0, size - 4 - 4 * restarts, b""
    while position < end:
        shared, position = _varint(block, position)
        fresh, position = _varint(block, position)
        length, position = _varint(block, position)
        key = key[:shared] + block[position : position + fresh]
        yield key, block[position + fresh : position + fresh + length]
        position += fresh + length


def _place(data: bytes, position: int) -> tuple[tuple[int, int], int]:
    offset, position = _varint(data, position)
    size, position = _varint(data, position)
    return (offset, size), position


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value, shift = 0, 0
    while shift < 64:
        byte = data[position]
        value, position, shift = value | (byte & 0x7F) << shift, position + 1, shift + 7
        if byte < 0x80:
            return value, position
    raise KeyError("number of more than 64 bits")


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of a protocol buffer's fields."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        if tag & 7 == 0:
            value, position = _varint(message, position)
        elif tag & 7 == 2:
            size, position = _varint(message, position)
            value, position = message[position : position + size], position + size
        elif tag & 7 in (1, 5):
            size = 8 if tag & 7 == 1 else 4
            value, position = message[position : position + size], position + size
        else:
            raise KeyError("field of an unknown kind")
        yield tag >> 3, value


def _shards(header: bytes) -> int:
    """The number of data files; big-endian ones are refused."""
    values = dict(_fields(header))
    if values.get(2, 0) != 0:
        raise KeyError("big-endian data")
    return _number(values.get(1, 1))


def _is_float(value: bytes) -> bool:
    return _parsed(value).kind in FLOATS


def _parsed(value: bytes) -> _Entry:
    fields = list(_fields(value))
    found = {key: content for key, content in fields if isinstance(content, int)}
    shapes = [content for key, content in fields if key == 2 and isinstance(content, bytes)]
    dims = [inner for shape in shapes for key, inner in _fields(shape) if key == 2 and isinstance(inner, bytes)]
    shape = [_number(dict(_fields(dim)).get(1, 0)) for dim in dims]
    return _Entry(found.get(1, 0), shape, found.get(3, 0), found.get(4, 0), found.get(5, 0))


def _number(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise KeyError("bytes in place of a number")
    return value


def _values(index: Path, entry: _Entry, shards: int) -> Tensor:
    path = index.with_suffix(f".data-{entry.shard:05d}-of-{shards:05d}")
    if not path.is_file():
        raise ValueError(f"{path} does not exist; copy all files of the checkpoint into one folder")
    kind = FLOATS[entry.kind]
    if entry.size != prod(entry.shape) * kind.itemsize or entry.offset + entry.size > path.stat().st_size:
        raise KeyError("variable that is longer than its file or than its shape")
    flat = np.fromfile(path, kind, prod(entry.shape), offset=entry.offset)
    return torch.from_numpy(flat.reshape(entry.shape).copy())
