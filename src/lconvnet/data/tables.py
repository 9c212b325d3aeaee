"""Tables in parquet files, and the encoded, labelled rows that come from them.

Memory is counted as tables are read, and no statement of a file is trusted.

A footer states how large the decompressed pages of its file are, but nothing enforces that. So pages are counted by
their own headers, which a reader obeys. A page header is a structure in Thrift's compact protocol: fields of
(difference of numbers, type), integers as zigzag varints. Its fields 2 and 3 are the sizes of the page, decompressed
and as stored behind the header. Fields 5 and 8 belong to pages of values; their field 1 counts the values.
"""

import io
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lconvnet import allowance
from lconvnet.data.sets import DataError, nearest
from lconvnet.extras import require


@dataclass(frozen=True, eq=False)
class Rows:
    """Encoded images, labels (integers or names), what an error calls each image, and `class_names` if stored."""

    cells: list[bytes | Path]
    labels: list[int] | list[str]
    origins: list[str]
    class_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.cells)


@dataclass(frozen=True, eq=False)
class Source:
    """Rows by role ("train", and "validation" and "test" if stored), and remarks on the files."""

    roles: dict[str, Rows]
    remarks: tuple[str, ...] = ()


def take(rows: Rows, indices: Sequence[int]) -> Rows:
    """Return the rows at `indices`, in that order."""
    labels: list = [rows.labels[i] for i in indices]
    return Rows([rows.cells[i] for i in indices], labels, [rows.origins[i] for i in indices], rows.class_names)


def files_of(rows: Rows, path: Path) -> tuple[str, ...]:
    """Return what an error calls each row, without the folder that holds the set `path`.

    >>> files_of(Rows([b""], ["cat"], ["data/pets.parquet row 3"]), Path("data/pets.parquet"))
    ('pets.parquet row 3',)
    """
    above = f"{path if path.is_dir() else path.parent}/"
    return tuple(origin.removeprefix(above) for origin in rows.origins)


