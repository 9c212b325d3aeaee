"""The commands `lconvnet train | evaluate | certify`: arguments in, functions called, results shown.

Exit codes: 0 done, 2 the user's input (one line on standard error), 3 interrupted and resumable, 1 a bug or a
contradicted certificate. Standard output carries results only, and with --json exactly one line.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from lconvnet import saving
from lconvnet.bounds import lipschitz_bound
from lconvnet.certify import certify as certify_images
from lconvnet.experiments import execute
from lconvnet.experiments.images import read_images
from lconvnet.experiments.loading import load
from lconvnet.experiments.robustness import ContradictionError
from lconvnet.experiments.run_folder import RunFolder, find_run
from lconvnet.ops.rounding import rounded_up
from lconvnet.training import Interrupted
from lconvnet.training.reporting import validated

PACKAGE = Path(__file__).parent
RESUMABLE = "interrupted; the same command with --resume continues"
TYPERS_INTERRUPT = 130
app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train, evaluate and certify 1-Lipschitz networks.",
)

Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the configuration.")]
DataDir = Annotated[str | None, typer.Option("--data-dir", help="Folder that holds <name>/*.parquet.")]
Json = Annotated[bool, typer.Option("--json", help="Print one machine-readable last line.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder (default: the folder of CFG).")]
NoAttacks = Annotated[bool, typer.Option("--no-attacks", help="Clean and certified accuracy only.")]


@app.callback()
def commands() -> None:
    """Train, evaluate and certify 1-Lipschitz networks."""


@app.command("train")
def train_command(
    cfg: Path,
    resume: Resume = False,
    out: Out = None,
    data_dir: DataDir = None,
    changes: Set = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train the experiment CFG describes; checkpoints, record and model.safetensors go to its folder or to
    --out."""
    train(cfg, overrides(changes, data_dir), out=out, resume=resume, as_json=as_json, quiet=quiet)


