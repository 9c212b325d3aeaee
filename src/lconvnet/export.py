"""The original's command `python -m lconvnet.export --dir runs [--out DIR]`, built on this package's functions.

It shows the tables of all runs below a folder and writes them as the original's table.tex. `lconvnet tables` has the
other formats.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lconvnet.cli import options, output, start
from lconvnet.report import export_tex

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def export(
    folder: Annotated[Path, typer.Option("--dir", help="Folder with results.yaml files below it.")],
    out: options.TexOut = None,
) -> None:
    """Write the tables of all runs below a folder as LaTeX."""
    output.show_report(export_tex(folder, out))


if __name__ == "__main__":
    start(app)
