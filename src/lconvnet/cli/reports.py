"""The commands `lconvnet tables | plot | import`: results as tables and pictures, and import of original runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lconvnet import importing
from lconvnet.cli import options, output
from lconvnet.experiments.run_folder import find_run
from lconvnet.ops.rounding import decimals, rounded_up
from lconvnet.report import export
from lconvnet.report.pictures import draw

NOTICEABLE = 1e-3  # distance of a singular value from 1; if nearer, a scale error of a few percent moves it by less


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


def import_command(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="Run folder of the original, or its cfg.yaml.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Folder to write; OLD stays as it is.")],
    as_json: options.Json = False,
) -> None:
    """Convert the run OLD to the run folder NEW: cfg.yaml, weights, record and the baked network with its bound."""
    found = importing.import_run(old, new)
    upper = rounded_up(found.bound.upper, 9)
    output.PlainConsole(stderr=as_json).print(
        f"imported epoch {found.epoch}; Lipschitz bound {upper} ({found.bound.level}); saved {found.path}"
    )
    if found.unfinished > NOTICEABLE:
        left = rounded_up(found.unfinished, decimals(found.unfinished, 1))
        output.PlainConsole(stderr=True).print(
            f"note: the original's Björck steps left singular values up to {left} from 1; there its "
            "outputs depend on the random start of its power iteration, which no file keeps"
        )
    if as_json:
        facts = {"unfinished": found.unfinished, "epoch": found.epoch, "bound": found.bound.upper}
        output.show_json({**facts, "level": found.bound.level, "model": str(found.path), "run": str(new)})
