"""The training of a classifier: a loss on labelled images, and certified accuracy on the validation split."""

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from math import isclose
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from lconvnet.data import Splits, batch, load
from lconvnet.losses import Hinge, OffsetCrossEntropy
from lconvnet.ops.hooks import require_module
from lconvnet.ops.images import is_finite_number
from lconvnet.training.checkpoint import CheckpointError, Progress, encode_best, load_weights, read_best
from lconvnet.training.checks import Loss, MakeOptimizer, made_optimizer, require_loss, require_usable
from lconvnet.training.engine import Engine, Measures, as_computed, epoch_order, generator, is_due, project_
from lconvnet.training.evaluation import require_classes, singular_values, validate
from lconvnet.training.loop import Position, Run, train
from lconvnet.training.options import Options, opened, require_counts, require_seed
from lconvnet.training.processes import Precision, is_first_process
from lconvnet.training.record import Epoch, Record, Row
from lconvnet.training.schedules import Exponential, Schedule
from lconvnet.training.settings import describe, described

logger = logging.getLogger("lconvnet")

Augment = Callable[..., Tensor]
ADAM = partial(Adam, lr=1e-3)
PAPER_SCHEDULE = Exponential(0.96235)
SAME = 2e-4
"""Radii within this relative distance are equal, because 36/255 is also written as 0.1412."""


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
    clip_gradient: float | None = None,
    ema: float | None = None,
    progress: bool = True,
    tensorboard: bool = True,
    on_epoch: Callable[[Epoch], None] | None = None,
    settings: Mapping[str, Any] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Record[Epoch]:
    """Train `model`, keep the weights of the epoch that certifies most on the validation split, return the record.

    After every epoch the baked network is bounded and certified on the validation split; of the test split only a
    fingerprint is recorded. Without validation images the last epoch is kept. On return `model` has the weights of the
    best epoch and is in eval mode. The caller chooses the initial weights: call `torch.manual_seed` before building the
    model. After that, order, augmentation and dropout follow from `seed` alone, and the global random state is
    restored.

    With `devices` processes each takes its share of every batch; `batch_size`, the curve and the record are those of
    one process, up to rounding and dropout. Every process runs the whole script, and all return from here with the same
    weights. If training ends early, only the first raises and the others end. Only the first writes, logs and calls
    `on_epoch`. See `is_first_process`.

    Args:
        data: `Splits`, or an argument of `lconvnet.data.load`: a name such as "mnist", or a path.
        loss: `loss(logits (B, C), labels (B,))`, a mean over the batch, such as `lconvnet.losses.Hinge(eps=1.5)`.
        epochs: total number of epochs. A resumed run may have more of them if the steps done keep their learning rates,
            as with constant and exponential schedules. It then equals a run of that length from the start.
        optimizer: makes the optimiser from the list of trainable parameters: `partial(torch.optim.SGD, lr=0.1)`.
        schedule: makes the scheduler, see `lconvnet.training.schedules`; the default is the paper's.
        directory: run folder for checkpoints and records; with None nothing is written, and nothing can be resumed.
        resume: continue from the folder's last checkpoint. Start if there is none yet; return at once if the run is
            finished. Without it a folder that holds a run is refused.
        augment: `augment(images, generator=...)` on every training batch: `lconvnet.data.crop_and_flip` for CIFAR-10.
        eps: l2 radii over pixels in [0, 1] to certify; by default the radius of `loss`.
        select_eps: the radius that chooses the best epoch, by certified accuracy (ties: clean accuracy, then the
            earlier epoch). It is recorded first, even if `eps` does not contain it. By default the radius of `loss`, or
            the first of `eps` if the loss has none. Radii that agree to four digits are equal, as in `eps`.
        project_every: steps between projections of kernels that have one (SVCM). They also project after the first and
            the last step of an epoch.
        checkpoint_every: steps between two checkpoints within an epoch: the most that a kill can cost.
        accelerator, precision: as in Lightning Fabric, without MPS ("auto" is CUDA or the CPU); `model` is moved and,
            for "64-true", converted in place.
        devices: processes on this machine, one per GPU, or this number on the CPU. Under torchrun 1 keeps torchrun's
            number. A resumed run may have another number.
        clip_gradient: largest norm of the gradient of all parameters together; a longer one is scaled down to it.
        ema: decay of an exponential moving average of the weights, such as 0.999. The averages are then validated, kept
            and returned.
        progress: a bar on standard error, if that is a terminal; otherwise one line per epoch in the log `lconvnet`.
        tensorboard: curves and histograms of singular values, if TensorBoard is installed.
        on_epoch: called with every finished `Epoch`.
        settings: further JSON-able facts for the record. A resume must repeat them, except the name of its images
            (`data.name`), which may change.
        origin: JSON-able facts on the origin of the initial weights, for the record (`from`); a resume may leave them
            out.
            none of them, may leave it out.

    Raises:
        ValueError: an argument or the data do not fit, or the folder holds a run and `resume` is not set.
        CheckpointError: a file in the folder is damaged, foreign, or of other settings.
        Interrupted: SIGINT, SIGTERM or SIGUSR1 (to any of the processes), after saving a checkpoint; or a process is
            lost.
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
    require_counts(epochs=epochs, batch_size=batch_size, project_every=project_every)
    require_seed(seed)
    require_usable(loss)
    radii = _radii(eps, select_eps, loss)
    options = Options(
        directory, resume, checkpoint_every, accelerator, devices, precision, clip_gradient, ema, progress,
        tensorboard, on_epoch,
    )  # fmt: skip
    with opened(options) as place:
        splits = data if isinstance(data, Splits) else load(data)
        made = _optimizer(model, splits, optimizer)
        place.fabric.to_device(place.fabric.strategy.precision.convert_module(model))
        inputs = {
            "data": splits, "model": model, "loss": loss, "eps": radii, "epochs": epochs, "batch_size": batch_size,
            "seed": seed, "augment": augment, "project_every": project_every, "optimizer": made,
        }  # fmt: skip
        further = {"precision": precision, "schedule": describe(schedule), "settings": describe(settings or {})}
        task = Classification(**inputs, schedule=schedule)
        task.require_usable()
        stated = described(inputs) | json.loads(json.dumps(further))
        run = train(task, stated, place, origin=describe(origin), finish=_restore_best)
    return run.record


def _optimizer(model: nn.Module, splits: Splits, make: MakeOptimizer) -> Optimizer:
    """The optimiser of the trainable parameters. Raises `ValueError` without any, or without training images."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError(
            "model has no parameter that requires a gradient, so there is nothing to train; a baked network is fixed: "
            "train the model that it was baked from, and bake again"
        )
    if not len(splits.train):
        raise ValueError(f"data {splits.name!r} has no training images; load it with a larger training part")
    return made_optimizer(make, trainable)


