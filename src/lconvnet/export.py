"""The original's command over the same functions: `python -m lconvnet.export --dir runs [--out DIR]`.

Writes table.md, table.tex, table.csv and, where pdflatex is installed, table.pdf, as `lconvnet tables` does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lconvnet.cli import options, output, start
from lconvnet.report import export as write

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def export(
    folder: Annotated[Path, typer.Option("--dir", help="Folder with results.yaml files below it.")],
    out: options.ReportOut = None,
) -> None:
    """Write the tables of all runs below a folder."""
    output.show_report(write(folder, out))


if __name__ == "__main__":
    start(app)
