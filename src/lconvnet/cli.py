"""The commands `lconvnet train | evaluate | certify | tables | plot`: arguments in, functions called, results shown.

Exit codes: 0 done, 2 the user's input (one line on standard error), 3 interrupted and resumable, 1 a bug or a
contradicted certificate. Standard output carries results only, and with --json exactly one line.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from lconvnet import saving
from lconvnet.bounds import lipschitz_bound
from lconvnet.certify import certify as certify_images
from lconvnet.experiments import execute, robustness
from lconvnet.experiments.crosscheck import ContradictionError
from lconvnet.experiments.images import read_images
from lconvnet.experiments.loading import load
from lconvnet.experiments.run_folder import RunFolder, find_run
from lconvnet.ops.rounding import rounded_up
from lconvnet.report import Written, export, terminal
from lconvnet.report.drawing import draw
from lconvnet.training import Interrupted
from lconvnet.training.interruption import NOTICES
from lconvnet.training.reporting import validated

PACKAGE = Path(__file__).parent
RESUMABLE = "interrupted; the same command goes on (training: with --resume)"
TYPERS_INTERRUPT = 130
PIPED_WIDTH = 200
SECTIONS = {
    "adv_robustness": "l2, all test images",
    "adv_robustness_mini_eval": "l2, the first test images",
    "adv_robustness_linf": "l-infinity, all test images",
    "adv_robustness_linf_mini_eval": "l-infinity, the first test images",
}
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
ReportOut = Annotated[
    Path | None, typer.Option("--out", help="Folder of the files (default: tables/ in the one read).")
]
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
    """Measure a trained run on the test images and write its results.yaml and examples.parquet; the
    same command goes on with an interrupted one."""
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


@app.command("tables")
def tables_command(folder: Path, out: ReportOut = None, as_json: Json = False) -> None:
    """Show the tables of all runs below FOLDER and write them as Markdown, LaTeX, CSV and PDF."""
    show_report(export(folder, out), as_json=as_json)


@app.command("plot")
def plot_command(
    runs: list[Path],
    out: Annotated[Path, typer.Option("--out", help="Folder of the pictures.")] = Path("pictures"),
    images: Annotated[int, typer.Option("--images", min=0, help="Test images beside their nearest adversary.")] = 8,
    data_dir: DataDir = None,
) -> None:
    """Draw certified and attacked accuracy against radius for several runs, singular values, and images."""
    for path in draw([find_run(run) for run in runs], out, images=images, overrides=overrides(None, data_dir)):
        typer.echo(path)


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
    with evaluation_progress(quiet) as report:
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
        others = {section: found.results[section] for section in list(SECTIONS)[1:] if section in found.results}
        bound = {"bound": found.bound.upper, "level": found.certificates.level}
        clean = {"clean": found.results["accuracy"], "certified": certified}
        show_json({**clean, **bound, **facts, "attacks": attacked, **others, "results": str(found.path)})


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


@contextlib.contextmanager
def evaluation_progress(quiet: bool) -> Iterator[robustness.Report]:
    """Yield what hears of an evaluation: a bar on a terminal, one log line a batch elsewhere."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        logger = logging.getLogger("lconvnet")
        yield lambda what, done, count: logger.info("%s: %d of %d images", what, done, count)
        return
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, count: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=count)
            bar.update(tasks[what], completed=done)

        yield report


def show_results(results: Mapping[str, Any], path: Path, console: Console) -> None:
    """Show results.yaml as tables, one for each section, with one row for each eps."""
    for section, title in SECTIONS.items():
        if section in results:
            console.print(accuracy_table(title, results[section]))
    console.print(f"{results['data']}, epoch {results['epoch']}", soft_wrap=True, highlight=False)
    if "note" in results:
        console.print(results["note"], soft_wrap=True, highlight=False)
    constant = results["sanity_check/layer-l-constant"]
    console.print(
        f"Lipschitz bound {rounded_up(constant, 9)} ({results['level']}); {path}", soft_wrap=True, highlight=False
    )


def accuracy_table(title: str, rows: Mapping[float, Mapping[str, float]]) -> Table:
    """Return clean, certified and attacked accuracy, one row for each eps."""
    attacks = sorted({key for row in rows.values() for key in row if key.endswith("-ub")}, reverse=True)
    table = Table("eps", "clean", "certified", *(f"under {key.removesuffix('-ub')}" for key in attacks), title=title)
    for eps, row in rows.items():
        cells = [f"{row[key]:.2%}" if key in row else "" for key in ("natural", "lb", *attacks)]
        table.add_row(f"{eps:g}", *cells)
    return table


def show_report(report: Written, *, as_json: bool = False) -> None:
    """Show tables, what was read and written, and what was not."""
    show_progress(quiet=True)
    console = Console(stderr=as_json, soft_wrap=True, highlight=False, markup=False)
    console.width = console.width if console.is_terminal else PIPED_WIDTH
    for table in report.tables:
        console.print(terminal.renderable(table, console.width))
    files, skipped = ", ".join(map(str, report.files)), report.found.skipped
    unused = f", {len(skipped)} not used" if skipped else ""
    console.print(f"{len(report.found.runs)} runs read{unused}; wrote {files}")
    if report.note:
        console.print(report.note)
    report.found.report_skipped()
    if as_json:
        facts = {"runs": len(report.found.runs), "tables": [table.number for table in report.tables]}
        unread = [{"path": item.path, "reason": item.reason} for item in skipped]
        show_json({**facts, "files": list(map(str, report.files)), "note": report.note, "skipped": unread})


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
    """Treat SIGTERM and SIGUSR1 as Ctrl-C, so that a cancelled job says how to go on."""
    raise KeyboardInterrupt


def main() -> NoReturn:
    """Entry point of the `lconvnet` command."""
    start(app)


def start(application: typer.Typer) -> NoReturn:
    """Run an application as this process."""
    for number in NOTICES:
        signal.signal(number, stop)
    code = invoke(application)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader went away (`| head`); nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
