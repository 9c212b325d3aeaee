"""The commands `lconvnet tables | plot`: what was measured, as tables and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lconvnet.cli import options, output
from lconvnet.experiments.run_folder import find_run
from lconvnet.report import export
from lconvnet.report.pictures import draw


def tables_command(
    folder: Path,
    out: options.ReportOut = None,
    readme: Annotated[Path | None, typer.Option(help="Markdown file whose table of results is updated.")] = None,
    as_json: options.Json = False,
) -> None:
    """Show the tables of all runs below FOLDER and write them as Markdown, LaTeX, CSV and PDF."""
    output.show_report(export(folder, out, readme), as_json=as_json)


def plot_command(
    runs: list[Path],
    out: Annotated[Path, typer.Option("--out", help="Folder of the pictures.")] = Path("pictures"),
    images: Annotated[int, typer.Option("--images", min=0, help="Test images beside their nearest adversary.")] = 8,
    data_dir: options.DataDir = None,
) -> None:
    """Draw certified and attacked accuracy against radius for several runs, singular values, and images."""
    for path in draw([find_run(run) for run in runs], out, images=images, overrides=options.overrides(None, data_dir)):
        output.echo(path)
