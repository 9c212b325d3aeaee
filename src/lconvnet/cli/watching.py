"""What is seen of a sweep while it runs: one live table on a terminal, one log line for each event elsewhere."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from lconvnet.experiments.sweep import Outcome, Plan, Watcher
from lconvnet.visible import printable

logger = logging.getLogger("lconvnet")

STOPPING = "stopping: every run saves where it stands; Ctrl-C once more kills them"


class Log:
    """One line for every event, through `logging`."""

    def says(self, run: Path, line: str) -> None:
        logger.info("%s: %s", run, line)

    def ended(self, run: Path, outcome: Outcome) -> None:
        logger.info("%s: %s", run, f"ended with exit code {outcome.code}" if outcome.code else "finished")

    def stops(self) -> None:
        logger.info(STOPPING)


@dataclass
class Board:
    """A live table: the runs that are being worked on: since when, and what each said last."""

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
    """Yield what hears of a sweep and shows it; nothing where `quiet`."""
    if quiet or not console.is_terminal:
        yield Log()
        return
    board = Board(plan)
    with Live(board, console=console, refresh_per_second=2, transient=True):
        yield board
