"""The display of a run: a progress bar on a terminal, else one log line per epoch; and TensorBoard."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from lconvnet.training.record import Row

logger = logging.getLogger("lconvnet")

Histograms = Callable[[], Mapping[str, Tensor]]


class Display(Protocol):
    """Receives the progress of a run and sends nothing back."""

    def step(self, done: int, text: str) -> None:
        """Called after a step, with the steps done in this epoch and a text with their measures."""
        ...

    def epoch(self, row: Row) -> None:
        """Called after an epoch."""
        ...


class Log:
    """One line per epoch, through `logging` (logger `lconvnet`, level INFO)."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def step(self, done: int, text: str) -> None:
        """Do nothing: a log shows no changing number."""

    def epoch(self, row: Row) -> None:
        logger.info("epoch %d/%d  %s", row.epoch, self.epochs, row.summary())


class Bar:
    """A rich progress bar over the steps of the epoch, with the last epoch beside it."""

    def __init__(self, bar: Progress, epochs: int, steps: int, done: int) -> None:
        self.bar, self.epochs, self.done = bar, epochs, done
        self.task = bar.add_task(self._title(""), total=steps, last="")

    def _title(self, text: str) -> str:
        return f"epoch {min(self.done + 1, self.epochs)}/{self.epochs}  {text}"

    def step(self, done: int, text: str) -> None:
        self.bar.update(self.task, completed=done, description=self._title(text))

    def epoch(self, row: Row) -> None:
        self.done = row.epoch
        self.bar.update(self.task, last=f"epoch {row.epoch}: {row.summary()}")


@contextlib.contextmanager
def display(epochs: int, steps: int, done: int, *, progress: bool) -> Iterator[Display]:
    """A bar on standard error if `progress` is set and that is a terminal, else the log."""
    console = Console(stderr=True)
    if not (progress and console.is_terminal):
        yield Log(epochs)
        return
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[last]}"), console=console) as bar:
        yield Bar(bar, epochs, steps, done)


class Curves(Protocol):
    """Receives every epoch."""

    def add(self, row: Row, histograms: Histograms) -> None:
        """Write curves and histograms of one epoch."""
        ...

    def close(self) -> None:
        """Flush and close the files."""
        ...


class NoCurves:
    """Used if TensorBoard is not wanted or not installed."""

    def add(self, row: Row, histograms: Histograms) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class TensorBoard:
    """Scalars and histograms of every epoch, in `folder`, by step."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Hides what an interrupted run logged after its last checkpoint, because those steps will run again.
        self.writer = SummaryWriter(str(folder), purge_step=step + 1)

    def add(self, row: Row, histograms: Histograms) -> None:
        for name, value in row.curves().items():
            self.writer.add_scalar(name, value, row.step)
        for name, values in histograms().items():
            self.writer.add_histogram(name, values, row.step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


def curves(folder: Path | None, step: int) -> Curves:
    """TensorBoard curves in `folder`; none for None, or (with a notice in the log) if it is not installed."""
    if folder is None:
        return NoCurves()
    try:
        return TensorBoard(folder, step)
    except ImportError:
        logger.warning("no TensorBoard curves: it is not installed (pip install 'lconvnet[tensorboard]')")
        return NoCurves()
