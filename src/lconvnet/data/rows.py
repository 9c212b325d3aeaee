"""Encoded, labelled rows as they come from files, before decoding, and how their labels become classes."""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lconvnet.data.sets import DataError, nearest


@dataclass(frozen=True, eq=False)
class Rows:
    """Encoded images, labels (integers or names), what an error calls each; `class_names` if stored."""

    cells: list[bytes | Path]
    labels: list[int] | list[str]
    origins: list[str]
    class_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.cells)


@dataclass(frozen=True, eq=False)
class Source:
    """Rows by role ("train", and if stored "validation" and "test"), and remarks on what was read."""

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
    """Return one name per class: stored with the rows, or known, or the distinct labels of the training rows.

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
    """Return labels as int64 `(N,)` places in `class_names`; raises `DataError` naming a row with another label.

    >>> encode(Rows([b"", b""], ["dog", "cat"], ["a", "b"]), ("cat", "dog")).tolist()
    [1, 0]
    """
    numbered = bool(rows.labels) and isinstance(rows.labels[0], int)
    place: dict[int | str, int] = {i if numbered else name: i for i, name in enumerate(class_names)}
    for label, origin in zip(rows.labels, rows.origins, strict=True):
        if label not in place:
            known = f"0..{len(class_names) - 1}" if isinstance(label, int) else ", ".join(class_names[:20])
            hint = ""
            if isinstance(label, str):  # the class that may be meant, or the one that is printed alike in other letters
                same = [name for name in class_names if alike(name) == alike(label)]
                hint = f"; {label!a} is not {same[0]!a}: rename one" if same else nearest(label, class_names)
            raise DataError(f"label {label!r} of {origin} is out of range: the training classes are {known}{hint}")
    return torch.tensor([place[label] for label in rows.labels], dtype=torch.int64)


def alike(name: str) -> str:
    """Return a name as it is compared: upper and lower case, and ways to code a letter, are one."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def require_text(name: str, what: str) -> None:
    """Raise `DataError` if a name, as of a file of another system, has bytes that are not a letter."""
    if not name.isprintable():
        raise DataError(f"{what} {name!a} is not a name of printable letters in UTF-8: rename it")


def _distinct(names: Iterable[str]) -> list[str]:
    """The names of classes, each of them text and none like another."""
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
