r"""A table and its output formats: terminal, Markdown, CSV, LaTeX and PDF.

The LaTeX document needs only plain `pdflatex` with booktabs. A table that is wider or higher than the page is scaled
down. One with many columns or rows continues in pieces, so that it stays readable and nothing is cut off.
"""

import csv
import io
import itertools
import os
import re
import shutil
import subprocess
import tempfile
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Group
from rich.table import Column as RichColumn
from rich.table import Table as RichTable
from rich.text import Text

from lconvnet.ops.rounding import decimal, rounded_down, rounded_up
from lconvnet.visible import printable

Side = Literal["nearest", "down", "up"]
NOISE = 5  # decimals of a percentage that files keep, because the original's are sums in float32

CSV_HEADER = ("table", "row", "column", "mean", "std", "n", "best", "missing")
MARKDOWN_MARK, LATEX_MARK = "<!-- written by lconvnet tables -->", "% written by lconvnet tables"
PDF_MARK = b"lconvnet tables"
INDENT, BORDER, TERMINAL_HEAD = "  ", 3, 16
LATEX_COLUMNS, LATEX_ROWS, LATEX_HEAD = 10, 36, 20
BREAKABLE_SLASH = r"/\allowbreak{}"
# Without compressed objects, a PDF shows its creator in plain text.
PREAMBLE = rf"""{LATEX_MARK}
\documentclass[a4paper,10pt]{{article}}
\usepackage[landscape,margin=15mm]{{geometry}}
\usepackage{{booktabs}}
\usepackage{{graphicx}}
\pdfobjcompresslevel=0
\pdfinfo{{/Creator (lconvnet tables)}}
\setlength{{\parindent}}{{0pt}}
\newsavebox{{\tablebox}}
\newcommand{{\fitted}}{{%
  \ifdim\wd\tablebox>\linewidth\sbox{{\tablebox}}{{\resizebox{{\linewidth}}{{!}}{{\usebox{{\tablebox}}}}}}\fi
  \ifdim\dimexpr\ht\tablebox+\dp\tablebox>0.9\textheight
    \sbox{{\tablebox}}{{\resizebox*{{!}}{{0.9\textheight}}{{\usebox{{\tablebox}}}}}}\fi
  \usebox{{\tablebox}}}}
\begin{{document}}
"""
SPECIAL = {
    "\\": r"\textbackslash{}",
    **{letter: f"\\{letter}" for letter in "{}$&#%_"},
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    **{letter: f"${letter}$" for letter in "<>|"},
    '"': r"{''}",
    "ε": r"$\varepsilon$",
    "±": r"$\pm$",
    "—": "---",
}
PDF_SECONDS = 60
INSTALL = "install it (Debian: apt-get install texlive-latex-base texlive-latex-recommended)"


@dataclass(frozen=True)
class Cell:
    """Mean and population standard deviation over `n` seeds, in the printed unit; without a mean the cell is missing.

    `side` is the rounding direction for a single seed: down for a proved minimum, up for a maximum. A mean of several
    is a statistic and is rounded to the nearest. `fill` is the remedy for a missing cell: a command if one exists, else
    a sentence; empty if the cell is not expected.
    """

    mean: float | None = None
    std: float = 0.0
    n: int = 0
    best: bool = False
    fill: str = ""
    side: Side = "nearest"

    @property
    def text(self) -> str:
        """The printed text; a single seed has no deviation.

        >>> Cell(72.41, 0.22, 5).text, Cell(60.14, 0.0, 1).text, Cell().text
        ('72.41 ± 0.22', '60.14', '—')
        """
        if self.mean is None:
            return "—"
        if self.n > 1 or self.side == "nearest":
            mean = self.mean if self.n > 1 else round(self.mean, NOISE)
            return f"{mean:.2f}" + (f" ± {self.std:.2f}" if self.n > 1 else "")
        rounded = rounded_down if self.side == "down" else rounded_up
        return rounded(decimal(round(self.mean, NOISE)), 2)


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
    def caption(self) -> str:
        """The line above the table.

        >>> Table("1", "Accuracy (%)", ("A", "B"), (Row("", "", (Cell(1.0, 0.0, 5), Cell(1.0, 0.0, 1))),)).caption
        'Table 1. Accuracy (%). Mean ± standard deviation over 1 to 5 seeds; best in bold.'
        """
        counts = sorted({cell.n for row in self.rows for cell in row.cells if cell.n}) or [1]
        seeds = " to ".join(dict.fromkeys((str(counts[0]), str(counts[-1])))) + (" seed" if counts == [1] else " seeds")
        return f"Table {self.number}. {self.title}. Mean ± standard deviation over {seeds}; best in bold."

    @property
    def fills(self) -> dict[str, str]:
        """The remedies for the missing cells, each with the places it fills."""
        found: dict[str, dict[str, list[str]]] = {}
        for row in self.rows:
            for column, cell in zip(self.columns, row.cells, strict=True):
                if cell.mean is None and cell.fill:
                    found.setdefault(cell.fill, {}).setdefault(f"{row.block}, {column}", []).append(row.label)
        return {
            fill: "; ".join(f"{place}: {', '.join(labels)}" for place, labels in places.items())
            for fill, places in found.items()
        }

    @property
    def headed(self) -> Iterator[tuple[str, Row]]:
        """Each row with its block; the block is empty below its first row."""
        for above, row in zip((None, *self.rows), self.rows, strict=False):
            yield "" if above and above.block == row.block else row.block, row

    def part(self, first: int, last: int) -> "Table":
        """The same rows with some of the columns."""
        rows = tuple(replace(row, cells=row.cells[first:last]) for row in self.rows)
        return replace(self, columns=self.columns[first:last], rows=rows)


