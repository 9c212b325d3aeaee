"""How a run shows itself: a progress bar on a terminal, one log line an epoch elsewhere, TensorBoard."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from lconvnet.ops.rounding import percent_down, rounded_up
from lconvnet.training.evaluation import singular_values
from lconvnet.training.record import Epoch

logger = logging.getLogger("lconvnet")


class Display(Protocol):
    """Receives the run as it goes; numbers only, nothing flows back."""

    def step(self, done: int, loss: float, accuracy: float) -> None:
        """After an optimiser step: steps done in this epoch, running means."""
        ...

    def epoch(self, epoch: Epoch) -> None:
        """After the validation of an epoch."""
        ...


class Log:
    """One line an epoch, through `logging` (logger `lconvnet`, level INFO)."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def step(self, done: int, loss: float, accuracy: float) -> None:
        """Nothing: a log has no place for a moving number."""

    def epoch(self, epoch: Epoch) -> None:
        logger.info("epoch %d/%d  %s", epoch.epoch, self.epochs, summary(epoch))


class Bar:
    """A rich progress bar over the steps of the epoch, with the last validation beside it."""

    def __init__(self, bar: Progress, epochs: int, steps: int, done: int) -> None:
        self.bar, self.epochs, self.steps, self.done = bar, epochs, steps, done
        self.task = bar.add_task("", total=steps, validated="")
        self._title("")

    def _title(self, text: str) -> None:
        self.bar.update(self.task, description=f"epoch {min(self.done + 1, self.epochs)}/{self.epochs}  {text}")

    def step(self, done: int, loss: float, accuracy: float) -> None:
        self.bar.update(self.task, completed=done)
        self._title(f"loss {loss:.4f}  train {accuracy:.2%}")

    def epoch(self, epoch: Epoch) -> None:
        self.done = epoch.epoch
        self.bar.update(self.task, validated=f"validation: {validated(epoch)}")


def validated(epoch: Epoch) -> str:
    """Clean and certified accuracy in words."""
    if epoch.clean is None:
        return "no validation images"
    certified = "  ".join(f"certified@{eps!r} {percent_down(value)}" for eps, value in epoch.certified.items())
    return f"clean {epoch.clean:.2%}  {certified}"


def summary(epoch: Epoch) -> str:
    """An epoch in one line."""
    return (
        f"loss {epoch.loss:.4f}  train {epoch.accuracy:.2%}  {validated(epoch)}  L <= {rounded_up(epoch.lipschitz, 6)}"
    )


@contextlib.contextmanager
def display(epochs: int, steps: int, done: int, *, progress: bool) -> Iterator[Display]:
    """A bar on standard error if `progress` and that is a terminal, else the log."""
    with terminal_bar("{task.description}", "{task.fields[validated]}", progress=progress) as bar:
        yield Bar(bar, epochs, steps, done) if bar else Log(epochs)


@contextlib.contextmanager
def terminal_bar(before: str, after: str = "", *, progress: bool) -> Iterator[Progress | None]:
    """A progress bar between two texts on standard error if `progress` and that is a terminal, else None."""
    console = Console(stderr=True)
    if not (progress and console.is_terminal):
        yield None
        return
    columns = (TextColumn(before), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn(after))
    with Progress(*columns, console=console) as bar:
        yield bar


class Curves(Protocol):
    """Receives the baked network of every epoch."""

    def add(self, epoch: Epoch, network: nn.Module, image_shape: tuple[int, int, int]) -> None:
        """Write curves and histograms of one epoch."""
        ...

    def close(self) -> None:
        """Flush and close the files."""
        ...


class NoCurves:
    """Where TensorBoard is not wanted or not installed."""

    def add(self, epoch: Epoch, network: nn.Module, image_shape: tuple[int, int, int]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class TensorBoard:
    """Scalars of every epoch and a histogram of each layer's singular values, in `folder`, against optimiser steps."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What an interrupted run logged after its last checkpoint is hidden, for it is going to happen again.
        self.writer = SummaryWriter(str(folder), purge_step=step + 1)

    def add(self, epoch: Epoch, network: nn.Module, image_shape: tuple[int, int, int]) -> None:
        scalars = {
            "train/loss": epoch.loss,
            "train/accuracy": epoch.accuracy,
            "train/learning_rate": epoch.learning_rate,
        }
        scalars |= {"validation/lipschitz_upper_bound": epoch.lipschitz}
        scalars |= {} if epoch.clean is None else {"validation/clean": epoch.clean}
        scalars |= {f"validation/certified@{eps}": value for eps, value in epoch.certified.items()}
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, epoch.step)
        for name, values in singular_values(network, image_shape).items():
            self.writer.add_histogram(f"singular_values/{name}", values, epoch.step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


def curves(folder: Path | None, step: int) -> Curves:
    """TensorBoard curves in `folder`; none for None, or (with a notice in the log) where it is not installed."""
    if folder is None:
        return NoCurves()
    try:
        return TensorBoard(folder, step)
    except ImportError:
        logger.warning("no TensorBoard curves: it is not installed (pip install 'lconvnet[tensorboard]')")
        return NoCurves()
