"""How a run shows itself: a progress bar on a terminal, one log line an epoch elsewhere."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Protocol

from rich import progress as rich

from lconvnet.gan.checkpoint import Progress
from lconvnet.gan.record import Epoch
from lconvnet.ops.rounding import rounded_up
from lconvnet.training.reporting import terminal_bar

logger = logging.getLogger("lconvnet")


class Display(Protocol):
    """Receives the run as it goes; numbers only, nothing flows back."""

    def step(self, progress: Progress) -> None:
        """After a step of the generator."""
        ...

    def epoch(self, epoch: Epoch) -> None:
        """After an epoch."""
        ...


class Log:
    """One line an epoch, through `logging` (logger `lconvnet`, level INFO)."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def step(self, progress: Progress) -> None:
        """Nothing: a log has no place for a moving number."""

    def epoch(self, epoch: Epoch) -> None:
        logger.info("epoch %d/%d  %s", epoch.epoch, self.epochs, summary(epoch))


class Bar:
    """A rich progress bar over the generator steps of the epoch, with the last epoch beside it."""

    def __init__(self, bar: rich.Progress, epochs: int, steps: int, done: int) -> None:
        self.bar, self.epochs = bar, epochs
        self.task = bar.add_task(f"epoch {done + 1}/{epochs}", total=steps, last="")

    def step(self, progress: Progress) -> None:
        self.bar.update(self.task, completed=progress.step, description=f"epoch {progress.epoch + 1}/{self.epochs}")

    def epoch(self, epoch: Epoch) -> None:
        self.bar.update(self.task, last=f"epoch {epoch.epoch}: {summary(epoch)}")


def summary(epoch: Epoch) -> str:
    """An epoch in one line."""
    bound = "" if epoch.lipschitz is None else f"  L <= {rounded_up(epoch.lipschitz, 6)}"
    losses = f"critic {epoch.critic_loss:.4f}  generator {epoch.generator_loss:.4f}"
    return f"real - generated {epoch.difference:.4f}  {losses}{bound}"


@contextlib.contextmanager
def display(epochs: int, steps: int, done: int, *, progress: bool) -> Iterator[Display]:
    """A bar on standard error if `progress` and that is a terminal, else the log."""
    with terminal_bar("{task.description}", "{task.fields[last]}", progress=progress) as bar:
        yield Bar(bar, epochs, steps, done) if bar else Log(epochs)