@dataclass
class Classification:
    """The task of training a classifier."""

    name: ClassVar[str] = "classification"
    row: ClassVar[type[Row]] = Epoch
    data: Splits
    model: nn.Module
    loss: Loss
    eps: tuple[float, ...]
    epochs: int
    batch_size: int
    seed: int
    augment: Augment | None
    project_every: int
    optimizer: Optimizer
    schedule: Schedule
    network: nn.Module = field(default_factory=nn.Identity)

    def __post_init__(self) -> None:
        self.modules = {"model": self.model}
        self.optimizers = {"model": self.optimizer}
        self.steps_per_epoch = math.ceil(len(self.data.train) / self.batch_size)
        self.steps = self.epochs * self.steps_per_epoch

    def require_usable(self) -> None:
        """Raise `ValueError` unless the model can be bounded, has an output per class, and the loss trains it."""
        network = validate(self.model, self.data.train.subset([0]), self.eps).network
        logits, labels = require_classes(network, self.data.train)
        require_loss(self.loss, logits, labels)
        if logits.shape[1] > self.data.classes and is_first_process():
            logger.warning(
                "model has %d outputs for %d classes: the others are answers that are never right",
                logits.shape[1],
                self.data.classes,
            )

    def step(self, at: Position, engine: Engine) -> Sequence[Measures]:
        engine.seed(self.seed, "step", at.epoch, at.step)
        order = epoch_order(self.seed, at.epoch, len(self.data.train))
        indices = order[at.step * self.batch_size : (at.step + 1) * self.batch_size]
        images, labels = batch(self.data.train, indices)
        if self.augment:
            images = _augmented(self.augment, images, generator(self.seed, "augment", at.epoch, at.step))
        (images, labels), own = engine.share(images, labels)
        dtype = next(self.model.parameters()).dtype
        images, labels = images.to(engine.device), labels.to(engine.device)
        with engine.autocast():
            logits = as_computed(self.model(images.to(dtype)))
        loss = self.loss(logits, labels)
        correct = int((logits.detach().argmax(dim=1) == labels).sum()) if own else 0
        share, total = own / len(indices), float(loss.detach()) * own
        measured = engine.update(self.optimizer, loss, share, loss=total, correct=correct, seen=own)
        if is_due(at.step + 1, self.steps_per_epoch, self.project_every):
            project_(self.model)
        return [measured]

    def running(self, progress: Progress) -> str:
        seen = progress.sums["seen"]
        return f"loss {progress.sums['loss'] / seen:.4f}  train {progress.sums['correct'] / seen:.2%}"

    def validate(self, at: Position, progress: Progress, engine: Engine) -> Epoch:
        found = validate(self.model, self.data.validation, self.eps, engine.processes)
        self.network = found.network
        return Epoch(
            epoch=at.epoch + 1,
            step=(at.epoch + 1) * self.steps_per_epoch,
            learning_rate=at.learning_rate,
            loss=progress.sums["loss"] / progress.sums["seen"],
            accuracy=progress.sums["correct"] / progress.sums["seen"],
            clean=found.clean,
            certified=found.certified,
            lipschitz=found.lipschitz,
        )

    def artefacts(self, record: Record[Any]) -> Mapping[str, bytes]:
        best = record.best_epoch == len(record.epochs)
        weights = {"checkpoints/best.safetensors": encode_best(self.model, record.best_epoch)} if best else {}
        return weights | record.files()

    def histograms(self) -> Mapping[str, Tensor]:
        values = singular_values(self.network, self.data.image_shape)
        return {f"singular_values/{name}": value for name, value in values.items()}