def summarize(values: Iterable[float], side: Side = "nearest") -> Cell:
    """Return the cell of one value per seed.

    >>> summarize([1.0, 3.0])
    Cell(mean=2.0, std=1.0, n=2, best=False, fill='', side='nearest')
    """
    array = np.array(list(values), dtype=np.float64)
    return Cell(float(array.mean()), float(array.std()), len(array), side=side) if len(array) else Cell()


def without_empty(table: Table) -> Table:
    """Return the table without the rows and columns that have no value."""
    rows = [row for row in table.rows if any(cell.mean is not None for cell in row.cells)]
    kept = [any(row.cells[place].mean is not None for row in rows) for place in range(len(table.columns))]
    narrow = tuple(replace(row, cells=tuple(itertools.compress(row.cells, kept))) for row in rows)
    return replace(table, columns=tuple(itertools.compress(table.columns, kept)), rows=narrow)


def with_best(table: Table) -> Table:
    """Return the table with the highest cells marked, of each row or of each column within a block.

    Cells that print the same mean are equal; a cell without others to compare is not marked.
    """
    if table.compared == "row":
        return replace(table, rows=tuple(replace(row, cells=_marked(row.cells)) for row in table.rows))
    blocks: dict[str, list[Row]] = {}
    for row in table.rows:
        blocks.setdefault(row.block, []).append(row)
    marked = []
    for rows in blocks.values():
        columns = [_marked(cells) for cells in zip(*(row.cells for row in rows), strict=True)]
        marked += [replace(row, cells=cells) for row, cells in zip(rows, zip(*columns, strict=True), strict=True)]
    return replace(table, rows=tuple(marked))


def terminal(table: Table, width: int) -> Group:
    """Return a table for the terminal, with its caption, notes and the remedies for missing cells.

    If it is wider than `width`, the remaining columns follow below: no number is ever cut.
    """
    fills = [f"missing: {places}\n    {fill}" for fill, places in table.fills.items()]
    below = map(_text, (*table.notes, *fills))
    return Group(_text(table.caption, style="bold"), *map(_grid, _fitting(table, width)), *below, Text(""))


def markdown(tables: Sequence[Table]) -> str:
    """Return a Markdown document: best cells in bold, remedies for missing cells below each table."""
    return "\n".join([MARKDOWN_MARK, "", "# Tables", "", *map(_markdown_table, tables)])


