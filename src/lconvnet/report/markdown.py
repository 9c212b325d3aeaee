"""Tables as Markdown: best cells bold, what would fill the missing ones below."""

import re
from collections.abc import Sequence

from lconvnet.report.cells import Cell, Row, Table, is_command

MARK = "<!-- written by lconvnet tables -->"


def markdown(tables: Sequence[Table]) -> str:
    """Return a document with all tables."""
    return "\n".join([MARK, "", "# Tables", "", *(_table(table) for table in tables)])


def caption(table: Table) -> str:
    """Return the line above a table.

    >>> caption(Table("1", "Accuracy (%)", (), ()))
    'Table 1. Accuracy (%). Mean ± standard deviation over 1 seed; best in bold.'
    """
    return f"Table {table.number}. {table.title}. Mean ± standard deviation over {table.seeds}; best in bold."


def _table(table: Table) -> str:
    head = ["", "", *(escape(column) for column in table.columns)]
    rule = ["---", "---", *("--:" for _ in table.columns)]
    blocks = ["", *(row.block for row in table.rows)]
    rows = [_row(row, row.block != above) for row, above in zip(table.rows, blocks, strict=False)]
    lines = [f"## {escape(caption(table))}", "", _line(head), _line(rule), *rows, ""]
    notes = [f"- {escape(note)}" for note in table.notes]
    fills = [f"- {_code(fill)}: {escape('; '.join(places))}" for fill, places in table.fills.items()]
    if fills:
        fills = ["", "Missing, and what fills it:", "", *fills]
    return "\n".join([*lines, *notes, *fills, *([""] if notes or fills else [])])


def _row(row: Row, first: bool) -> str:
    return _line([escape(row.block) if first else "", escape(row.label), *(_cell(cell) for cell in row.cells)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    return f"**{cell.text}**" if cell.best else cell.text


def escape(text: str) -> str:
    r"""Return text that Markdown shows as it is, on one line.

    >>> escape("a|b_c*d")
    'a\\|b\\_c\\*d'
    """
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _code(fill: str) -> str:
    """A command in code; a sentence as it is."""
    return f"`{' '.join(fill.replace('`', '').split())}`" if is_command(fill) else escape(fill)
