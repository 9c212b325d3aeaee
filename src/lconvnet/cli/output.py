"""The output of commands: tables and progress on a console, one line of JSON on standard output."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from lconvnet.experiments import robustness
from lconvnet.experiments.tasks import Outcome
from lconvnet.ops.rounding import percent_down, percent_up, rounded_down, rounded_up
from lconvnet.report import Named, Written
from lconvnet.report.labels import eps_label
from lconvnet.report.rendering import terminal
from lconvnet.visible import printable

PIPED_WIDTH = 200
SECTIONS = {
    "adv_robustness": "l2, all test images",
    "adv_robustness_mini_eval": "l2, the first test images",
    "adv_robustness_linf": "l-infinity, all test images",
    "adv_robustness_linf_mini_eval": "l-infinity, the first test images",
}
ROUNDING = "certified accuracy is rounded down, attacked accuracy up: they may differ by 0.01% where they are equal"


class PlainConsole(Console):
    """Shows plain text: without markup, and with unprintable characters escaped."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, soft_wrap=True, highlight=False, markup=False, emoji=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print texts and tables."""
        super().print(*(printable(item) if isinstance(item, str) else item for item in objects), **options)


class _PlainFormatter(logging.Formatter):
    """Escapes unprintable characters in the log."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, super().format(record).split("\n")))


def echo(text: object, *, err: bool = False) -> None:
    """Print one line."""
    typer.echo(printable(str(text)), err=err)


def show_json(values: Mapping[str, Any]) -> None:
    """Print one line of JSON."""
    typer.echo(json.dumps(values, allow_nan=False))


def configure_logging(quiet: bool) -> None:
    """Send the package's log to standard error, warnings only if quiet."""
    logger = logging.getLogger("lconvnet")
    handler = logging.StreamHandler()
    handler.setFormatter(_PlainFormatter())
    logger.handlers = [handler]
    logger.setLevel(logging.WARNING if quiet else logging.INFO)


@contextlib.contextmanager
def evaluation_progress(quiet: bool) -> Iterator[robustness.Report]:
    """Yield a progress callback: a bar on a terminal, one log line per batch elsewhere."""
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


def show_outcome(found: Outcome, *, as_json: bool) -> None:
    """Show the result of a command; with JSON, standard output has only the facts."""
    console = PlainConsole(stderr=as_json)
    if found.text:
        console.print(found.text)
    if found.table:
        show_results(found.table, found.path, console)
    if as_json:
        show_json(found.facts)


def show_results(results: Mapping[str, Any], path: Path, console: Console) -> None:
    """Show results.yaml as tables, one per section, with one row per eps."""
    for section, title in SECTIONS.items():
        if section in results:
            console.print(accuracy_table(title, results[section]), soft_wrap=False)
    console.print(ROUNDING)
    console.print(f"{results['data']}, epoch {results['epoch']}")
    if "note" in results:
        console.print(results["note"])
    constant = results["sanity_check/layer-l-constant"]
    console.print(f"Lipschitz bound {rounded_up(constant, 9)} ({results['level']}); {path}")


def accuracy_table(title: str, rows: Mapping[float, Mapping[str, float]]) -> Table:
    """Return clean, certified and attacked accuracy, one row per eps."""
    attacks = sorted({key for row in rows.values() for key in row if key.endswith("-ub")}, reverse=True)
    table = Table("eps", "clean", "certified", *(f"under {key.removesuffix('-ub')}" for key in attacks), title=title)
    for eps, row in rows.items():
        certified = percent_down(row["lb"]) if "lb" in row else ""
        cells = [percent_up(row[key]) if key in row else "" for key in attacks]
        table.add_row(eps_label(eps), f"{row['natural']:.2%}" if "natural" in row else "", certified, *cells)
    return table


def show_table(header: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> None:
    """Show a plain table; if the width is not limited, on wide lines."""
    console.width = console.width if console.is_terminal else PIPED_WIDTH
    table = Table(*header)
    for row in rows:
        table.add_row(*map(printable, row))
    console.print(table, soft_wrap=False)


def show_report(report: Written, *, as_json: bool = False) -> None:
    """Show tables, the files read and written, and those that could not be."""
    configure_logging(quiet=True)
    console = PlainConsole(stderr=as_json)
    console.width = console.width if console.is_terminal else PIPED_WIDTH
    for table in report.tables:
        console.print(terminal(table, console.width))
    if report.tables:
        console.print(ROUNDING)
    files, skipped = ", ".join(map(str, report.files)), report.found.skipped
    unused = f", {len(skipped)} not used" if skipped else ""
    console.print(f"{len(report.found.runs)} runs read{unused}; wrote {files}")
    if unmeasured := report.found.unmeasured:
        names = ", ".join(unmeasured[:5]) + (", ..." if len(unmeasured) > 5 else "")
        console.print(f"{len(unmeasured)} trained but not evaluated ({names}): lconvnet evaluate RUN")
    if report.note:
        console.print(report.note)
    report.found.report_skipped()
    if as_json:
        facts = {"runs": len(report.found.runs), "tables": [table.number for table in report.tables]}
        unread = [{"path": item.path, "reason": item.reason} for item in skipped]
        show_json({**facts, "files": list(map(str, report.files)), "note": report.note, "skipped": unread})


def show_named(named: Named) -> None:
    """Show which results.yaml were written, from which files, and which results could not be used."""
    configure_logging(quiet=True)
    console = PlainConsole()
    for path, source in named.written.items():
        console.print(f"{path}: copied from {source.name}")
    console.print(f"{len(named.written)} written, {named.present} were there")
    for item in named.skipped:
        logging.getLogger("lconvnet").warning("not used: %s: %s", item.path, item.reason)


def show_certificates(rows: Sequence[Mapping[str, Any]], level: str, bound: float, console: Console) -> None:
    """Show one line per image: whether the answer is right, if that is known, and why a radius is 0."""
    for row in rows:
        truth = ""
        if "correct" in row:
            true = f"true label {row['true_label']}{_class(row['true_class'], row['true_label'])}"
            truth = " (right)" if row["correct"] else f" (wrong, {true})"
        certified = "".join(f", {'' if held else 'not '}certified at {eps}" for eps, held in row["certified"].items())
        why = "" if row["radius"] > 0 else f" ({row['reason']})"
        console.print(
            f"{row['image']}: label {row['label']}{_class(row['class'], row['label'])}{truth}, "
            f"margin {rounded_down(row['margin'], 4)}, radius {rounded_down(row['radius'], 4)}{why}{certified}",
        )
    shown = f"Lipschitz bound {rounded_up(bound, 9)}"
    nothing = f"level estimate, radii from power iteration: nothing is certified (but the {shown} is proved)"
    console.print(nothing if level == "estimate" else f"level {level}, {shown}")


def _class(name: str | None, label: int) -> str:
    """The name of a class in brackets, unless it is its number."""
    return f" ({name})" if name not in (None, str(label)) else ""


def show_accuracies(measured: Mapping[str, Any], count: int, note: str, console: Console) -> None:
    """Show clean and certified accuracy of images with known labels, and the note on them."""
    if measured:
        certified = "".join(
            f", certified {percent_down(value)} at {eps}" for eps, value in measured["certified_accuracy"].items()
        )
        console.print(f"{count} images: accuracy {measured['accuracy']:.2%}{certified}")
    if note:
        console.print(note)
