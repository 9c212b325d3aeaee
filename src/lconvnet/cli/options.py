"""Arguments shared by several commands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from lconvnet.experiments import reading

Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the configuration.")]
DataDir = Annotated[str | None, typer.Option("--data-dir", help="Folder that holds <name>/*.parquet.")]
Json = Annotated[bool, typer.Option("--json", help="Print one machine-readable last line.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder (default: the folder of CFG).")]
ReportOut = Annotated[
    Path | None, typer.Option("--out", help="Folder of the files (default: tables/ in the one read).")
]
TexOut = Annotated[Path | None, typer.Option("--out", help="Folder of table.tex (default: the one read).")]
From = Annotated[
    Path | None, typer.Option("--from", metavar="RUN", help="Start from the weights of another run; needs --out.")
]
OtherData = Annotated[
    str | None, typer.Option("--data", metavar="FOLDER", help="Other labelled images, by path or name, of its classes.")
]
NoAttacks = Annotated[bool, typer.Option("--no-attacks", help="Clean and certified accuracy only.")]


def number(text: str | float) -> float:
    """Return the number given as an option."""
    try:
        return reading.number(str(text))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def overrides(changes: Sequence[str] | None, data_dir: str | None) -> list[str]:
    """Return all changes to the configuration; a folder name is quoted, so that it is read literally."""
    place = None if data_dir is None else json.dumps(data_dir, ensure_ascii=False)
    return [*(changes or ()), *([] if place is None else [f"data.directory={place}"])]