def to_csv(tables: Sequence[Table]) -> str:
    """Return all cells in long form, one line per cell, with exact numbers. For a missing cell, `missing` is its remedy
    or `not run`.

    >>> table = Table("1", "", ("BCOP",), (Row("MNIST", "Clean", (Cell(97.5, 0.25, 2),)),))
    >>> print(to_csv([table]).splitlines()[1])
    1,"MNIST, Clean",BCOP,97.5,0.25,2,false,
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for table in tables:
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                missing = cell.mean is None
                numbers = ("", "") if missing else (cell.mean, cell.std)
                last = (cell.n, str(cell.best).lower(), (cell.fill or "not run") if missing else "")
                writer.writerow((table.number, f"{row.block}, {row.label}", column, *numbers, *last))
    return text.getvalue()


def latex(tables: Sequence[Table]) -> str:
    """Return the complete LaTeX document."""
    return PREAMBLE + "\n\n\\bigskip\\filbreak\n".join(map(_latex_table, tables)) + "\n\\end{document}\n"


def escape_markdown(text: str) -> str:
    r"""Return text that Markdown shows unchanged, on one line.

    >>> escape_markdown("a|b_c*d")
    'a\\|b\\_c\\*d'
    """
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def escape_latex(text: str) -> str:
    r"""Return text that LaTeX prints unchanged; letters missing from its fonts lose accents or become code points.

    >>> print(escape_latex("50% of a_b & ε"))
    50\% of a\_b \& $\varepsilon$
    >>> print(escape_latex("é \u4e2d \\input{x}"))
    e U+4E2D \textbackslash{}input\{x\}
    """
    made = []
    for letter in " ".join(text.split()):
        plain = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
        known = letter in SPECIAL or " " <= letter <= "~"
        kept = letter if known else plain if plain.isprintable() else ""
        made.append("".join(SPECIAL.get(part, part) for part in kept) or f"U+{ord(letter):04X}")
    return "".join(made)


class NoPdfError(RuntimeError):
    """The document could not be compiled; the message gives the reason and the remedy."""


def compile_pdf(document: str) -> bytes:
    """Return the PDF of a LaTeX document, the same bytes for the same document.

    It is compiled in a temporary folder, without the shell and without access to files elsewhere. Raises `NoPdfError`
    if `pdflatex` is absent, takes longer than a minute, or reports an error.
    """
    program = shutil.which("pdflatex")
    if program is None:
        raise NoPdfError(f"pdflatex is not installed; {INSTALL}")
    command = [program, "-no-shell-escape", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    # A fixed date: equal documents give equal files.
    paranoid = {"openin_any": "p", "openout_any": "p", "SOURCE_DATE_EPOCH": "0", "FORCE_SOURCE_DATE": "1"}
    options = {"env": {**os.environ, **paranoid}, "stdin": subprocess.DEVNULL, "timeout": PDF_SECONDS}
    with tempfile.TemporaryDirectory() as name:
        source, made = Path(name, "table.tex"), Path(name, "table.pdf")
        source.write_text(document, encoding="utf-8")
        try:
            done = subprocess.run(command, cwd=name, capture_output=True, check=False, **options)
        except subprocess.TimeoutExpired:
            raise NoPdfError(f"pdflatex took more than {PDF_SECONDS} seconds; compile table.tex yourself") from None
        if done.returncode or not made.exists():
            lines = done.stdout.decode(errors="replace").splitlines()
            first = next((line for line in lines if line.startswith("!")), f"{len(lines)} lines of output")
            raise NoPdfError(f"pdflatex failed ({first}); compile table.tex yourself to see more")
        return made.read_bytes()


def _is_command(fill: str) -> bool:
    """Whether a remedy is a command to type; otherwise it is a sentence."""
    return fill.startswith(("python ", "lconvnet "))


def _wrapped(head: str, width: int) -> list[str]:
    return textwrap.wrap(head, width, break_long_words=False) or [""]


def _marked(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    printed = [None if cell.mean is None else float(cell.text.split()[0]) for cell in cells]
    present = [value for value in printed if value is not None]
    if len(present) < 2:
        return tuple(cells)
    return tuple(replace(cell, best=value == max(present)) for cell, value in zip(cells, printed, strict=True))


def _text(content: str, style: str = "") -> Text:
    """Lines without markup."""
    return Text("\n".join(map(printable, content.split("\n"))), style)


def _grid(table: Table) -> RichTable:
    """One grid, in which each block has its own line."""
    heads = (_text("\n".join(_wrapped(name, TERMINAL_HEAD))) for name in table.columns)
    grid = RichTable(RichColumn(no_wrap=True), *(RichColumn(head, justify="right", no_wrap=True) for head in heads))
    for block, row in table.headed:
        if block:
            grid.add_section()
            grid.add_row(_text(block, style="italic"))
        cells = (_text(cell.text, style="bold" if cell.best else "") for cell in row.cells)
        grid.add_row(_text(f"{INDENT}{row.label}"), *cells)
    return grid


def _fitting(table: Table, width: int) -> Iterator[Table]:
    """Yield the table in groups of columns that fit beside the labels, at least one column per group."""
    start = BORDER + 1 + max((max(len(row.block), len(INDENT + row.label)) for row in table.rows), default=0)
    first, used = 0, start
    for place, name in enumerate(table.columns):
        texts = (*(row.cells[place].text for row in table.rows), *_wrapped(name, TERMINAL_HEAD))
        needed = max(map(len, texts)) + BORDER
        if used + needed > width and place > first:
            yield table.part(first, place)
            first, used = place, start
        used += needed
    yield table.part(first, len(table.columns))


def _markdown_table(table: Table) -> str:
    head = ["", "", *map(escape_markdown, table.columns)]
    rule = ["---", "---", *("--:" for _ in table.columns)]
    rows = [
        [*map(escape_markdown, (block, row.label)), *(f"**{c.text}**" if c.best else c.text for c in row.cells)]
        for block, row in table.headed
    ]
    grid = [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]
    notes = [f"- {escape_markdown(note)}" for note in table.notes]
    fills = ["", "Missing, and what fills it:", ""] if table.fills else []
    for fill, places in table.fills.items():
        command = f"`{' '.join(fill.replace('`', '').split())}`"
        fills.append(f"- {command if _is_command(fill) else escape_markdown(fill)}: {escape_markdown(places)}")
    end = [""] if notes or fills else []
    return "\n".join([f"## {escape_markdown(table.caption)}", "", *grid, "", *notes, *fills, *end])


def _latex_table(table: Table) -> str:
    pieces = [
        replace(table, rows=table.rows[row : row + LATEX_ROWS]).part(column, column + LATEX_COLUMNS)
        for row in range(0, len(table.rows), LATEX_ROWS)
        for column in range(0, len(table.columns), LATEX_COLUMNS)
    ]
    parts = [
        _latex_piece(piece, piece.caption + (" (continued)" if number else "")) for number, piece in enumerate(pieces)
    ]
    notes = [rf"{escape_latex(note)}\par" for note in table.notes]
    fills = [r"\textbf{Missing, and what fills it:}\par"] if table.fills else []
    for fill, places in table.fills.items():
        said = escape_latex(fill)
        if _is_command(fill):  # in typewriter, with line breaks allowed after slashes
            said = rf"{{\ttfamily {said.replace('/', BREAKABLE_SLASH)}}}"
        fills.append(rf"{said}: {escape_latex(places)}\par")
    return "\n\n".join([*parts, r"{\footnotesize\raggedright", *notes, *fills, "}"])


def _latex_piece(table: Table, caption: str) -> str:
    head = [rf"\textbf{{{escape_latex(caption)}}}\par\nobreak\smallskip\nobreak", r"\begin{lrbox}{\tablebox}"]
    begin = rf"\begin{{tabular}}{{ll{'r' * len(table.columns)}}}"
    columns = " & ".join(["", "", *map(_latex_head, table.columns)])
    rows = []
    for number, (block, row) in enumerate(table.headed):
        texts = (rf"\textbf{{{escape_latex(c.text)}}}" if c.best else escape_latex(c.text) for c in row.cells)
        rows += [r"\addlinespace"] if block and number else []
        rows.append(rf"{' & '.join([escape_latex(block), escape_latex(row.label), *texts])} \\")
    end = [r"\bottomrule", r"\end{tabular}", r"\end{lrbox}", r"\fitted\par\medskip\filbreak"]
    return "\n".join([*head, begin, r"\toprule", rf"{columns} \\", r"\midrule", *rows, *end])


def _latex_head(column: str) -> str:
    """A column's head, on several lines if it is long."""
    lines = [escape_latex(line) for line in _wrapped(column, LATEX_HEAD)]
    stacked = r" \\ ".join(lines)
    return lines[0] if len(lines) == 1 else rf"\begin{{tabular}}[b]{{@{{}}r@{{}}}}{stacked}\end{{tabular}}"
