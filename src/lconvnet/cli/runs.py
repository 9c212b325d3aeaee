"""The commands `lconvnet train | evaluate`: they read arguments, call functions and show results.

Standard output carries results only, and with --json exactly one line.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from lconvnet.cli import options, output
from lconvnet.experiments.loading import load_any
from lconvnet.experiments.run_folder import RunFolder, find_run
from lconvnet.experiments.tasks import Asked, task_of
from lconvnet.importing import adopt


def train_command(
    cfg: Path,
    weights: options.From = None,
    resume: options.Resume = False,
    test: Annotated[bool, typer.Option("--test", help="Evaluate the run afterwards.")] = False,
    no_attacks: options.NoAttacks = False,
    out: options.Out = None,
    data_dir: options.DataDir = None,
    changes: options.Set = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train the experiment in CFG. Checkpoints, record and model.safetensors go to its folder or to --out. With
    --from it starts from the weights of another run, for example to train that run for longer."""
    given = options.overrides(changes, data_dir)
    train(cfg, given, out=out, weights=weights, resume=resume, as_json=as_json and not test, quiet=quiet)
    if test:
        place = options.overrides(None, data_dir)
        evaluate(RunFolder(out or cfg.parent), place, attacks=not no_attacks, as_json=as_json, quiet=quiet)


def evaluate_command(
    run: Path,
    other: options.OtherData = None,
    no_attacks: options.NoAttacks = False,
    data_dir: options.DataDir = None,
    changes: options.Set = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure a trained run on the test images and write its results.yaml and examples.parquet. The same command
    resumes an interrupted evaluation; it trains nothing. RUN may hold weights that others published (runs/baselines).
    With --data it measures the images of another folder and writes into a separate folder below RUN.
    """
    given = options.overrides(changes, data_dir if other is None else None)
    adopt(run, given)
    evaluate(find_run(run), given, attacks=not no_attacks, as_json=as_json, quiet=quiet, other=other, data_dir=data_dir)


def train(
    cfg: Path,
    changes: Sequence[str],
    *,
    out: Path | None,
    resume: bool,
    as_json: bool,
    quiet: bool,
    weights: Path | None = None,
) -> None:
    """Train and show the result."""
    output.configure_logging(quiet)
    experiment, folder = load_any(cfg, changes), RunFolder(out or cfg.parent)
    asked = Asked(source=cfg, weights=weights, resume=resume, progress=not quiet)
    output.show_outcome(task_of(experiment).train(experiment, folder, asked), as_json=as_json)


def evaluate(
    folder: RunFolder,
    changes: Sequence[str],
    *,
    attacks: bool,
    as_json: bool,
    quiet: bool,
    other: str | None = None,
    data_dir: str | None = None,
) -> None:
    """Measure a trained run, on the images of the folder `other` if one is named, and show the result."""
    output.configure_logging(quiet)
    experiment = load_any(folder.config, changes) if folder.is_configured else None
    task = task_of(experiment)
    with output.evaluation_progress(quiet) as report:
        asked = Asked(changes=changes, attacks=attacks, report=report, directory=data_dir)
        found = task.evaluate_on(other, folder, asked) if other else task.evaluate(experiment, folder, asked)
    output.show_outcome(found, as_json=as_json)
