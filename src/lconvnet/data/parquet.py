"""Parquet files as on the dataset hubs: `image` or `img` (encoded bytes) and `label`, one row an image."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lconvnet import allowance
from lconvnet.data.errors import DataError, nearest
from lconvnet.data.parquet_pages import pages
from lconvnet.data.parquet_parts import may_say_parts, roles_in
from lconvnet.data.rows import Rows, Source, take
from lconvnet.data.tree import Tree
from lconvnet.extras import require

ROWS = 1024
CELL, ROW = 8, 600  # bytes that a number takes at least, and a row of values of any length, a dictionary in Python
OBJECTS = 6  # times a value of Arrow: what the number or the bytes take in Python
_SHARD = re.compile(r"-(\d+)-of-(\d+)$")


def read_parquet(file: Path, *, to_train: bool = True) -> Source:
    """Read one file, whatever it is called; its rows may say their parts."""
    source = _source({file: ""})
    if to_train and "train" not in source.roles:
        raise DataError(f"{file} has no rows to train on, only of {' and '.join(source.roles)}: add some")
    return source


def read_parquet_folder(tree: Tree, *, to_train: bool = True) -> Source:
    """Read all parquet files of a folder, each of the part that its name, its folders or its rows say.

    Raises `DataError` for a missing shard or part, an unreadable file, missing or unusable columns, and where two parts
    are said at once, or only some files or rows say one.
    """
    source = _source({file: _part(file, tree) for file in tree.parquet()})
    if to_train and "train" not in source.roles:
        raise DataError(f"{tree.root} has no train-*.parquet beside {tree.parquet()[0].name}: add the training images")
    return source


def _part(file: Path, tree: Tree) -> str:
    """The part that a file, or a folder of it, is called; "" where none is said."""
    said = tree.said_of(file)
    if len(said) > 1:
        raise DataError(f"{file} is called {' and '.join(sorted(said))} at once: move or rename it")
    return next(iter(said), "")


def _source(parts: dict[Path, str]) -> Source:
    by_role: dict[str, list[Path]] = {}
    for file, role in parts.items():
        by_role.setdefault(role, []).append(file)
    for shards in by_role.values():
        _check_shards(shards)
    rows: dict[str, list[Rows]] = {}
    for file, role in parts.items():
        for said, found in _read(file).items():
            if role and said and said != role:
                raise DataError(
                    f"{file} is called {role}, but has {said} rows: rename the file, divide it, or remove the column"
                )
            rows.setdefault(role or said, []).append(found)
    if "" in rows and len(rows) > 1:
        raise DataError(
            f"{rows[''][0].origins[0]} is neither train, validation nor test: rename its file train-*.parquet, or "
            "remove it"
        )
    return Source({role or "train": _join(part) for role, part in rows.items()})


def _check_shards(files: list[Path]) -> None:
    for file in files:
        match = _SHARD.search(file.stem)
        if match and sum(other.stem.endswith(f"-of-{match[2]}") for other in files) != int(match[2]):
            raise DataError(
                f"{file} is one of {int(match[2])} files, but not all are in {file.parent}: fetch the others"
            )


def _join(parts: list[Rows]) -> Rows:
    labels: list = [label for part in parts for label in part.labels]
    if len({type(label) for label in labels}) > 1:
        raise DataError(f"labels in {parts[0].origins[0]} and its sibling files mix numbers and names: use one kind")
    if len({part.class_names for part in parts}) > 1:
        raise DataError(f"class names in {parts[0].origins[0]} and its sibling files differ: use the same")
    cells = [cell for part in parts for cell in part.cells]
    return Rows(cells, labels, [origin for part in parts for origin in part.origins], parts[0].class_names)


def open_columns(file: Path, *wanted: tuple[str, ...], optional: Callable[[Any], bool] = lambda field: False) -> Any:
    """Return a checked table with one column for each group of alternative names, and those whose fields are
    `optional`; all columns where none is asked for.

    Raises `DataError` for an unreadable file, a missing column, and a file without rows.
    """
    pq = require("pyarrow.parquet", "data")
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as opened:
            present = opened.schema_arrow.names
            needed = [_column(file, present, *names) for names in wanted]
            others = [field.name for field in opened.schema_arrow if wanted and optional(field)]
            table = _held(file, opened, [*needed, *others] or None)
        table.validate(full=True)
    except DataError:
        raise
    except Exception as error:  # pyarrow raises OSError, ArrowInvalid, ... on broken files
        raise _unreadable(file, error) from error
    if not len(table):
        raise DataError(f"{file} has no rows: fetch it again, or remove it")
    return table


def _held(file: Path, opened: Any, columns: list[str] | None) -> Any:
    """The columns as a table, counted as it is read: what repeats in a file takes no room in it.

    What its footer says of sizes is its author's word, so pages are counted by their own headers. A value is at most as
    large as the largest of them, which says how many rows fit at once.
    """
    arrow, size = require("pyarrow", "data"), file.stat().st_size
    read = [field for field in opened.schema_arrow if columns is None or field.name in columns]
    for field in read:
        try:
            _refuse_lists_of_any_length(arrow.types, field)
        except DataError as error:
            raise DataError(f"{file} has {field.name!r}, a {error}") from None
    fixed = all(arrow.types.is_primitive(field.type) or arrow.types.is_null(field.type) for field in read)
    count = opened.metadata.num_rows
    least = max(0 if fixed else ROW, CELL * len(read))
    allowance.require(least * count, size, f"{file} of {count} rows", DataError)
    found = pages(file, opened.metadata, columns)
    needed = max(OBJECTS * sum(page.size for page in found), CELL * sum(page.values for page in found))
    allowance.require(needed, size, str(file), DataError)
    largest = max((page.size for page in found), default=0)
    step = min(ROWS, max(1, allowance.allowed(size) // (OBJECTS * max(CELL, largest))))
    chunks, rows, held = [], [], 0
    for batch in opened.iter_batches(batch_size=step, columns=columns):
        row = _spelled_out(arrow.Table.from_batches([batch]))
        held += OBJECTS * row.nbytes
        allowance.require(held, size, str(file), DataError)
        rows.append(row)
        if len(rows) == ROWS:
            chunks, rows = [*chunks, arrow.concat_tables(rows).combine_chunks()], []
    return arrow.concat_tables([*chunks, *rows]) if chunks or rows else opened.schema_arrow.empty_table()


def _refuse_lists_of_any_length(types: Any, field: Any, *, listed: bool = False) -> None:
    """Refuse lists of texts or bytes: one row of them may repeat a value any number of times."""
    if types.is_nested(field.type):
        inside = listed or not types.is_struct(field.type)
        for i in range(field.type.num_fields):
            _refuse_lists_of_any_length(types, field.type.field(i), listed=inside)
    elif listed and not (types.is_primitive(field.type) or types.is_null(field.type)):
        raise DataError(f"column of lists of {field.type}: keep one value in a row, or numbers alone")


def _spelled_out(table: Any) -> Any:
    """The same values without dictionaries, each in its own place."""
    for index, field in enumerate(table.schema):
        if "dictionary<" in str(field.type):
            if not str(field.type).startswith("dictionary<"):
                raise DataError(
                    f"column {field.name!r} holds dictionaries inside of other values: save it without them"
                )
            column = table.column(index).cast(field.type.value_type)
            table = table.set_column(index, field.with_type(field.type.value_type), column)
    return table


def _unreadable(file: Path, error: Exception) -> DataError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(f"{file} is not a readable parquet file ({reason}): fetch it again")


def _read(file: Path) -> dict[str, Rows]:
    """The rows of a file by the part that they say; "" where they say none."""
    wanted = ("image", "img"), ("label", "labels")
    table = open_columns(file, *wanted, optional=may_say_parts)
    image, label = (_column(file, table.column_names, *names) for names in wanted)
    try:
        cells, labels = table.column(image).to_pylist(), table.column(label).to_pylist()
        names = _class_names(table.schema, label)
    except Exception as error:  # pyarrow and datasets raise KeyError, ... on broken metadata
        raise _unreadable(file, error) from error
    origins = [f"{file} row {row}" for row in range(len(cells))]
    encoded: list[bytes | Path] = [encoded_bytes(cell, origin) for cell, origin in zip(cells, origins, strict=True)]
    rows = Rows(encoded, _labels(labels, origins), origins, names)
    said = roles_in(file, table)
    if not said:
        return {"": rows}
    return {role: take(rows, [i for i, found in enumerate(said) if found == role]) for role in dict.fromkeys(said)}


def _class_names(schema: Any, label: str) -> tuple[str, ...] | None:
    """Return the class names that the `datasets` library stores in the file's schema, if any."""
    if b"huggingface" not in (schema.metadata or {}):
        return None
    names = getattr(require("datasets", "data").Features.from_arrow_schema(schema).get(label), "names", None)
    return tuple(names) if names else None


def _column(file: Path, present: list[str], *wanted: str) -> str:
    for name in wanted:
        if name in present:
            return name
    columns = ", ".join(present)
    hint = nearest(wanted[0], present)
    raise DataError(f"{file} has no column {' or '.join(map(repr, wanted))}, only {columns}{hint}: rename a column")


def encoded_bytes(cell: Any, origin: str) -> bytes:
    """Return the encoded bytes; refuse a cell with only a path: a data file must not name local files."""
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(content, bytes) or not content:
        raise DataError(f"image of {origin} holds no encoded bytes: embed the images in the parquet file")
    return content


def _labels(labels: list[Any], origins: list[str]) -> list[Any]:
    kind = str if isinstance(labels[0], str) else int
    kinds = "a name" if kind is str else "an integer"
    for label, origin in zip(labels, origins, strict=True):
        if not isinstance(label, kind) or isinstance(label, bool):
            raise DataError(f"label of {origin} is {label!r}: every label must be {kinds}")
    return labels