@app.command("evaluate")
def evaluate_command(
    run: Path,
    no_attacks: NoAttacks = False,
    data_dir: DataDir = None,
    changes: Set = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a trained run on the test images and write its results.yaml and certificates.parquet."""
    evaluate(find_run(run), overrides(changes, data_dir), attacks=not no_attacks, as_json=as_json, quiet=quiet)


@app.command("certify")
def certify_command(
    model: Path,
    images: list[Path],
    eps: Annotated[list[float] | None, typer.Option("--eps", help="Say whether each radius exceeds EPS.")] = None,
    as_json: Json = False,
) -> None:
    """Certify image files (png, jpg, npy): MODEL is a run folder or a model.safetensors."""
    path = find_run(model).model if model.is_dir() else model
    description, network = saving.describe(path), saving.load(path)
    if description.input_shape is None:
        raise ValueError(f"{path} does not say the shape of its images; save it with input_shape=(C, H, W)")
    bound = lipschitz_bound(network, input_shape=description.input_shape)
    found = certify_images(network, read_images(images, description.input_shape), bound=bound)
    rows = [
        {
            "image": str(image),
            "label": int(found.label[i]),
            "class": description.class_names[int(found.label[i])] if description.class_names else None,
            "margin": float(found.margin[i]),
            "radius": float(found.radius[i]),
            "certified": {str(e): bool(found.radius[i] > e) for e in eps or ()},
        }
        for i, image in enumerate(images)
    ]
    show_certificates(rows, found.level, bound.upper, Console(stderr=as_json))
    if as_json:
        show_json({"level": found.level, "bound": bound.upper, "certificates": rows})


def train(cfg: Path, changes: Sequence[str], *, out: Path | None, resume: bool, as_json: bool, quiet: bool) -> None:
    """Train and say what came out."""
    show_progress(quiet)
    experiment = load(cfg, changes)
    folder = RunFolder(out or cfg.parent)
    trained = execute.train(experiment, folder, source=cfg, resume=resume, progress=not quiet)
    best = trained.record.best
    certified = {str(eps): value for eps, value in best.certified.items()}
    Console(stderr=as_json, soft_wrap=True, highlight=False).print(
        f"kept epoch {best.epoch} of {len(trained.record.epochs)} ({validated(best)}); "
        f"Lipschitz bound {rounded_up(trained.bound.upper, 9)} ({trained.bound.level}); saved {trained.path}"
    )
    if as_json:
        validation = {"clean": best.clean, "certified": certified}
        facts = {"epoch": best.epoch, "validation": validation, "bound": trained.bound.upper}
        show_json({**facts, "level": trained.bound.level, "model": str(trained.path), "run": str(folder.path)})


def evaluate(folder: RunFolder, changes: Sequence[str], *, attacks: bool, as_json: bool, quiet: bool) -> None:
    """Evaluate and show the table of results."""
    show_progress(quiet)
    report = logging.getLogger("lconvnet").info
    found = execute.evaluate(folder, changes, attacks=attacks, report=report)
    show_results(found.results, found.path, Console(stderr=as_json))
    if as_json:
        rows: Mapping[float, Mapping[str, float]] = found.results["adv_robustness"]
        certified = {str(eps): row["lb"] for eps, row in rows.items()}
        found_ub = {str(eps): {k: v for k, v in row.items() if "-ub" in k} for eps, row in rows.items()}
        attacked = {eps: row for eps, row in found_ub.items() if row}
        facts = {
            key: found.results[key] for key in ("loss", "epoch", "finished", "data", "note") if key in found.results
        }
        bound = {"bound": found.bound.upper, "level": found.certificates.level}
        clean = {"clean": found.results["accuracy"], "certified": certified}
        show_json({**clean, **bound, **facts, "attacks": attacked, "results": str(found.path)})


def overrides(changes: Sequence[str] | None, data_dir: str | None) -> list[str]:
    """Return all changes to the configuration; a folder name is quoted, so that YAML leaves it as it is."""
    return [*(changes or ()), *([f"data.directory={json.dumps(data_dir)}"] if data_dir is not None else [])]


def show_json(values: Mapping[str, Any]) -> None:
    """Print one line of JSON."""
    typer.echo(json.dumps(values, allow_nan=False))


def show_progress(quiet: bool) -> None:
    """Send the package's log to standard error, warnings only where quiet."""
    logger = logging.getLogger("lconvnet")
    logger.handlers = [logging.StreamHandler()]
    logger.setLevel(logging.WARNING if quiet else logging.INFO)


def show_results(results: Mapping[str, Any], path: Path, console: Console) -> None:
    """Show results.yaml as a table, one row for each eps."""
    rows: Mapping[float, Mapping[str, float]] = results["adv_robustness"]
    attacks = sorted({key for row in rows.values() for key in row if key.endswith("-ub")}, reverse=True)
    table = Table("eps", "clean", "certified", *(f"under {key.removesuffix('-ub')}" for key in attacks))
    for eps, row in rows.items():
        cells = [f"{row[key]:.2%}" if key in row else "" for key in ("natural", "lb", *attacks)]
        table.add_row(f"{eps:g}", *cells)
    console.print(table)
    console.print(f"{results['data']}, epoch {results['epoch']}", soft_wrap=True, highlight=False)
    if "note" in results:
        console.print(results["note"], soft_wrap=True, highlight=False)
    constant = results["sanity_check/layer-l-constant"]
    console.print(
        f"Lipschitz bound {rounded_up(constant, 9)} ({results['level']}); {path}", soft_wrap=True, highlight=False
    )


def show_certificates(rows: Sequence[Mapping[str, Any]], level: str, bound: float, console: Console) -> None:
    """Show one line for each image."""
    for row in rows:
        name = f" ({row['class']})" if row["class"] not in (None, str(row["label"])) else ""
        certified = "".join(
            f", {'certified' if held else 'not certified'} at {eps}" for eps, held in row["certified"].items()
        )
        console.print(
            f"{row['image']}: label {row['label']}{name}, margin {row['margin']:.4f}, "
            f"radius {row['radius']:.4f}{certified}",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
    console.print(f"level {level}, Lipschitz bound {rounded_up(bound, 9)}", soft_wrap=True, highlight=False)


def invoke(application: typer.Typer, arguments: Sequence[str] | None = None) -> int:
    """Run an application and return its exit code; whatever the user can put right becomes one line."""
    try:
        code = application(arguments, standalone_mode=False)
        return fail(RESUMABLE, 3) if code == TYPERS_INTERRUPT else int(code or 0)
    except (KeyboardInterrupt, typer.Abort):
        return fail(RESUMABLE, 3)
    except Interrupted as error:
        return fail(str(error), 3)
    except typer.TyperException as error:
        return fail(error.format_message(), 2)
    except ContradictionError as error:
        return fail(str(error), 1)
    except OSError as error:
        # WriteError and our own messages are complete; the operating system's are put in order.
        known = error.strerror is None or error.filename is None
        return fail(str(error) if known else f"{error.filename}: {error.strerror}", 2)
    except ValueError as error:
        if not raised_here(error):
            raise
        return fail(str(error), 2)


def raised_here(error: Exception) -> bool:
    """Return whether this package raised the error on purpose, rather than a library that met a bug of
    ours."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and PACKAGE in Path(frames[-1][0].f_code.co_filename).parents


def fail(message: str, code: int) -> int:
    """Print one line on standard error and return the exit code."""
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    return code


def stop(number: int, frame: FrameType | None) -> NoReturn:
    """Treat SIGTERM as Ctrl-C, so that a cancelled job says how to go on."""
    raise KeyboardInterrupt


def main() -> NoReturn:
    """Entry point of the `lconvnet` command."""
    start(app)


def start(application: typer.Typer) -> NoReturn:
    """Run an application as this process."""
    signal.signal(signal.SIGTERM, stop)
    code = invoke(application)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader went away (`| head`); nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
