r"""Tables as a LaTeX document that plain `pdflatex` compiles, with booktabs only.

A table that is wider or higher than the page is scaled down; one with many columns or rows is continued in pieces,
so that it stays readable and nothing is cut off.
"""

import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace

from lconvnet.report.cells import Cell, Row, Table, is_command
from lconvnet.report.markdown import caption

MARK = "% written by lconvnet tables"
COLUMNS, ROWS, HEAD_WIDTH = 10, 36, 20
SLASH = r"/\allowbreak{}"
# Uncompressed objects let a PDF say who wrote it.
PREAMBLE = rf"""{MARK}
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
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    '"': r"{''}",
    "ε": r"$\varepsilon$",
    "±": r"$\pm$",
    "—": "---",
}


def latex(tables: Sequence[Table]) -> str:
    """Return the complete document."""
    return PREAMBLE + "\n\n\\bigskip\\filbreak\n".join(_table(table) for table in tables) + "\n\\end{document}\n"


def escape(text: str) -> str:
    r"""Return text that LaTeX prints as it is; letters that its fonts lack lose their accents or become code points.

    >>> print(escape("50% of a_b & ε"))
    50\% of a\_b \& $\varepsilon$
    >>> print(escape("é \u4e2d \\input{x}"))
    e U+4E2D \textbackslash{}input\{x\}
    """
    return "".join(_character(character) for character in " ".join(text.split()))


def _character(character: str) -> str:
    if character in SPECIAL:
        return SPECIAL[character]
    if " " <= character <= "~":
        return character
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    printable = plain if plain.isprintable() else ""
    return "".join(SPECIAL.get(letter, letter) for letter in printable) or f"U+{ord(character):04X}"


def _table(table: Table) -> str:
    pieces = list(_pieces(table))
    parts = [_piece(piece, "" if number == 0 else " (continued)") for number, piece in enumerate(pieces)]
    notes = [rf"{escape(note)}\par" for note in table.notes]
    fills = [rf"{_fill(fill)}: {escape('; '.join(places))}\par" for fill, places in table.fills.items()]
    if fills:
        fills = [r"\textbf{Missing, and what fills it:}\par", *fills]
    return "\n\n".join([*parts, r"{\footnotesize\raggedright", *notes, *fills, "}"])


def _pieces(table: Table) -> Iterator[Table]:
    """Yield parts of a table that fit a page each."""
    for row in range(0, len(table.rows), ROWS):
        for column in range(0, len(table.columns), COLUMNS):
            chosen = slice(column, column + COLUMNS)
            rows = tuple(replace(r, cells=r.cells[chosen]) for r in table.rows[row : row + ROWS])
            yield replace(table, columns=table.columns[chosen], rows=rows)


def _piece(table: Table, suffix: str) -> str:
    head = [rf"\textbf{{{escape(caption(table) + suffix)}}}\par\nobreak\smallskip\nobreak", r"\begin{lrbox}{\tablebox}"]
    begin = rf"\begin{{tabular}}{{ll{'r' * len(table.columns)}}}"
    columns = " & ".join(["", "", *(_head(column) for column in table.columns)])
    rows = list(_rows(table.rows))
    end = [r"\bottomrule", r"\end{tabular}", r"\end{lrbox}", r"\fitted\par\medskip\filbreak"]
    return "\n".join([*head, begin, r"\toprule", rf"{columns} \\", r"\midrule", *rows, *end])


def _rows(rows: Sequence[Row]) -> Iterator[str]:
    above = None
    for row in rows:
        first = row.block != above
        if first and above is not None:
            yield r"\addlinespace"
        cells = [escape(row.block) if first else "", escape(row.label), *(_cell(cell) for cell in row.cells)]
        yield rf"{' & '.join(cells)} \\"
        above = row.block


def _cell(cell: Cell) -> str:
    return rf"\textbf{{{escape(cell.text)}}}" if cell.best else escape(cell.text)


def _head(column: str) -> str:
    """A column's head, on several lines where it is long."""
    lines = textwrap.wrap(column, HEAD_WIDTH, break_long_words=False) or [""]
    if len(lines) == 1:
        return escape(lines[0])
    stacked = r" \\ ".join(map(escape, lines))
    return rf"\begin{{tabular}}[b]{{@{{}}r@{{}}}}{stacked}\end{{tabular}}"


def _fill(fill: str) -> str:
    """A command in typewriter, which may be broken behind its slashes; a sentence as it is."""
    return rf"{{\ttfamily {escape(fill).replace('/', SLASH)}}}" if is_command(fill) else escape(fill)
