"""Tables for the terminal: rich renderables, which the commands print."""

import textwrap
from collections.abc import Iterator
from dataclasses import replace

from rich.console import Group
from rich.table import Column as RichColumn
from rich.table import Table as RichTable
from rich.text import Text

from lconvnet.printable import printable
from lconvnet.report.cells import Row, Table
from lconvnet.report.markdown import caption

INDENT, BORDER, HEAD_WIDTH = "  ", 3, 16


def renderable(table: Table, width: int) -> Group:
    """Return a table with its caption, notes and what would fill the missing cells.

    Where it is wider than `width` it is continued below with the next columns: no number is ever cut.
    """
    fills = [f"missing: {'; '.join(places)}\n    {fill}" for fill, places in table.fills.items()]
    below = map(_text, (*table.notes, *fills))
    return Group(_text(caption(table), style="bold"), *map(_grid, _pieces(table, width)), *below, Text(""))


def _grid(table: Table) -> RichTable:
    """One grid, in which each block has a line of its own."""
    heads = (_text("\n".join(_head(name))) for name in table.columns)
    grid = RichTable(RichColumn(no_wrap=True), *(RichColumn(head, justify="right", no_wrap=True) for head in heads))
    above = None
    for row in table.rows:
        if row.block != above:
            grid.add_section()
            grid.add_row(_text(row.block, style="italic"))
        cells = (_text(cell.text, style="bold" if cell.best else "") for cell in row.cells)
        grid.add_row(_text(f"{INDENT}{row.label}"), *cells)
        above = row.block
    return grid


def _text(content: str, style: str = "") -> Text:
    """Lines without markup."""
    return Text("\n".join(map(printable, content.split("\n"))), style)


def _pieces(table: Table, width: int) -> Iterator[Table]:
    """Yield the table in groups of columns that fit beside the labels, at least one in each."""
    start = BORDER + 1 + max((_label_width(row) for row in table.rows), default=0)
    first, used = 0, start
    for place, name in enumerate(table.columns):
        needed = _needed(table, name) + BORDER
        if used + needed > width and place > first:
            yield _columns(table, first, place)
            first, used = place, start
        used += needed
    yield _columns(table, first, len(table.columns))


def _columns(table: Table, first: int, last: int) -> Table:
    rows = tuple(replace(row, cells=row.cells[first:last]) for row in table.rows)
    return replace(table, columns=table.columns[first:last], rows=rows)


def _needed(table: Table, name: str) -> int:
    """The width of a column, in which no number and no line of the head is broken."""
    place = table.columns.index(name)
    return max(map(len, (*(row.cells[place].text for row in table.rows), *_head(name))))


def _head(name: str) -> list[str]:
    return textwrap.wrap(name, HEAD_WIDTH, break_long_words=False) or [""]


def _label_width(row: Row) -> int:
    return max(len(row.block), len(INDENT + row.label))
