"""How large the pages of a parquet file are once decompressed, by the headers that a reader obeys.

The footer says it, too, but there it is only its author's word. A page header is a structure in Thrift's compact
protocol: fields of (difference of numbers, type), integers as zigzag varints. Its fields 2 and 3 are the sizes of the
page, decompressed and as it is stored behind the header; in fields 5 and 8, of pages of values, field 1 counts these.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
DECOMPRESSED, STORED, VALUES, VALUES_2, COUNT = 2, 3, 5, 8, 1
DEEPEST = 8  # structures within structures; a header has three


@dataclass(frozen=True)
class Page:
    """The bytes of a page once decompressed, and how many values it has; none in a dictionary."""

    size: int
    values: int


def pages(file: Path, metadata: Any, columns: list[str] | None = None) -> list[Page]:
    """The pages of these columns, all of them by default. Raises `ValueError` for a broken header."""
    found = []
    with file.open("rb") as stream:
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            for chunk in map(group.column, range(group.num_columns if group.num_rows else 0)):
                if columns is None or chunk.path_in_schema.split(".")[0] in columns:
                    stream.seek(_start(chunk))
                    found += _pages(stream.read(chunk.total_compressed_size))
    return found


def _start(chunk: Any) -> int:
    dictionary = chunk.dictionary_page_offset if chunk.has_dictionary_page else None
    return min(chunk.data_page_offset, dictionary or chunk.data_page_offset)


def _pages(data: bytes) -> Iterator[Page]:
    """Those of a column chunk."""
    at = 0
    while at < len(data):
        header = _Header(data, at)
        fields = header.structure()
        values = max((dict(fields.get(kind) or {}).get(COUNT, 0) for kind in (VALUES, VALUES_2)), default=0)
        yield Page(max(0, fields.get(DECOMPRESSED, 0)), max(0, values))
        at = header.at + max(0, fields.get(STORED, 0))


class _Header:
    """A structure that begins at a place in `data`; `at` moves behind it as it is read."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def structure(self, depth: int = 0) -> dict[int, Any]:
        """The integers and structures of a structure by their numbers; what else it has is passed over."""
        if depth > DEEPEST:
            raise ValueError("page header with too many structures within structures")
        found: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            kind = head & 15
            number = number + (head >> 4) if head >> 4 else self._integer()
            found[number] = self._value(kind, depth)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (I16, I32, I64):
            return self._integer()
        if kind in (BYTE, DOUBLE, BINARY):
            length = {BYTE: 1, DOUBLE: 8}.get(kind) or self._varint()
            self.at += length
        elif kind == STRUCT:
            return self.structure(depth + 1)
        elif kind not in (TRUE, FALSE):
            raise ValueError(f"page header with a field of kind {kind}")
        return None

    def _byte(self) -> int:
        if self.at >= len(self.data):
            raise ValueError("page header that does not end")
        self.at += 1
        return self.data[self.at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while shift < 64:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise ValueError("page header with a number of more than 64 bits")

    def _integer(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
