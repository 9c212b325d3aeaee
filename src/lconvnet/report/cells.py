"""What a table is made of: cells with a mean over seeds, rows, and which cell is best."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from lconvnet.ops.rounding import decimal, rounded_down, rounded_up

Side = Literal["nearest", "down", "up"]
NOISE = 5  # decimals of a percentage that files keep: the original's are sums in float32
ROUNDED: Mapping[Side, Callable[[float], str]] = {
    "nearest": lambda value: f"{value:.2f}",
    "down": lambda value: rounded_down(decimal(value), 2),
    "up": lambda value: rounded_up(decimal(value), 2),
}


@dataclass(frozen=True)
class Cell:
    """Mean and population standard deviation over `n` seeds, in the printed unit; without a mean it is missing.

    `side` is where the number of a single seed is rounded to: down what is proved at least, up what is at most; a mean
    of several is a statistic, and rounded to the nearest. `fill` says what would fill a missing cell: a command where
    one exists, nothing where nobody asks for it.
    """

    mean: float | None = None
    std: float = 0.0
    n: int = 0
    best: bool = False
    fill: str = ""
    side: Side = "nearest"

    @property
    def text(self) -> str:
        """What is printed; one seed has no deviation.

        >>> Cell(72.41, 0.22, 5).text, Cell(60.14, 0.0, 1).text, Cell().text
        ('72.41 ± 0.22', '60.14', '—')
        """
        if self.mean is None:
            return "—"
        return f"{self.mean:.2f} ± {self.std:.2f}" if self.n > 1 else ROUNDED[self.side](round(self.mean, NOISE))


def is_command(fill: str) -> bool:
    """Return whether what fills a cell can be typed; otherwise it is a sentence."""
    return fill.startswith(("python ", "lconvnet "))


@dataclass(frozen=True)
class Row:
    """One line of a table: the `block` it belongs to (data set, radius, architecture), its label, its cells."""

    block: str
    label: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """A table; best cells are marked along each row, or along each column within a block."""

    number: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    compared: Literal["row", "column"] = "row"
    notes: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether no cell has a value."""
        return all(cell.mean is None for row in self.rows for cell in row.cells)

    @property
    def seeds(self) -> str:
        """How many seeds the cells are means over.

        >>> Table("1", "", ("A", "B"), (Row("", "", (Cell(1.0, 0.0, 5), Cell(1.0, 0.0, 1))),)).seeds
        '1 to 5 seeds'
        """
        counts = sorted({cell.n for row in self.rows for cell in row.cells if cell.n})
        if counts in ([], [1]):
            return "1 seed"
        return f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"

    @property
    def fills(self) -> dict[str, list[str]]:
        """What fills the missing cells, each with the places it fills."""
        found: dict[str, dict[str, list[str]]] = {}
        for row in self.rows:
            for column, cell in zip(self.columns, row.cells, strict=True):
                if cell.mean is None and cell.fill:
                    found.setdefault(cell.fill, {}).setdefault(f"{row.block}, {column}", []).append(row.label)
        return {
            fill: [f"{place}: {', '.join(labels)}" for place, labels in places.items()]
            for fill, places in found.items()
        }


def summarize(values: Iterable[float], side: Side = "nearest") -> Cell:
    """Return the cell of one value for each seed.

    >>> summarize([1.0, 3.0])
    Cell(mean=2.0, std=1.0, n=2, best=False, fill='', side='nearest')
    """
    array = np.array(list(values), dtype=np.float64)
    return Cell(float(array.mean()), float(array.std()), len(array), side=side) if len(array) else Cell()


def without_empty(table: Table) -> Table:
    """Return the table without the rows and columns that have no value."""
    rows = [row for row in table.rows if any(cell.mean is not None for cell in row.cells)]
    kept = [any(row.cells[place].mean is not None for row in rows) for place in range(len(table.columns))]
    columns = tuple(itertools.compress(table.columns, kept))
    return replace(
        table,
        columns=columns,
        rows=tuple(replace(row, cells=tuple(itertools.compress(row.cells, kept))) for row in rows),
    )


def with_best(table: Table) -> Table:
    """Return the table with the highest cells marked: of each row, or of each column within a block.

    Cells that print the same mean are equal; a cell that is compared with nothing is not marked.
    """
    if table.compared == "row":
        rows = [replace(row, cells=_marked(row.cells)) for row in table.rows]
    else:
        blocks = dict.fromkeys(row.block for row in table.rows)
        rows = [row for block in blocks for row in _marked_block([row for row in table.rows if row.block == block])]
    return replace(table, rows=tuple(rows))


def _marked_block(rows: Sequence[Row]) -> list[Row]:
    columns = [_marked(column) for column in zip(*(row.cells for row in rows), strict=True)]
    return [replace(row, cells=tuple(cells)) for row, cells in zip(rows, zip(*columns, strict=True), strict=True)]


def _marked(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    printed = [None if cell.mean is None else float(cell.text.split()[0]) for cell in cells]
    present = [value for value in printed if value is not None]
    if len(present) < 2:
        return tuple(cells)
    return tuple(
        replace(cell, best=value == max(present)) if value is not None else cell
        for cell, value in zip(cells, printed, strict=True)
    )
