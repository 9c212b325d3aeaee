"""The original's command over the same functions: `python -m lconvnet.consolidate --dir runs [--out DIR]`.

Writes one machine-readable file with the facts and metrics of every run (consolidated.json, and consolidated.csv with
a row for each) and says how many runs it read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lconvnet.cli import options, output, start
from lconvnet.report import consolidate as write

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def consolidate(
    folder: Annotated[Path, typer.Option("--dir", help="Folder with results.yaml files below it.")],
    out: options.ReportOut = None,
) -> None:
    """Collect the results of all runs below a folder into one file."""
    output.show_report(write(folder, out))


if __name__ == "__main__":
    start(app)
