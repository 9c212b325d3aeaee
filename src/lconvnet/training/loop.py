"""The training loop: steps, epochs, and the instants at which its state goes to disk.

Everything that happens in a step follows from (seed, epoch, step) and the state in the checkpoint, so a run that was
killed and resumed is, bit for bit, the run that was not (on one machine; on a GPU as far as its kernels are
deterministic). With several processes the batch is the joint one: each takes its share, and everything that decides how
the run goes on is added up over all of them.
"""

import math
import signal
import time
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lconvnet.data import batch
from lconvnet.training.checkpoint import Progress
from lconvnet.training.evaluation import validate
from lconvnet.training.folder import interrupted
from lconvnet.training.interruption import Interruption
from lconvnet.training.processes import Processes
from lconvnet.training.projection import is_due, project_
from lconvnet.training.randomness import derive_seed, epoch_order, generator, seed_global
from lconvnet.training.record import Epoch
from lconvnet.training.reporting import Curves, Display
from lconvnet.training.state import Augment, Run, diverged, divergence, require_finite, save, with_name


def train(run: Run, interruption: Interruption, display: Display, curves: Curves) -> None:
    """Train from where `run` stands to the end. Raises `Interrupted` or `Diverged`."""
    while run.progress.epoch < run.plan.epochs:
        started, first = time.perf_counter(), run.progress.step
        rate = _train_epoch(run, interruption, display)
        trained = time.perf_counter()
        epoch = _finish_epoch(run, rate, curves)
        if run.processes.first:
            display.epoch(epoch)
            if run.folder:
                run.folder.log_timing(_timing(run, epoch, first, started, trained))
            if run.plan.on_epoch:
                run.plan.on_epoch(epoch)
        _stop_if(int(run.processes.gather(interruption.number).max()), run)


def _train_epoch(run: Run, interruption: Interruption, display: Display) -> float:
    """The remaining steps of the current epoch; the learning rate of the last one."""
    progress, plan, steps = run.progress, run.plan, run.steps_per_epoch
    batches = epoch_order(plan.seed, progress.epoch, len(run.splits.train)).split(plan.batch_size)
    run.model.train()
    rate = float(run.scheduler.get_last_lr()[0])
    while progress.step < steps:
        rate = float(run.scheduler.get_last_lr()[0])
        stop = _step(run, batches[progress.step], rate, interruption)
        progress.step += 1
        if is_due(progress.step, steps, plan.project_every):
            project_(run.model)
        display.step(progress.step, progress.loss_sum / progress.seen, progress.correct / progress.seen)
        if progress.step < steps and (stop or progress.step % plan.checkpoint_every == 0):
            save(run)
            _stop_if(stop, run)
    return rate


def _step(run: Run, indices: Tensor, rate: float, interruption: Interruption) -> int:
    """One optimiser step on one batch; running sums are updated. The signal that asks any process to stop, or 0."""
    progress, plan, processes = run.progress, run.plan, run.processes
    place = (progress.epoch, progress.step)
    own_dropout = f"step of process {processes.rank}" if processes.rank else "step"
    seed_global(derive_seed(plan.seed, own_dropout, *place), run.fabric.device)  # `fit` gives the caller's state back
    images, labels = batch(run.splits.train, indices)
    if plan.augment:
        images = _augmented(plan.augment, images, generator(plan.seed, "augment", *place))
    images, labels, own = _share(processes, images, labels)
    images, labels = run.fabric.to_device((images, labels))
    run.optimizer.zero_grad()
    with divergence(partial(require_finite, run, rate)), run.fabric.autocast():
        logits = run.model(images.to(run.dtype))
    logits = logits if logits.dtype == torch.float64 else logits.float()
    loss = plan.loss(logits, labels)
    correct = int((logits.detach().argmax(dim=1) == labels).sum()) if own else 0
    sums = processes.gather(float(loss.detach()) * own, correct, own, interruption.number)
    value, correct, seen = sums[:, :3].sum(dim=0).tolist()
    if not math.isfinite(value):
        raise diverged(run, with_name(f"loss is {value}", run.model), rate)
    run.fabric.backward(loss * (own / len(indices)))  # added up, the gradient of the mean over the joint batch
    processes.add_gradients_(run.model.parameters())
    run.optimizer.step()
    run.scheduler.step()
    progress.loss_sum += value
    progress.correct += int(correct)
    progress.seen += int(seen)
    return int(sums[:, 3].max())


def _augmented(augment: Augment, images: Tensor, draws: torch.Generator) -> Tensor:
    """The images augmented; raises `ValueError` where that gives anything but as many images of the same shape."""
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


def _share(processes: Processes, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, int]:
    """This process's part of the joint batch, and how many images of it count.

    Where there is none left it takes one that does not count, since power iterations go on in every forward pass.
    """
    mine = processes.share(labels)
    if not len(mine):
        return images[:1], labels[:1], 0
    return processes.share(images), mine, len(mine)


def _finish_epoch(run: Run, rate: float, curves: Curves) -> Epoch:
    """Validate, record, keep the weights if they are the best so far, and save."""
    progress, plan = run.progress, run.plan
    require_finite(run, rate)
    result = validate(run.model, run.splits.validation, plan.eps, run.processes)
    epoch = Epoch(
        epoch=progress.epoch + 1,
        step=(progress.epoch + 1) * run.steps_per_epoch,
        learning_rate=rate,
        loss=progress.loss_sum / progress.seen,
        accuracy=progress.correct / progress.seen,
        clean=result.clean,
        certified=result.certified,
        lipschitz=result.lipschitz,
    )
    run.record = run.record.add(epoch, finished=epoch.epoch == plan.epochs)
    run.progress = Progress(epoch=epoch.epoch)
    if run.folder is None and run.processes.first and run.record.best_epoch == epoch.epoch:
        run.best = {name: value.detach().clone().cpu() for name, value in run.model.state_dict().items()}
    save(run)
    curves.add(epoch, result.network, run.splits.image_shape)
    return epoch


def _stop_if(number: int, run: Run) -> None:
    """Raise `Interrupted` where `number` is a signal that the processes have agreed on."""
    if not number:
        return
    done = f"{run.progress.epoch} epochs and {run.progress.step} steps"
    raise interrupted(signal.Signals(number).name, done, run.folder)


def _timing(run: Run, epoch: Epoch, first: int, started: float, trained: float) -> dict[str, Any]:
    """Wall times of an epoch, as far as this process trained it; throughput in training images per second."""
    images = len(run.splits.train) - first * run.plan.batch_size
    seconds = trained - started
    return {
        "epoch": epoch.epoch,
        "first_step": first,
        "seconds": round(seconds, 4),
        "images_per_second": round(images / seconds, 1),
        "validation_seconds": round(time.perf_counter() - trained, 4),
    }
