"""The commands `lconvnet generate | sweep | status | submit`: generate, run, watch and queue families of runs.

A sweep shows a live table on a terminal, and one log line per event elsewhere.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from lconvnet.cli import options, output
from lconvnet.experiments import family, slurm, sweep
from lconvnet.experiments.family import Generated
from lconvnet.experiments.sweep import Outcome, Plan, Status, Watcher, count, status
from lconvnet.ops.rounding import percent_down
from lconvnet.report.labels import eps_label
from lconvnet.visible import files_below, printable

logger = logging.getLogger("lconvnet")

STOPPING = "stopping: every run saves where it stands; Ctrl-C once more kills them"


class Log:
    """One log line per event."""

    def says(self, run: Path, line: str) -> None:
        logger.info("%s: %s", run, line)

    def ended(self, run: Path, outcome: Outcome) -> None:
        logger.info("%s: %s", run, f"ended with exit code {outcome.code}" if outcome.code else "finished")

    def stops(self) -> None:
        logger.info(STOPPING)


@dataclass
class Board:
    """A live table of the runs in progress, with start time and last message."""

    plan: Plan
    active: dict[Path, tuple[float, str]] = field(default_factory=dict)
    done: int = 0
    stopping: bool = False

    def says(self, run: Path, line: str) -> None:
        begun, _ = self.active.get(run, (time.monotonic(), ""))
        self.active[run] = (begun, line)

    def ended(self, run: Path, outcome: Outcome) -> None:
        self.active.pop(run, None)
        self.done += 1

    def stops(self) -> None:
        self.stopping = True

    def __rich__(self) -> Table:
        total = len(self.plan.todo)
        title = STOPPING if self.stopping else f"{self.done} of {total} ended, {len(self.active)} running"
        table = Table("run", "seconds", "says", title=title, title_justify="left", expand=True)
        for run, (begun, line) in list(self.active.items()):
            table.add_row(printable(str(run)), f"{time.monotonic() - begun:.0f}", printable(line))
        return table


@contextlib.contextmanager
def watched(plan: Plan, console: Console, *, quiet: bool) -> Iterator[Watcher]:
    """Yield a watcher that shows a sweep; it shows nothing if `quiet`."""
    if quiet or not console.is_terminal:
        yield Log()
        return
    board = Board(plan)
    with Live(board, console=console, refresh_per_second=2, transient=True):
        yield board


def submit_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with cfg.yaml files below it.")],
    sbatch: Annotated[
        list[str] | None, typer.Argument(metavar="[-- SBATCH OPTIONS]", help="Options of sbatch.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Tasks that may run at once.")] = None,
    resume: options.Resume = False,
    test: Annotated[
        bool, typer.Option("--test", help="Evaluate the trained runs; with --resume, train first.")
    ] = False,
    notice: Annotated[
        int, typer.Option("--notice", min=1, help="Seconds before the time limit at which a task saves.")
    ] = slurm.NOTICE,
    as_json: options.Json = False,
) -> None:
    """Submit all runs below DIR as one Slurm job array."""
    runs, logs = slurm.find_runs(folder), folder / "slurm"
    given = {"limit": limit, "options": sbatch or (), "logs": logs, "notice": notice}
    done = slurm.submit(runs, resume=resume, test=test, **given)
    for run, reason in done.left_out.items():
        output.echo(f"not submitted: {run}: {reason}".replace(f"{run}: {run}", str(run)), err=True)
    if as_json:
        left_out = {str(run): reason for run, reason in done.left_out.items()}
        output.show_json({"job": done.job, "runs": list(map(str, done.runs)), "left_out": left_out, "logs": str(logs)})
    elif done.job is None:
        output.echo(f"nothing to submit: none of {len(runs)} runs has anything to do")
    else:
        output.echo(
            f"submitted job {done.job}: {len(done.runs)} of {len(runs)} runs, output in {logs}/{done.job}_*.out"
        )


Folder = Annotated[Path, typer.Argument(help="Folder of a family: with a template.yaml, or with runs below it.")]
Jobs = Annotated[int, typer.Option("--jobs", "-j", min=1, help="Runs at a time; they share the processors.")]
NoTest = Annotated[bool, typer.Option("--no-test", help="Train only, evaluate nothing.")]


def generate_command(folder: Folder, changes: options.Set = None, as_json: options.Json = False) -> None:
    """Write a cfg.yaml for every combination of every template.yaml in and below FOLDER; nothing is lost."""
    generated = family.generate(folder, changes or ())
    show_generated(generated, output.PlainConsole(stderr=as_json))
    if as_json:
        output.show_json({name: _paths(value) for name, value in vars(generated).items()})
    raise typer.Exit(2 if generated.invalid else 0)


def sweep_command(
    folder: Folder,
    jobs: Jobs = 1,
    no_test: NoTest = False,
    no_attacks: options.NoAttacks = False,
    data_dir: options.DataDir = None,
    changes: options.Set = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train and evaluate every unfinished run of a family, --jobs at a time; the same command resumes it."""
    output.configure_logging(quiet)
    console = output.PlainConsole(stderr=True)
    runs, invalid = family_runs(folder, changes or (), console)
    plan = sweep.plan(runs, test=not no_test, attacks=not no_attacks)
    plan.invalid.update(invalid)
    given = [*(["--no-attacks"] if no_attacks else []), *(["--data-dir", data_dir] if data_dir else [])]
    arguments = [*([] if no_test else ["--test"]), *given]
    with watched(plan, console, quiet=quiet) as watcher:
        outcomes = sweep.run_all(plan.todo, arguments, watcher, jobs=jobs)
    complete = len(outcomes) == len(plan.todo)
    show_summary(plan, outcomes, console)
    if as_json:
        facts = {"finished": [*plan.finished, *_ended(outcomes, "finished")], "failed": _failed(outcomes)}
        others = {"interrupted": _ended(outcomes, "interrupted"), "running": plan.running, "invalid": plan.invalid}
        output.show_json({name: _paths(value) for name, value in {**facts, **others}.items()})
    raise typer.Exit(sweep.exit_code(outcomes, plan, complete=complete))


