"""Labelled rows of parquet files as on dataset hubs: `image` or `img` (encoded bytes) and `label`, one row per image.

Files, folders and columns may state the part of a row. All of them count, and a contradiction is refused: nothing that
is called a test is ever trained on.
"""

import re
from pathlib import Path
from typing import Any

from lconvnet.data.folders import Tree, hint_of, role_of, roles_of
from lconvnet.data.sets import DataError
from lconvnet.data.tables import Rows, Source, column_of, open_columns, take, unreadable
from lconvnet.extras import require

IMAGE, LABEL = ("image", "img"), ("label", "labels")
_SHARD = re.compile(r"-(\d+)-of-(\d+)$")
_PART_COLUMNS = ("split", "part", "partition", "subset", "set", "phase", "usage")
_FEW = 10  # distinct values, at most, of a column that states parts
_FLAGS = {"0", "1", "0.0", "1.0", "true", "false", "yes", "no", "y", "n", "t", "f"}


def read_parquet(file: Path, *, to_train: bool = True) -> Source:
    """Read one file of any name; its rows may state their parts."""
    source = _source({file: ""})
    if to_train and "train" not in source.roles:
        raise DataError(f"{file} has no rows to train on, only of {' and '.join(source.roles)}: add some")
    return source


def read_parquet_folder(tree: Tree, *, to_train: bool = True) -> Source:
    """Read all parquet files of a folder. The name of a file, its folders or its rows state its part.

    Raises `DataError` for a missing shard or part, an unreadable file, missing or unusable columns, for two parts
    stated at once, and if only some files or rows state one.
    """
    parts = dict[Path, str]()
    for file in tree.parquet():
        said = tree.said_of(file)
        if len(said) > 1:
            raise DataError(f"{file} is called {' and '.join(sorted(said))} at once: move or rename it")
        parts[file] = next(iter(said), "")
    source = _source(parts)
    if to_train and "train" not in source.roles:
        raise DataError(f"{tree.root} has no train-*.parquet beside {next(iter(parts)).name}: add the training images")
    return source


def encoded_cells(table: Any, image: str, file: Path) -> tuple[list[bytes | Path], list[str]]:
    """Return the encoded bytes of a column, and what an error calls each row.

    Refuses a cell with only a path: a data file must not name local files.
    """
    origins = [f"{file} row {row}" for row in range(len(table))]
    cells: list[bytes | Path] = []
    for cell, origin in zip(table.column(image).to_pylist(), origins, strict=True):
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(content, bytes) or not content:
            raise DataError(f"image of {origin} holds no encoded bytes: embed the images in the parquet file")
        cells.append(content)
    return cells, origins


def roles_in(file: Path, table: Any) -> list[str]:
    """Return the part that a column such as `split` states for every row; an empty list if no such column exists.

    Raises `DataError` if only some rows state one, if columns disagree, and if a column is named after parts but holds
    numbers, which state no part.
    """
    said = {field.name: _roles(file, table, field.name) for field in table.schema if _may_say_parts(field)}
    found = {name: roles for name, roles in said.items() if roles}
    first, known = next(iter(found.items()), ("", []))
    for name, roles in found.items():
        for row, (one, other) in enumerate(zip(known, roles, strict=True)):
            if one != other:
                raise DataError(
                    f"row {row} of {file} is {one} by its column {first!r} and {other} by {name!r}: remove one of the "
                    "two"
                )
    return known


def _source(parts: dict[Path, str]) -> Source:
    for file, role in parts.items():
        shards = [other for other, its in parts.items() if its == role]
        match = _SHARD.search(file.stem)
        if match and sum(other.stem.endswith(f"-of-{match[2]}") for other in shards) != int(match[2]):
            raise DataError(
                f"{file} is one of {int(match[2])} files, but not all are in {file.parent}: fetch the others"
            )
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