def _augmented(augment: Augment, images: Tensor, draws: torch.Generator) -> Tensor:
    """The augmented images. Raises `ValueError` if their number or shape has changed."""
    wanted = "give augment(images (B, C, H, W), generator=...), such as lconvnet.data.crop_and_flip"
    try:
        found = augment(images, generator=draws)
    except TypeError as error:
        raise ValueError(f"augment cannot be used ({error}): {wanted}") from error
    if not isinstance(found, Tensor) or found.shape != images.shape or not found.is_floating_point():
        kind = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"augment gives {kind} for images {tuple(images.shape)}, not as many of that shape: {wanted}")
    if not bool(found.isfinite().all()):
        raise ValueError(f"augment gives NaN or infinite pixels: {wanted}")
    return found


def _restore_best(run: Run) -> None:
    """Put the weights of the best epoch into the model, on every process."""
    path = run.place.folder.best if run.place.folder else Path("best epoch")
    load_weights(run.task.modules["model"], run.engine.processes.from_first(partial(_best_weights, run)), path)


def _best_weights(run: Run) -> dict[str, Any]:
    """The best weights, from the folder or, without one, from memory."""
    if run.place.folder is None:
        return run.best["model"]
    weights, epoch = read_best(run.place.folder.best)
    if epoch != run.record.best_epoch:
        raise CheckpointError(
            f"{run.place.folder.best}: holds epoch {epoch}, the record names {run.record.best_epoch} as the best; "
            "one of the files was exchanged, restore it or train in another folder"
        )
    return weights


def _radii(eps: float | Sequence[float] | None, select_eps: float | None, loss: Loss) -> tuple[float, ...]:
    """The radii to certify, checked; the first one chooses the epoch."""
    own = float(loss.eps) if isinstance(loss, Hinge | OffsetCrossEntropy) else None
    asked: Any = own if eps is None else eps
    if asked is None:
        raise ValueError(f"eps=None: {loss} has no radius of its own; pass eps, the l2 radii to certify at")
    several = isinstance(asked, Iterable) and not isinstance(asked, str) and not is_finite_number(asked)
    given: tuple[Any, ...] = tuple(asked) if several else (asked,)
    radii = tuple(map(float, filter(_is_radius, given)))
    if not radii or len(radii) < len(given) or any(isclose(a, b, rel_tol=SAME) for a, b in combinations(radii, 2)):
        raise ValueError(f"eps={eps!r}: must be one or more different positive l2 radii over pixels in [0, 1]")
    if select_eps is not None and not _is_radius(select_eps):
        raise ValueError(f"select_eps={select_eps!r}: must be a positive l2 radius over pixels in [0, 1]")
    wanted = float(select_eps or own or radii[0])
    chosen = next((radius for radius in radii if isclose(radius, wanted, rel_tol=SAME)), wanted)
    return (chosen, *(radius for radius in radii if radius != chosen))


def _is_radius(value: Any) -> bool:
    return is_finite_number(value) and value > 0