def status_command(folder: Folder, as_json: options.Json = False) -> None:
    """Show the progress of every run in and below FOLDER, and why failed runs failed."""
    rows = [status(path) for path in family.run_folders(folder)]
    if not rows:
        raise ValueError(f"{folder} holds no cfg.yaml, nor does any folder below it; name the folder of a family")
    console = output.PlainConsole(stderr=as_json)
    output.show_table(status_header(), [status_row(row, folder) for row in rows], console)
    console.print(", ".join(f"{number} {state}" for state, number in count(rows).items()))
    if as_json:
        output.show_json({"runs": [{**asdict(row), "path": str(row.path)} for row in rows], "count": count(rows)})


def family_runs(folder: Path, changes: Sequence[str], console: Console) -> tuple[list[Path], dict[Path, str]]:
    """Return the runs in and below a folder, after generating those of templates, and the invalid combinations."""
    if not folder.is_dir() or any(path.name == family.TEMPLATE for path in files_below(folder)):
        generated = family.generate(folder, changes)
        show_generated(replace(generated, invalid={}), console)  # the sweep's summary names the invalid ones
        others = set(family.run_folders(folder)) - {*generated.runs, *generated.invalid, *generated.orphaned}
        return sorted([*generated.runs, *others]), generated.invalid
    runs = family.run_folders(folder)
    if changes or not runs:
        what = "--set applies to a template, and" if changes else "there is nothing to run:"
        raise ValueError(f"{what} {folder} holds no {family.TEMPLATE}" + ("" if changes else " and no cfg.yaml"))
    return runs, {}


def show_generated(generated: Generated, console: Console) -> None:
    """Show how many configurations were written, and which were not and why."""
    lists = {name: len(value) for name, value in vars(generated).items() if value}
    total = len(generated.runs) + len(generated.invalid)
    console.print(f"{total} runs: " + ", ".join(f"{number} {name}" for name, number in lists.items()))
    for name in ("kept", "invalid"):
        for run, reason in getattr(generated, name).items():
            console.print(f"{name}: {run}: {reason}")
    for overrides, number in Counter(generated.overridden.values()).items():
        console.print(
            f"overridden: {number} runs keep --set {overrides} of an earlier generation; --set others to change"
        )
    for run in generated.orphaned:
        console.print(f"orphaned: {run}: no template expands to it; it is left as it is")


def show_summary(plan: sweep.Plan, outcomes: Mapping[Path, sweep.Outcome], console: Console) -> None:
    """Show how the runs ended, and name each that did not end well."""
    for run in plan.running:
        console.print(f"running: {run}: another process works on it")
    for name, reasons in (("invalid", plan.invalid), ("failed", _failed(outcomes))):
        for run, reason in reasons.items():
            console.print(f"{name}: {run}: {reason}")
    for run in _ended(outcomes, "interrupted"):
        console.print(f"interrupted: {run}")
    for run in plan.todo:
        if run not in outcomes:
            console.print(f"not started: {run}")
    good = len(_ended(outcomes, "finished"))
    total = len(plan.todo) + len(plan.finished) + len(plan.running) + len(plan.invalid)
    rest = total - good - len(plan.finished)
    console.print(
        f"{good + len(plan.finished)} of {total} runs finished, {good} of them now"
        + (f"; {rest} not: the same command goes on" if rest else "")
    )


def _ended(outcomes: Mapping[Path, sweep.Outcome], how: Literal["finished", "interrupted"]) -> list[Path]:
    return [run for run, found in outcomes.items() if (found.interrupted if how == "interrupted" else found.code == 0)]


def _failed(outcomes: Mapping[Path, sweep.Outcome]) -> dict[Path, str]:
    return {run: found.reason for run, found in outcomes.items() if found.code and not found.interrupted}


def status_header() -> list[str]:
    """The columns of the table of runs."""
    return ["run", "state", "epoch", "clean", "certified", "of", "images/s", "minutes", "peak MB", "device", "detail"]


def status_row(row: Status, folder: Path) -> list[str]:
    """One line of the table of runs."""
    path = row.path.relative_to(folder).as_posix()
    progress = f"{row.epoch}/{row.epochs}" if row.epochs else ""
    accuracies = ["" if row.clean is None else f"{row.clean:.2%}"]
    accuracies += ["" if row.certified is None else percent_down(row.certified)]
    accuracies += [", ".join(filter(None, (row.images, "" if row.eps is None else eps_label(row.eps))))]
    speed = f"{row.images_per_second:.0f}" if row.images_per_second else ""
    minutes = f"{row.seconds / 60:.1f}" if row.seconds else ""
    memory = f"{row.peak_memory_mb:.0f}" if row.peak_memory_mb else ""
    return [path, row.state, progress, *accuracies, speed, minutes, memory, row.device, row.detail]


def _paths(values: object) -> object:
    if isinstance(values, dict):
        return {str(run): reason for run, reason in values.items()}
    return [str(run) for run in values] if isinstance(values, list) else values
