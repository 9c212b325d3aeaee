"""Parquet files as on the dataset hubs: `image` or `img` (encoded bytes) and `label`, one row an image."""

import re
from pathlib import Path
from typing import Any

from lconvnet import allowance
from lconvnet.data.errors import DataError, nearest
from lconvnet.data.folders import ROLES
from lconvnet.data.rows import Rows, Source
from lconvnet.extras import require

ROWS = 1024
OBJECTS = 6  # times a value of Arrow: what the number or the bytes take in Python
_ROLE = re.compile(r"(train|validation|valid|val|test)(?=[-_.]|$)")
_SHARD = re.compile(r"-(\d+)-of-(\d+)$")


def parquet_files(root: Path) -> list[Path]:
    """Return the parquet files in `root`, or else in the folders below it, sorted (maybe none)."""
    return sorted(root.glob("*.parquet")) or sorted(root.glob("*/*.parquet"))


def read_parquet(path: Path) -> Source:
    """Read one file, or a folder's `train-*.parquet`, `validation-*.parquet`, `test-*.parquet` (or only
    unnamed files).

    Raises `DataError` for a missing shard or role, an unreadable file, and missing or unusable columns.
    """
    files = [path] if path.is_file() else parquet_files(path)
    by_role: dict[str, list[Path]] = {}
    for file in files:
        match = _ROLE.match(file.stem)
        by_role.setdefault(ROLES[match[1]] if match and path.is_dir() else "", []).append(file)
    if "" in by_role and len(by_role) > 1:
        raise DataError(
            f"{by_role[''][0]} is neither train, validation nor test: rename it train-*.parquet, or remove it"
        )
    if "" not in by_role and "train" not in by_role:
        raise DataError(f"{path} has no train-*.parquet beside {files[0].name}: add the training images")
    for shards in by_role.values():
        _check_shards(shards)
    return Source({role or "train": _join([_read(file) for file in part]) for role, part in by_role.items()})


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


def open_columns(file: Path, *wanted: tuple[str, ...]) -> Any:
    """Return a checked table with one column for each group of alternative names; all columns where none is asked for.

    Raises `DataError` for an unreadable file, a missing column, and a file without rows.
    """
    pq = require("pyarrow.parquet", "data")
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as opened:
            present = opened.schema_arrow.names
            table = _held(file, opened, [_column(file, present, *names) for names in wanted] or None)
        table.validate(full=True)
    except DataError:
        raise
    except Exception as error:  # pyarrow raises OSError, ArrowInvalid, ... on broken files
        raise _unreadable(file, error) from error
    if not len(table):
        raise DataError(f"{file} has no rows: fetch it again, or remove it")
    return table


def _held(file: Path, opened: Any, columns: list[str] | None) -> Any:
    """The columns as a table, a few rows at a time: what repeats in a file takes no room in it.

    So few that they fit even if every one of them held all that a group of rows declares.
    """
    size = file.stat().st_size
    groups = [opened.metadata.row_group(i).total_byte_size for i in range(opened.metadata.num_row_groups)]
    allowance.require(OBJECTS * sum(groups), size, str(file), DataError)
    rows = max(1, min(ROWS, allowance.allowed(size) // (OBJECTS * max([*groups, 1]))))
    batches, held = [], 0
    for batch in opened.iter_batches(batch_size=rows, columns=columns):
        held += OBJECTS * batch.nbytes
        allowance.require(held, size, str(file), DataError)
        batches.append(batch)
    return require("pyarrow", "data").Table.from_batches(batches, schema=None if batches else opened.schema_arrow)


def _unreadable(file: Path, error: Exception) -> DataError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(f"{file} is not a readable parquet file ({reason}): fetch it again")


def _read(file: Path) -> Rows:
    wanted = ("image", "img"), ("label", "labels")
    table = open_columns(file, *wanted)
    image, label = (_column(file, table.column_names, *names) for names in wanted)
    try:
        cells, labels = table.column(image).to_pylist(), table.column(label).to_pylist()
        names = _class_names(table.schema, label)
    except Exception as error:  # pyarrow and datasets raise KeyError, ... on broken metadata
        raise _unreadable(file, error) from error
    origins = [f"{file} row {row}" for row in range(len(cells))]
    encoded: list[bytes | Path] = [encoded_bytes(cell, origin) for cell, origin in zip(cells, origins, strict=True)]
    return Rows(encoded, _labels(labels, origins), origins, names)


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