def class_names_of(train: Rows, *, known: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """Return one name per class: stored with the rows, known, or the distinct labels of the training rows.

    Raises `DataError` for an integer label below 0 or without any training image, for a single class, and for names
    that are not text or look alike.

    >>> class_names_of(Rows([b"", b""], ["dog", "cat"], ["a", "b"]))
    ('cat', 'dog')
    """
    distinct = sorted(set(train.labels), key=str)
    if len(distinct) < 2:
        raise DataError(f"labels of the training images are all {distinct[0]!r}: a classifier needs two classes")
    if isinstance(distinct[0], str):
        names = _distinct(str(name) for name in distinct)
        return tuple(sorted(names, key=int) if all(name.isdecimal() for name in names) else names)
    names = train.class_names or known
    _distinct(names or ())
    count = _count_classes(train, len(names) if names else None)
    return names or tuple(map(str, range(count)))


def encode(rows: Rows, class_names: tuple[str, ...]) -> Tensor:
    """Return labels as int64 `(N,)` places in `class_names`. Raises `DataError` naming a row with another label.

    >>> encode(Rows([b"", b""], ["dog", "cat"], ["a", "b"]), ("cat", "dog")).tolist()
    [1, 0]
    """
    numbered = bool(rows.labels) and isinstance(rows.labels[0], int)
    place: dict[int | str, int] = {i if numbered else name: i for i, name in enumerate(class_names)}
    for label, origin in zip(rows.labels, rows.origins, strict=True):
        if label not in place:
            known = f"0..{len(class_names) - 1}" if isinstance(label, int) else ", ".join(class_names[:20])
            hint = ""
            if isinstance(label, str):  # name the nearest class, or the one that looks the same in other letters
                same = [name for name in class_names if alike(name) == alike(label)]
                hint = f"; {label!a} is not {same[0]!a}: rename one" if same else nearest(label, class_names)
            raise DataError(f"label {label!r} of {origin} is out of range: the training classes are {known}{hint}")
    return torch.tensor([place[label] for label in rows.labels], dtype=torch.int64)


def alike(name: str) -> str:
    """Return the form in which names are compared: case and the coding of letters make no difference."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def require_text(name: str, what: str) -> None:
    """Raise `DataError` if a name is not printable text, such as a file name from another system."""
    if not name.isprintable():
        raise DataError(f"{what} {name!a} is not a name of printable letters in UTF-8: rename it")


def _distinct(names: Iterable[str]) -> list[str]:
    """Return the names of classes, checked to be text and to differ."""
    found = dict[str, str]()
    for name in names:
        require_text(name, "class")
        if (other := found.setdefault(alike(name), name)) is not name:
            raise DataError(f"classes {other!a} and {name!a} differ in case or coding alone: merge or rename them")
    return list(found.values())


def _count_classes(train: Rows, stored: int | None) -> int:
    present = {int(label) for label in train.labels}
    count = max(present) + 1 if stored is None else stored
    for label, origin in zip(train.labels, train.origins, strict=True):
        if not 0 <= int(label) < count:
            raise DataError(f"label {label} of {origin} is out of range 0..{count - 1}: correct or remove the row")
    if len(present) < count:
        missing = next(label for label in range(count) if label not in present)
        raise DataError(f"class {missing} of {count} has no training image: add some, or renumber the labels")
    return count


_BATCH = 1024  # rows read at once, at most
_CELL, _ROW = 8, 600  # bytes in Python: of a number at least, and of a row of values of any length
_OBJECTS = 6  # a number or bytes in Python take so many times the size of the value in Arrow
_INDEX = re.compile(r"__index_level_\d+__")
_INTEGERS, _BINARY, _STRUCT = (4, 5, 6), 8, 12  # field types
_WIDTHS = {1: 0, 2: 0, 3: 1, 7: 8}  # field type -> bytes; a truth value takes none, because its type states it
_DECOMPRESSED, _STORED, _VALUES, _VALUES_2, _COUNT = 2, 3, 5, 8, 1
_DEEPEST = 8  # levels of nested structures; a header has three


class Page(NamedTuple):
    """The decompressed size of a page in bytes, and its number of values, which is 0 for a dictionary."""

    size: int
    values: int


def open_columns(file: Path, *wanted: tuple[str, ...], optional: Callable[[Any], bool] = lambda field: False) -> Any:
    """Return a checked table with one column per group of alternative names, and the columns with `optional` fields.

    Without groups the table has all columns. Raises `DataError` for an unreadable file, a missing column, and a file
    without rows.
    """
    pq = require("pyarrow.parquet", "data")
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as opened:
            present = opened.schema_arrow.names
            needed = [column_of(file, present, *names) for names in wanted]
            others = [field.name for field in opened.schema_arrow if wanted and optional(field)]
            table = _counted(file, opened, [*needed, *others] or None)
        table.validate(full=True)
    except DataError:
        raise
    except Exception as error:  # pyarrow raises OSError, ArrowInvalid, ... on broken files
        raise unreadable(file, error) from error
    if not len(table):
        raise DataError(f"{file} has no rows: fetch it again, or remove it")
    return table


def column_of(file: Path, present: list[str], *wanted: str) -> str:
    """Return the first of the wanted names that is a column of the file. Raises `DataError` if none is."""
    for name in wanted:
        if name in present:
            return name
    columns = ", ".join(present)
    hint = nearest(wanted[0], present)
    raise DataError(f"{file} has no column {' or '.join(map(repr, wanted))}, only {columns}{hint}: rename a column")


def unreadable(file: Path, error: Exception) -> DataError:
    """Return the error for a file that pyarrow cannot read."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(f"{file} is not a readable parquet file ({reason}): fetch it again")


def without_index(file: Path, table: Any) -> Any:
    """Return the table without the index columns that pandas writes."""
    try:
        index = [*(table.schema.pandas_metadata or {}).get("index_columns", [])]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{file} holds broken pandas metadata: write it again") from error
    return table.drop_columns([name for name in table.column_names if name in index or _INDEX.fullmatch(name)])


def numbers(file: Path, table: Any) -> np.ndarray:
    """Return columns of numbers side by side `(N, columns)`, or one column of lists `(N, length)`, in float64."""
    try:
        columns = [np.asarray(column.to_pylist(), dtype=np.float64) for column in table.columns]
        values = columns[0] if len(columns) == 1 else np.column_stack(columns)
    except (TypeError, ValueError, IndexError) as error:
        raise DataError(
            f"{file} has neither a column image or img nor columns of numbers alone, only "
            f"{', '.join(table.column_names) or 'nothing'}: keep those that make up a sample"
        ) from error
    types = require("pyarrow", "data").types
    for name, column in zip(table.column_names, table.columns, strict=True):
        flat = column.combine_chunks()
        while types.is_nested(flat.type):
            flat = flat.flatten()
        whole = flat.to_pylist() if types.is_integer(flat.type) or types.is_decimal(flat.type) else ()
        if any(value is not None and abs(value) >= 2**53 for value in whole):
            raise DataError(f"{file} has integers of 2^53 and more in {name}, which float64 does not hold: save .npy")
    return values.reshape(len(values), -1)


def _counted(file: Path, opened: Any, columns: list[str] | None) -> Any:
    """Return the columns as a table, and count memory while reading, because repeated values take no room in the file.

    A value is at most as large as the largest page, so that page decides how many rows fit at once.
    """
    arrow, size = require("pyarrow", "data"), file.stat().st_size
    read = [field for field in opened.schema_arrow if columns is None or field.name in columns]
    for field in read:
        _refuse_lists_of_any_length(arrow.types, file, field.name, field.type)
    fixed = all(arrow.types.is_primitive(field.type) or arrow.types.is_null(field.type) for field in read)
    count = opened.metadata.num_rows
    allowance.require(max(0 if fixed else _ROW, _CELL * len(read)) * count, size, f"{file} of {count} rows", DataError)
    found = pages(file, opened.metadata, columns)
    needed = max(_OBJECTS * sum(page.size for page in found), _CELL * sum(page.values for page in found))
    allowance.require(needed, size, str(file), DataError)
    largest = max((page.size for page in found), default=0)
    step = min(_BATCH, max(1, allowance.allowed(size) // (_OBJECTS * max(_CELL, largest))))
    chunks, rows, held = [], [], 0
    for batch in opened.iter_batches(batch_size=step, columns=columns):
        row = _spelled_out(arrow.Table.from_batches([batch]))
        held += _OBJECTS * row.nbytes
        allowance.require(held, size, str(file), DataError)
        rows.append(row)
        if len(rows) == _BATCH:
            chunks, rows = [*chunks, arrow.concat_tables(rows).combine_chunks()], []
    return arrow.concat_tables([*chunks, *rows]) if chunks or rows else opened.schema_arrow.empty_table()


def _refuse_lists_of_any_length(types: Any, file: Path, column: str, kind: Any, *, listed: bool = False) -> None:
    """Refuse lists of texts or bytes, because one row of them may repeat a value any number of times."""
    if types.is_nested(kind):
        inside = listed or not types.is_struct(kind)
        for i in range(kind.num_fields):
            _refuse_lists_of_any_length(types, file, column, kind.field(i).type, listed=inside)
    elif listed and not (types.is_primitive(kind) or types.is_null(kind)):
        raise DataError(
            f"{file} has {column!r}, a column of lists of {kind}: keep one value in a row, or numbers alone"
        )


def _spelled_out(table: Any) -> Any:
    """Return the same values without dictionaries."""
    for index, field in enumerate(table.schema):
        if "dictionary<" in str(field.type):
            if not str(field.type).startswith("dictionary<"):
                raise DataError(
                    f"column {field.name!r} holds dictionaries inside of other values: save it without them"
                )
            column = table.column(index).cast(field.type.value_type)
            table = table.set_column(index, field.with_type(field.type.value_type), column)
    return table


def pages(file: Path, metadata: Any, columns: list[str] | None = None) -> list[Page]:
    """Return the pages of these columns, by default of all. Raises `ValueError` for a broken header."""
    found = list[Page]()
    with file.open("rb") as stream:
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            for chunk in map(group.column, range(group.num_columns if group.num_rows else 0)):
                if columns is not None and chunk.path_in_schema.split(".")[0] not in columns:
                    continue
                dictionary = chunk.dictionary_page_offset if chunk.has_dictionary_page else None
                stream.seek(min(chunk.data_page_offset, dictionary or chunk.data_page_offset))
                data = io.BytesIO(stream.read(chunk.total_compressed_size))
                while data.tell() < data.getbuffer().nbytes:
                    fields = _structure(data)
                    values = max(dict(fields.get(kind) or {}).get(_COUNT, 0) for kind in (_VALUES, _VALUES_2))
                    found.append(Page(max(0, fields.get(_DECOMPRESSED, 0)), max(0, values)))
                    data.seek(max(0, fields.get(_STORED, 0)), io.SEEK_CUR)
    return found


def _structure(data: io.BytesIO, depth: int = 0) -> dict[int, Any]:
    """Return the integers and structures inside a structure by field number, and skip everything else."""
    if depth > _DEEPEST:
        raise ValueError("page header with too many structures within structures")
    found: dict[int, Any] = {}
    number = 0
    while head := _byte(data):
        kind = head & 15
        number = number + (head >> 4) if head >> 4 else _integer(data)
        if kind in _INTEGERS:
            found[number] = _integer(data)
        elif kind == _STRUCT:
            found[number] = _structure(data, depth + 1)
        elif kind == _BINARY:
            data.seek(varint(data), io.SEEK_CUR)
        elif kind in _WIDTHS:
            data.seek(_WIDTHS[kind], io.SEEK_CUR)
        else:
            raise ValueError(f"page header with a field of kind {kind}")
    return found


def _byte(data: io.BytesIO) -> int:
    byte = data.read(1)
    if not byte:
        raise ValueError("page header that does not end")
    return byte[0]


def varint(data: io.BytesIO) -> int:
    """Return the next integer: seven bits per byte, the lowest first, as in Thrift and protocol buffers."""
    value = 0
    for shift in range(0, 64, 7):
        byte = _byte(data)
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise ValueError("page header with a number of more than 64 bits")


def _integer(data: io.BytesIO) -> int:
    value = varint(data)
    return value >> 1 ^ -(value & 1)
