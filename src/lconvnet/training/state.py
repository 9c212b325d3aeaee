"""A run as it stands: what it is to do, with what, how far it is; and how that goes to disk and comes back."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lconvnet.data import Splits
from lconvnet.training import checkpoint as checkpoints
from lconvnet.training.checkpoint import Checkpoint, CheckpointError, Progress
from lconvnet.training.folder import RunFolder
from lconvnet.training.processes import Processes
from lconvnet.training.record import Epoch, Record
from lconvnet.training.settings import differences, identity

if TYPE_CHECKING:
    from lightning_fabric import Fabric

logger = logging.getLogger("lconvnet")

Loss = Callable[[Tensor, Tensor], Tensor]
Augment = Callable[..., Tensor]


class Diverged(ValueError):  # noqa: N818 (says what happened, as StopIteration does)
    """The loss or a weight is no longer finite: the options of the optimiser do not fit the problem."""


@dataclass(frozen=True)
class Plan:
    """What is to be done: the arguments of `fit` that the loop needs."""

    loss: Loss
    epochs: int
    batch_size: int
    seed: int
    augment: Augment | None
    eps: tuple[float, ...]
    project_every: int
    checkpoint_every: int
    on_epoch: Callable[[Epoch], None] | None = None

    def steps_per_epoch(self, splits: Splits) -> int:
        """Batches of the training split; the last one may be smaller."""
        return math.ceil(len(splits.train) / self.batch_size)


@dataclass
class Run:
    """What it is done with, and how far it is; of several processes only the first has a folder."""

    plan: Plan
    splits: Splits
    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    fabric: "Fabric"
    folder: RunFolder | None
    record: Record
    processes: Processes = field(default_factory=Processes)
    progress: Progress = field(default_factory=Progress)
    best: dict[str, Any] = field(default_factory=dict)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in an epoch."""
        return self.plan.steps_per_epoch(self.splits)

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of the model's parameters, and so of its inputs."""
        return next(self.model.parameters()).dtype


def diverged(run: Run, what: str, rate: float) -> Diverged:
    """The error for a loss or weights that are no longer finite; the last checkpoint is older and stays."""
    step = run.progress.epoch * run.steps_per_epoch + run.progress.step + 1
    kept = f"; the checkpoint in {run.folder.path} is from before" if run.folder else ""
    return Diverged(
        f"training diverged at step {step} (epoch {run.progress.epoch + 1}): {what} with learning rate {rate:.4g}; "
        f"lower the learning rate of the optimizer, or check the loss{kept}"
    )


def first_not_finite(module: nn.Module) -> str:
    """The name of a stored value that is NaN or infinite; empty where none is.

    >>> first_not_finite(nn.Linear(1, 1))
    ''
    """
    values = module.state_dict().items()
    return next((name for name, value in values if value.is_floating_point() and not value.isfinite().all()), "")


def with_name(what: str, module: nn.Module) -> str:
    """What happened, and the first stored value that is not finite, where one is the reason.

    >>> with_name("loss is nan", nn.Linear(1, 1))
    'loss is nan'
    """
    name = first_not_finite(module)
    return f"{what} ({name} is not finite)" if name else what


@contextmanager
def divergence(require_finite: Callable[[], None]) -> Iterator[None]:
    """What a kernel raises is a divergence where `require_finite` then finds a weight that is not finite."""
    try:
        yield
    except (ValueError, torch.linalg.LinAlgError):
        require_finite()
        raise


def require_finite(run: Run, rate: float) -> None:
    """Raise `Diverged` if a stored value of the model is NaN or infinite."""
    if name := first_not_finite(run.model):
        raise diverged(run, f"{name} is not finite", rate)


def save(run: Run) -> None:
    """Write the checkpoint, and right after an epoch what follows from it. Raises `Diverged` rather than write NaN."""
    require_finite(run, float(run.scheduler.get_last_lr()[0]))  # on every process, for all must stop
    if run.folder is None:
        return
    checkpoints.save(run.folder.last, _state(run))
    write_results(run)


def _state(run: Run) -> Checkpoint:
    states = (run.model.state_dict(), run.optimizer.state_dict(), run.scheduler.state_dict())
    return Checkpoint(run.progress, run.record, *states)


def write_results(run: Run) -> None:
    """Between two epochs: the best weights, if they are the checkpoint's, and the record.

    A resume does it again, for the kill may have come in between.
    """
    if run.folder is None or run.progress.step or not run.progress.epoch:
        return
    if run.record.best_epoch == run.progress.epoch:
        checkpoints.save_best(run.folder.best, run.model, run.record.best_epoch)
    run.folder.write_record(run.record)


def restore(run: Run) -> None:
    """Take up the state of the folder's checkpoint, in memory that of the first process.

    Raises `CheckpointError` if it does not belong to this run, and `ValueError` where this process was given another
    run than the first.
    """
    if run.folder is None and run.processes.count == 1:
        return
    saved = run.processes.from_first(partial(_checked, run))
    if changed := list(differences(*(identity(one.settings) | {"from": None} for one in (saved.record, run.record)))):
        raise ValueError(
            f"process {run.processes.rank} was given other settings or images than the first "
            f"({'; '.join(changed[:5])}); all must run the same command on the same data"
        )
    path = run.folder.last if run.folder else Path("first process")
    checkpoints.load_weights(run.model, saved.model, path)
    try:
        run.optimizer.load_state_dict(saved.optimizer)
        run.scheduler.load_state_dict(saved.scheduler)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged optimiser state ({error}); use another folder") from error
    run.record, run.progress = saved.record, saved.progress
    write_results(run)


def _checked(run: Run) -> Checkpoint:
    """The folder's checkpoint if it belongs to this run; without a folder, the state in memory."""
    if run.folder is None:
        return replace(_state(run), model={name: value.cpu() for name, value in run.model.state_dict().items()})
    saved = checkpoints.load(run.folder.last)
    checkpoints.require_same_settings(run.folder.last, saved.record.settings, run.record.settings)
    for line in differences(saved.record.versions, run.record.versions):
        logger.warning("resuming with another version, the last digits may differ: %s", line)
    return saved
