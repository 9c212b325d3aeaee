"""The original's command `python -m lconvnet.consolidate --dir runs`, built on this package's functions.

If the results of a folder have another name, such as results-norm-2019-05-21-….yaml, it gets a copy of the newest as
results.yaml, which `lconvnet.export` reads. Nothing is overwritten.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lconvnet.cli import output, start
from lconvnet.report import name_results

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def consolidate(
    folder: Annotated[Path, typer.Option("--dir", help="Folder with results below it.")],
) -> None:
    """Give every folder with results a results.yaml."""
    output.show_named(name_results(folder))


if __name__ == "__main__":
    start(app)
