"""`fit`: everything between a model with a data set and the trained model with its record."""

import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from math import isclose
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Adam

from lconvnet.data import Splits, load
from lconvnet.losses import Hinge, OffsetCrossEntropy
from lconvnet.ops.hooks import require_module
from lconvnet.ops.images import is_finite_number
from lconvnet.training.checkpoint import CheckpointError, load_weights, read_best
from lconvnet.training.checks import MakeOptimizer, made_optimizer, made_scheduler, require_loss, require_usable
from lconvnet.training.evaluation import require_classes, validate
from lconvnet.training.folder import RunFolder
from lconvnet.training.interruption import Interrupted, Interruption
from lconvnet.training.loop import train
from lconvnet.training.processes import Precision, configured, is_first_process, launched
from lconvnet.training.record import Epoch, Record
from lconvnet.training.reporting import curves, display
from lconvnet.training.schedules import Exponential, Schedule
from lconvnet.training.settings import describe, describe_model, describe_optimizer, describe_splits, versions
from lconvnet.training.state import Augment, Diverged, Loss, Plan, Run, restore, save

if TYPE_CHECKING:
    from lightning_fabric import Fabric

logger = logging.getLogger("lconvnet")

ADAM = partial(Adam, lr=1e-3)
PAPER_SCHEDULE = Exponential(0.96235)


