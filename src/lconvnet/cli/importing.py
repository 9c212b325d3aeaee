"""The command `lconvnet import`: weights that others trained become a run folder of this package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lconvnet import importing
from lconvnet.cli import options, output
from lconvnet.ops.rounding import decimals, rounded_up

Old = Annotated[Path, typer.Argument(metavar="OLD", help="Run folder of the original, or its cfg.yaml.")]
NOTICEABLE = 1e-3  # of a singular value: nearer to 1, a scale off by a few percent moves it by less than this
New = Annotated[Path, typer.Argument(metavar="NEW", help="Folder to write; OLD stays as it is.")]


def import_command(old: Old, new: New, as_json: options.Json = False) -> None:
    """Write what OLD holds as the run folder NEW: cfg.yaml, weights, record and the baked network with its bound."""
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
        facts = {
            "unfinished": found.unfinished,
            "epoch": found.epoch,
            "bound": found.bound.upper,
            "level": found.bound.level,
        }
        output.show_json({**facts, "model": str(found.path), "run": str(new)})
