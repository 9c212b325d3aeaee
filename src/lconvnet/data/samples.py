"""Samples without labels, for whoever compares distributions: images of a folder or a parquet file, arrays of numbers.

Nothing here knows classes: an image folder may be flat, a parquet file may lack labels, an array may have any shape.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lconvnet.data.arrays import read_npy
from lconvnet.data.decoding import decode
from lconvnet.data.errors import DataError
from lconvnet.data.parquet import encoded_bytes, open_columns
from lconvnet.data.parquet_parts import roles_in
from lconvnet.data.tree import SUFFIXES, Tree, tree_of
from lconvnet.extras import require

IMAGE_COLUMNS = ("image", "img")
_INDEX = re.compile(r"__index_level_\d+__")


def read_samples(path: str | Path, *, image_size: tuple[int, int] | None = None, channels: int | None = None) -> Tensor:
    """Read all samples of a folder of images (of any depth), of `.parquet` files, or of one `.npy` array.

    Args:
        path: a folder of images or of parquet files; a parquet file with the column `image` (or `img`), or with
            columns of numbers (an index that pandas wrote is left out), or with one column of lists of equal length; a
            NumPy array without pickled objects.
        image_size: (height, width) to scale and centre-crop images to; by default their sizes must agree.
        channels: 1 or 3 to convert images to; by default all must be grey or all colour.

    Returns:
        uint8 `(N, C, H, W)` for images, else the numbers `(N, ...)` as they are stored.

    Raises:
        DataError: (a `ValueError`) names the file and the way out.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "a.npy"
    >>> np.save(file, np.ones((3, 2)))
    >>> read_samples(file).shape
    torch.Size([3, 2])
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".npy":
        return torch.from_numpy(read_npy(path))
    if path.is_file() and path.suffix == ".parquet":
        return _read_parquet([path], image_size, channels)
    if not path.is_dir():
        kind = "is neither .npy nor .parquet" if path.is_file() else "does not exist"
        raise DataError(f"{path} {kind}: give a folder of images, a .parquet file or a .npy file")
    tree = tree_of(path)
    files = tree.parquet()
    called = [tree.roles(folder).values() for folder in tree.folders]
    _refuse_parts(path, chain(*called, *map(tree.said_of, files)))
    return _read_parquet(files, image_size, channels) if files else _read_folder(tree, image_size, channels)


def _refuse_parts(path: Path, roles: Iterable[str]) -> None:
    """All samples of a set are the training samples, and never those that are called a test."""
    if held := sorted(set(roles) - {"train"}):
        raise DataError(
            f"{path} holds a part called {' and one called '.join(held)}: name the part that you mean, by its own "
            "folder or file; a class of such a name can be renamed"
        )


def _read_folder(tree: Tree, image_size: tuple[int, int] | None, channels: int | None) -> Tensor:
    folder = tree.root
    files: list[bytes | Path] = [*tree.images(folder)]
    if not files:
        raise DataError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))}): add some, or correct the path")
    return decode(files, list(map(str, files)), image_size=image_size, channels=channels).images


def _read_parquet(files: list[Path], image_size: tuple[int, int] | None, channels: int | None) -> Tensor:
    tables = {file: _without_index(file, open_columns(file)) for file in files}
    names = next(iter(tables.values())).column_names
    for file, table in tables.items():
        _refuse_parts(file, roles_in(file, table))
    image = next((name for name in IMAGE_COLUMNS if name in names), None)
    for file, table in tables.items():
        if table.column_names != names:
            raise DataError(f"{file} has columns {table.column_names}, {files[0]} has {names}: use the same")
    if image is None:
        return torch.from_numpy(np.concatenate([_numbers(file, table) for file, table in tables.items()]))
    origins = [f"{file} row {row}" for file, table in tables.items() for row in range(len(table))]
    cells = [cell for table in tables.values() for cell in table.column(image).to_pylist()]
    encoded: list[bytes | Path] = [encoded_bytes(cell, origin) for cell, origin in zip(cells, origins, strict=True)]
    return decode(encoded, origins, image_size=image_size, channels=channels).images


def _without_index(file: Path, table: Any) -> Any:
    """The table without the names or numbers of rows that pandas writes beside the columns."""
    try:
        index = [*(table.schema.pandas_metadata or {}).get("index_columns", [])]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{file} holds broken pandas metadata: write it again") from error
    return table.drop_columns([name for name in table.column_names if name in index or _INDEX.fullmatch(name)])


def _numbers(file: Path, table: Any) -> np.ndarray:
    """Columns of numbers side by side `(N, columns)`, or one column of lists `(N, length)`."""
    try:
        columns = [np.asarray(column.to_pylist(), dtype=np.float64) for column in table.columns]
        values = columns[0] if len(columns) == 1 else np.column_stack(columns)
    except (TypeError, ValueError, IndexError) as error:
        raise DataError(
            f"{file} has neither a column image or img nor columns of numbers alone, only "
            f"{', '.join(table.column_names) or 'nothing'}: keep those that make up a sample"
        ) from error
    for name, column in zip(table.column_names, table.columns, strict=True):
        if any(value is not None and abs(value) >= 2**53 for value in _whole(column)):
            raise DataError(f"{file} has integers of 2^53 and more in {name}, which float64 does not hold: save .npy")
    return values.reshape(len(values), -1)


def _whole(column: Any) -> Iterator[Any]:
    """The values of a column that are stored as integers or decimals, those of lists one by one."""
    types, flat = require("pyarrow", "data").types, column.combine_chunks()
    while types.is_nested(flat.type):
        flat = flat.flatten()
    return iter(flat.to_pylist() if types.is_integer(flat.type) or types.is_decimal(flat.type) else ())