def _join(parts: list[Rows]) -> Rows:
    labels: list = [label for part in parts for label in part.labels]
    if len({type(label) for label in labels}) > 1:
        raise DataError(f"labels in {parts[0].origins[0]} and its sibling files mix numbers and names: use one kind")
    if len({part.class_names for part in parts}) > 1:
        raise DataError(f"class names in {parts[0].origins[0]} and its sibling files differ: use the same")
    cells = [cell for part in parts for cell in part.cells]
    return Rows(cells, labels, [origin for part in parts for origin in part.origins], parts[0].class_names)


def _read(file: Path) -> dict[str, Rows]:
    """Return the rows of a file by the part that they state, under "" if they state none."""
    table = open_columns(file, IMAGE, LABEL, optional=_may_say_parts)
    image, label = (column_of(file, table.column_names, *names) for names in (IMAGE, LABEL))
    try:
        labels = table.column(label).to_pylist()
        features: Any = {}
        if b"huggingface" in (table.schema.metadata or {}):  # where the `datasets` library keeps class names
            features = require("datasets", "data").Features.from_arrow_schema(table.schema)
        names = tuple(getattr(features.get(label), "names", None) or ()) or None
        cells, origins = encoded_cells(table, image, file)
    except DataError:
        raise
    except Exception as error:  # pyarrow and datasets raise KeyError, ... on broken metadata
        raise unreadable(file, error) from error
    kind, kinds = (str, "a name") if isinstance(labels[0], str) else (int, "an integer")
    for value, origin in zip(labels, origins, strict=True):
        if not isinstance(value, kind) or isinstance(value, bool):
            raise DataError(f"label of {origin} is {value!r}: every label must be {kinds}")
    rows, said = Rows(cells, labels, origins, names), roles_in(file, table)
    if not said:
        return {"": rows}
    return {role: take(rows, [i for i, found in enumerate(said) if found == role]) for role in dict.fromkeys(said)}


def _may_say_parts(field: Any) -> bool:
    """Return whether a column may state parts, by its name and type.

    Text columns may, and their values decide. Columns of numbers may if they are named after parts. The image and label
    columns may not, because a class may be called train.
    """
    types = require("pyarrow", "data").types
    kind = field.type.value_type if types.is_dictionary(field.type) else field.type
    is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    own = field.name.casefold() in (*IMAGE, *LABEL)
    return not own and (is_text or (types.is_primitive(kind) and _is_called_part(field.name)))


def _roles(file: Path, table: Any, name: str) -> list[str]:
    """Return the part that one column states for every row; an empty list if it states something else."""
    distinct, known = table.column(name).unique().to_pylist(), name.casefold() in _PART_COLUMNS
    if len(distinct) > _FEW and not known:
        return []
    values = [value for value in distinct if isinstance(value, str)]
    try:
        said = roles_of(values)
    except DataError:
        raise DataError(
            f"column {name!r} of {file} has values that seem to name parts, but not all do ({values[0]!r}): write "
            "train, validation or test, or remove it"
        ) from None
    unknown = [value for value in distinct if value not in said]
    if unknown and said and (known or set(said.values()) != {"train"}):
        raise DataError(
            f"column {name!r} of {file} has {unknown[0]!r} beside train or test: correct the rows, or remove it"
        )
    present = [value for value in distinct if value is not None]
    numbered = known and not values
    flags = numbered or all(str(value).casefold() in _FLAGS for value in present)
    if not said and flags and 0 < len(present) <= _FEW and _is_called_part(name):
        raise DataError(
            f"column {name!r} of {file} holds {distinct[0]!r}, which is not the name of a part: write train, "
            "validation or test in a column called split, and remove or rename this one"
        )
    return [said[value] for value in table.column(name).to_pylist()] if not unknown else []


def _is_called_part(name: str) -> bool:
    words = re.split(r"[\W_]+", name.casefold())
    return not set(_PART_COLUMNS).isdisjoint(words) or role_of(name) is not None or hint_of(name) is not None