def fit(
    model: nn.Module,
    data: str | Path | Splits,
    *,
    loss: Loss,
    epochs: int,
    batch_size: int = 128,
    optimizer: MakeOptimizer = ADAM,
    schedule: Schedule = PAPER_SCHEDULE,
    seed: int = 0,
    directory: str | Path | None = None,
    resume: bool = False,
    augment: Augment | None = None,
    eps: float | Sequence[float] | None = None,
    select_eps: float | None = None,
    project_every: int = 100,
    checkpoint_every: int = 500,
    accelerator: str = "auto",
    devices: int = 1,
    precision: Precision = "32-true",
    progress: bool = True,
    tensorboard: bool = True,
    on_epoch: Callable[[Epoch], None] | None = None,
    settings: Mapping[str, Any] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Record:
    """Train `model`, keep the weights of the epoch that certifies most on the validation split, return the record.

    After every epoch the baked network is bounded and certified on the validation split; of the test split only a
    fingerprint is recorded. Without validation images the weights of the last epoch are kept. On return `model`
    carries the weights of the best epoch, in eval mode. Its initial weights are the caller's: call `torch.manual_seed`
    before building it. From there on, order, augmentation and dropout follow from `seed` alone, and the global random
    state is left as it was.

    With `devices` processes each takes its share of every batch; `batch_size`, the curve and the record are those of
    one process, up to rounding and dropout. They run the whole script: all of them return from here, with the same
    weights, but where training ends early only the first raises; the others end. Only it writes, logs and calls
    `on_epoch`. See `is_first_process`.

    Args:
        data: `Splits`, or what `lconvnet.data.load` takes: a name such as "mnist", or a path.
        loss: `loss(logits (B, C), labels (B,))`, a mean over the batch, such as `lconvnet.losses.Hinge(eps=1.5)`.
        optimizer: makes the optimiser from the list of trainable parameters: `partial(torch.optim.SGD, lr=0.1)`.
        schedule: makes the scheduler, see `lconvnet.training.schedules`; the default is the paper's.
        directory: run folder for checkpoints and records; with None nothing is written, and nothing can be resumed.
        resume: go on from the folder's last checkpoint (from the start where there is none yet; at once back where the
            run is finished). Without it a folder that holds a run is refused.
        augment: `augment(images, generator=...)` on every training batch: `lconvnet.data.crop_and_flip` for CIFAR-10.
        eps: l2 radii over pixels in [0, 1] to certify; by default the radius of `loss`.
        select_eps: the radius that chooses the best epoch: that of the highest certified accuracy there (ties: clean
            accuracy, then the earlier epoch), recorded first, also where `eps` does not name it. By default the radius
            of `loss`; the first of `eps` where it has none. Radii that agree to four digits are one, as in `eps`.
        project_every: kernels that have a projection (SVCM) project after the first step of an epoch, every so many
            from there, and after its last one.
        checkpoint_every: steps between two checkpoints within an epoch: what a kill can cost at most.
        accelerator, precision: as in Lightning Fabric, without MPS ("auto" is CUDA or the CPU); `model` is moved and,
            for "64-true", converted in place.
        devices: processes on this machine, one a GPU or so many on the CPU; under torchrun its own number, which 1
            leaves as it is. Another number may go on with a run.
        progress: a bar on standard error, where that is a terminal; otherwise one line an epoch in the log `lconvnet`.
        tensorboard: curves and histograms of singular values, where TensorBoard is installed.
        on_epoch: called with every finished `Epoch`.
        settings: further JSON-able facts for the record; a resume insists that they are the same, but for the name of
            its images (`data.name`), which may move.
        origin: JSON-able facts on where the initial weights came from, for the record (`from`); a resume, which needs
            none of them, may leave it out.

    Raises:
        ValueError: an argument or the data do not fit, or the folder holds a run and `resume` is not set.
        CheckpointError: a file in the folder is damaged, foreign, or of other settings.
        Interrupted: SIGINT, SIGTERM or SIGUSR1 (to any of the processes), after saving a checkpoint; or a process is
            gone.
        Diverged: the loss or a weight became NaN or infinite.
        atomic.WriteError: the folder cannot be written.

    >>> from lconvnet.data import load
    >>> from lconvnet.losses import OffsetCrossEntropy
    >>> from lconvnet.models import mlp
    >>> model = mlp(784, 10, widths=(16,))
    >>> record = fit(model, load("digits", limit=300), loss=OffsetCrossEntropy(eps=0.1), epochs=1)
    >>> len(record.epochs), record.best_epoch, record.finished
    (1, 1, True)
    """
    require_module(model, "model")
    _require_positive(
        epochs=epochs,
        batch_size=batch_size,
        project_every=project_every,
        checkpoint_every=checkpoint_every,
        devices=devices,
    )
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed={seed!r}: must be an integer")
    require_usable(loss)
    radii = _radii(eps, select_eps, loss)
    plan = Plan(loss, epochs, batch_size, seed, augment, radii, project_every, checkpoint_every, on_epoch)
    fabric = configured(accelerator, precision, devices)
    folder = RunFolder(Path(directory)) if directory is not None and is_first_process() else None
    with _own_randomness(fabric.device), folder.locked() if folder else contextlib.nullcontext():
        if folder and not resume:
            folder.refuse_if_started()
        splits = data if isinstance(data, Splits) else load(data)
        facts = {"precision": precision, "schedule": describe(schedule), "settings": describe(settings or {})}
        facts |= {"from": describe(origin)} if origin else {}
        run = _prepare(model, splits, plan, fabric, folder, optimizer, schedule, facts)
        run.processes = launched(fabric)  # not before all that can be checked by one process
        run.record = replace(run.record, versions=versions(fabric.device, run.processes.count))
        with run.processes.ending_together(Interrupted, Diverged):
            _begin(run)
            if not run.record.finished:
                _carry_out(run, progress, tensorboard)
            _restore_best(run)
    return run.record


def _prepare(
    model: nn.Module,
    splits: Splits,
    plan: Plan,
    fabric: "Fabric",
    folder: RunFolder | None,
    make_optimizer: MakeOptimizer,
    schedule: Schedule,
    facts: dict[str, Any],
) -> Run:
    """Model on its device, optimiser, schedule, and a record that holds the settings; checked, nothing written.

    The model stays as it is: gradients are added up after the backward pass, not by a wrapper of the forward pass.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError(
            "model has no parameter that requires a gradient, so there is nothing to train; a baked network is fixed: "
            "train the model that it was baked from, and bake again"
        )
    if not len(splits.train):
        raise ValueError(f"data {splits.name!r} has no training images; load it with a larger training part")
    optimizer = made_optimizer(make_optimizer, trainable)
    options = describe_optimizer(optimizer)  # before the schedule changes the learning rate
    scheduler = made_scheduler(schedule, optimizer, plan.epochs, plan.steps_per_epoch(splits))
    fabric.to_device(fabric.strategy.precision.convert_module(model))
    settings = json.loads(json.dumps({**_facts(plan, splits, model), "optimizer": options, **facts}))
    network = validate(model, splits.train.subset([0]), plan.eps).network
    logits, labels = require_classes(network, splits.train)
    require_loss(plan.loss, logits, labels)
    if logits.shape[1] > splits.classes and is_first_process():
        logger.warning(
            "model has %d outputs for %d classes: the others are answers that are never right",
            logits.shape[1],
            splits.classes,
        )
    return Run(plan, splits, model, optimizer, scheduler, fabric, folder, Record(settings, {}))


def _facts(plan: Plan, splits: Splits, model: nn.Module) -> dict[str, Any]:
    """The settings that decide what a run computes; `checkpoint_every` is not among them, nor are paths."""
    data = {"name": splits.name, "note": splits.note}
    return {
        "data": {**data, **describe_splits(splits)},
        "model": describe_model(model),
        "loss": describe(plan.loss),
        "eps": list(plan.eps),
        "epochs": plan.epochs,
        "batch_size": plan.batch_size,
        "seed": plan.seed,
        "augment": describe(plan.augment),
        "project_every": plan.project_every,
    }


def _begin(run: Run) -> None:
    """Take up the folder's checkpoint, first writing one where there is none: start and resume are the same path."""
    if run.folder and not run.folder.last.exists():
        run.folder.refuse_if_started()  # results without the checkpoint that they came from
        save(run)
    restore(run)


def _carry_out(run: Run, progress: bool, tensorboard: bool) -> None:
    """Train to the end with displays and signal handlers in place."""
    folder = run.folder.tensorboard if run.folder and tensorboard else None
    done = run.progress.epoch
    shown = curves(folder, done * run.steps_per_epoch)
    with (
        contextlib.closing(shown),
        display(run.plan.epochs, run.steps_per_epoch, done, progress=progress and run.processes.first) as screen,
        Interruption() as interruption,
    ):
        train(run, interruption, screen, shown)


def _restore_best(run: Run) -> None:
    """Put the weights of the best epoch into the model, on every process."""
    path = run.folder.best if run.folder else Path("best epoch")
    load_weights(run.model, run.processes.from_first(partial(_best_weights, run)), path)
    run.model.eval()


def _best_weights(run: Run) -> dict[str, Any]:
    """From the folder, or from memory where there is none."""
    if run.folder is None:
        return run.best
    weights, epoch = read_best(run.folder.best)
    if epoch != run.record.best_epoch:
        raise CheckpointError(
            f"{run.folder.best}: holds epoch {epoch}, the record names {run.record.best_epoch} as the best; "
            "one of the files was exchanged, restore it or train in another folder"
        )
    return weights


@contextlib.contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """Give the global generators back as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


SAME = 2e-4
"""Two radii are one within this part of them: 36/255 is also written as 0.1412."""


def _radii(eps: float | Sequence[float] | None, select_eps: float | None, loss: Loss) -> tuple[float, ...]:
    """The radii to certify, checked; first the one that chooses the epoch."""
    own = float(loss.eps) if isinstance(loss, Hinge | OffsetCrossEntropy) else None
    asked: Any = own if eps is None else eps
    if asked is None:
        raise ValueError(f"eps=None: {loss} has no radius of its own; pass eps, the l2 radii to certify at")
    given = _each(asked)
    radii = tuple(map(float, filter(_is_radius, given)))
    if not radii or len(radii) < len(given) or any(isclose(a, b, rel_tol=SAME) for a, b in combinations(radii, 2)):
        raise ValueError(f"eps={eps!r}: must be one or more different positive l2 radii over pixels in [0, 1]")
    if select_eps is not None and not _is_radius(select_eps):
        raise ValueError(f"select_eps={select_eps!r}: must be a positive l2 radius over pixels in [0, 1]")
    wanted = float(select_eps or own or radii[0])
    chosen = next((radius for radius in radii if isclose(radius, wanted, rel_tol=SAME)), wanted)
    return (chosen, *(radius for radius in radii if radius != chosen))


def _each(eps: Any) -> tuple[Any, ...]:
    """The radii of one or of several."""
    return (eps,) if is_finite_number(eps) or isinstance(eps, str) or not isinstance(eps, Iterable) else tuple(eps)


def _is_radius(value: Any) -> bool:
    return is_finite_number(value) and value > 0


def _require_positive(**counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: must be an integer of at least 1")
