"""The training loop of every task: order, resume, signals, processes, checkpoints, records, display, divergence.

A step follows from (seed, epoch, step) and the state in the checkpoint alone. A run that was killed and resumed
therefore equals the undisturbed run bit for bit (on one machine; on a GPU as far as its kernels are deterministic).
With several processes a batch is the joint one and each process takes its share. All values that decide how the run
continues are added up over the processes.
"""

import contextlib
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lconvnet.training import checkpoint as checkpoints
from lconvnet.training.checkpoint import VERSION, Checkpoint, CheckpointError, Progress, load_weights
from lconvnet.training.checks import made_scheduler, same_start, trial
from lconvnet.training.engine import Averages, Engine, Measures, NotFiniteError
from lconvnet.training.options import Place
from lconvnet.training.processes import Interrupted, Interruption, launched
from lconvnet.training.record import Epoch, Record, Row
from lconvnet.training.reporting import curves, display
from lconvnet.training.schedules import Schedule
from lconvnet.training.settings import LENGTH, OUTSIDE, differences, identity, versions

logger = logging.getLogger("lconvnet")

LONGER = (
    "the learning rates of a run are made for its length: to train for longer, start a new run from its weights in "
    "another folder, after load_best(model, RUN), on the command line lconvnet train CFG --from RUN --out NEW"
)


class Diverged(ValueError):  # noqa: N818 (says what happened, as StopIteration does)
    """The loss or a weight is no longer finite: the options of the optimiser do not fit the problem."""


@dataclass(frozen=True)
class Position:
    """The position of a step or a validation: epochs done, steps done in the present epoch, and the learning rate."""

    epoch: int
    step: int
    learning_rate: float


class Task(Protocol):
    """One objective. The loop owns order and state; a task defines the step.

    Attributes:
        name: one of `checkpoint.TASKS`.
        row: the class of its epochs.
        modules: networks that the loop moves, checks for NaN, saves and restores.
        optimizers: those of the modules.
        schedule: makes the learning rates of each optimiser; None leaves them as they are.
        epochs, steps_per_epoch, steps: the length of the run; the last epoch may be shorter.
    """

    name: ClassVar[str]
    row: ClassVar[type[Row]]

    @property
    def modules(self) -> Mapping[str, nn.Module]: ...
    @property
    def optimizers(self) -> Mapping[str, Optimizer]: ...
    @property
    def schedule(self) -> Schedule | None: ...
    @property
    def epochs(self) -> int: ...
    @property
    def steps_per_epoch(self) -> int: ...
    @property
    def steps(self) -> int: ...

    def step(self, at: Position, engine: Engine) -> Sequence[Measures]:
        """One step, a function of (seed, position, state). Returns the measures of its updates, in order."""
        ...

    def running(self, progress: Progress) -> str:
        """The text that a display shows for the epoch so far."""
        ...

    def validate(self, at: Position, progress: Progress, engine: Engine) -> Row:
        """The row of the epoch that has just ended."""
        ...

    def artefacts(self, record: Record[Any]) -> Mapping[str, bytes]:
        """The files to write after an epoch, in this order, by their places in the run folder."""
        ...

    def histograms(self) -> Mapping[str, Tensor]:
        """Values whose distribution TensorBoard shows after an epoch, by name."""
        ...


@dataclass
class Run:
    """A task in progress, with its settings, its place and its progress. Of several processes only the first has a
    folder."""

    task: Task
    place: Place
    engine: Engine
    record: Record[Any]
    progress: Progress = field(default_factory=Progress)
    schedulers: dict[str, LRScheduler] = field(default_factory=dict)
    averages: Averages | None = None
    best: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    version: int = VERSION  # of the checkpoint that the run continues from

    @property
    def steps_in_epoch(self) -> int:
        """Steps of the present epoch."""
        return min(self.task.steps_per_epoch, self.task.steps - self.progress.epoch * self.task.steps_per_epoch)

    @property
    def done(self) -> int:
        """Steps since the start."""
        return min(self.progress.epoch * self.task.steps_per_epoch + self.progress.step, self.task.steps)

    @property
    def position(self) -> Position:
        """The present position of the run."""
        rates = [group["lr"] for one in self.task.optimizers.values() for group in one.param_groups if "lr" in group]
        return Position(self.progress.epoch, self.progress.step, float(rates[0]) if rates else math.nan)

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """The context in which the modules have the weights that the run keeps."""
        return self.averages.applied() if self.averages else contextlib.nullcontext()


def train(
    task: Task,
    settings: Mapping[str, Any],
    place: Place,
    *,
    origin: Mapping[str, Any] | None = None,
    finish: Callable[[Run], None] = lambda run: None,
) -> Run:
    """Train a task to its end, from its checkpoint if there is one. The modules then have the weights that the run
    keeps.

    `settings` are all that decides the result; a resume must repeat them. Every process calls `finish` before they
    part. Raises `Interrupted`, `Diverged`, `CheckpointError` and `atomic.WriteError`.
    """
    options = place.options
    asked = {**settings, **options.settings, **({"from": dict(origin)} if origin else {})}
    fresh = {name: trial(optimizer) for name, optimizer in task.optimizers.items()}
    epochs = math.ceil(task.steps / task.steps_per_epoch)
    schedulers = {
        name: made_scheduler(task.schedule, optimizer, epochs, task.steps_per_epoch)
        for name, optimizer in task.optimizers.items()
        if task.schedule
    }
    processes = launched(place.fabric)  # only after all checks that one process can make
    record = Record(asked, versions(place.device, processes.count), row=task.row)
    engine = Engine(place.fabric, place.device, processes, options.clip_gradient)
    averages = Averages(task.modules, options.ema) if options.ema is not None else None
    run = Run(task, place, engine, record, schedulers=schedulers, averages=averages)
    with processes.ending_together(Interrupted, Diverged):
        _begin(run, fresh)
        if run.done < task.steps:
            _carry_out(run)
        if run.averages:
            run.averages.apply()
        for module in task.modules.values():
            module.eval()
        finish(run)
    return run


def _carry_out(run: Run) -> None:
    """Train to the end, with displays and signal handlers active."""
    options, first = run.place.options, run.engine.processes.first
    folder = run.place.folder.tensorboard if run.place.folder and options.tensorboard else None
    epochs, done = math.ceil(run.task.steps / run.task.steps_per_epoch), run.progress.epoch
    shown = curves(folder, done * run.task.steps_per_epoch)
    with (
        contextlib.closing(shown),
        display(epochs, run.steps_in_epoch, done, progress=options.progress and first) as screen,
        Interruption() as run.engine.interruption,
    ):
        while run.done < run.task.steps:
            started, first_step, seen = time.perf_counter(), run.progress.step, run.progress.sums.get("seen", 0.0)
            at = _train_epoch(run, screen.step)
            trained, images = time.perf_counter(), run.progress.sums.get("seen", 0.0) - seen
            row = _finish_epoch(run, at)
            if first:
                shown.add(row, run.task.histograms)
                screen.epoch(row)
                times = {"epoch": row.epoch, "first_step": first_step, "seconds": round(trained - started, 4)}
                times |= {"images_per_second": round(images / (trained - started), 1)} if images else {}
                times |= {"validation_seconds": round(time.perf_counter() - trained, 4)}
                if run.place.folder:
                    run.place.folder.log_timing(times)
                if options.on_epoch:
                    options.on_epoch(row)
            number = run.engine.interruption.number
            _stop_if(int(run.engine.processes.gather(number).max()), run)


def _train_epoch(run: Run, show: Callable[[int, str], None]) -> Position:
    """Take the remaining steps of the current epoch; return the position of the last one."""
    progress, options, steps = run.progress, run.place.options, run.steps_in_epoch
    for module in run.task.modules.values():
        module.train()
    at = run.position
    while progress.step < steps:
        at = run.position
        with _divergence(run):
            measured = run.task.step(at, run.engine)
        for scheduler in run.schedulers.values():
            scheduler.step()
        if run.averages:
            run.averages.update()
        for measures in measured:
            progress.add(measures)
        progress.step += 1
        show(progress.step, run.task.running(progress))
        if options.on_step and run.engine.processes.first:
            options.on_step(run.done, measured[-1])
        asked = run.engine.asked or (run.engine.interruption.number if run.engine.processes.count == 1 else 0)
        if progress.step < steps and (asked or progress.step % options.checkpoint_every == 0):
            _save(run)
            _stop_if(asked, run)
    return at


@contextlib.contextmanager
def _divergence(run: Run) -> Iterator[None]:
    """Raise `Diverged` for measures that are not finite, and for a kernel's error if a weight is not finite."""
    try:
        yield
    except NotFiniteError as error:
        name = _not_finite(run.task.modules)
        raise _diverged(run, f"{error} ({name} is not finite)" if name else str(error)) from None
    except (ValueError, torch.linalg.LinAlgError):
        _require_finite(run)
        raise


def _not_finite(modules: Mapping[str, nn.Module]) -> str:
    """The name of a stored value that is NaN or infinite; empty if there is none."""
    for owner, module in modules.items():
        for name, value in module.state_dict().items():
            if value.is_floating_point() and not value.isfinite().all():
                return name if len(modules) == 1 else f"{name} of the {owner}"
    return ""


def _require_finite(run: Run) -> None:
    """Raise `Diverged` if a stored value of a module is NaN or infinite."""
    if name := _not_finite(run.task.modules):
        raise _diverged(run, f"{name} is not finite")


def _diverged(run: Run, what: str) -> Diverged:
    """The error for measures or weights that are not finite; the last checkpoint is older and stays."""
    kept = f"; the checkpoint in {run.place.folder.path} is from before" if run.place.folder else ""
    return Diverged(
        f"training diverged at step {run.done + 1} (epoch {run.progress.epoch + 1}): {what} with learning rate "
        f"{run.position.learning_rate:.4g}; lower the learning rate of the optimizer, or check the loss{kept}"
    )


def _finish_epoch(run: Run, at: Position) -> Row:
    """Validate, record, keep the weights if they are the best so far, and save."""
    task = run.task
    _require_finite(run)
    with run.averaged():
        row = task.validate(at, run.progress, run.engine)
        run.progress = Progress(epoch=row.epoch)
        run.record = run.record.add(row, finished=run.done == task.steps)
        chosen = task.row is Epoch and run.record.best_epoch == row.epoch
        if chosen and run.place.folder is None and run.engine.processes.first:
            run.best = {name: _on_cpu(module, copy=True) for name, module in task.modules.items()}
    _save(run)
    return row


def _save(run: Run) -> None:
    """Write the checkpoint and, right after an epoch, the artefacts. Raises `Diverged` instead of writing NaN."""
    _require_finite(run)  # on every process, because all must stop
    if run.place.folder is not None:
        checkpoints.save(run.place.folder.last, _state(run), run.task.name)
        _write_artefacts(run)


def _state(run: Run) -> Checkpoint:
    averages = run.averages.values if run.averages else {}
    states = ({name: one.state_dict() for name, one in part.items()} for part in (run.task.optimizers, run.schedulers))
    modules = {name: dict(module.state_dict()) for name, module in run.task.modules.items()}
    return Checkpoint(run.progress, run.record, modules, *states, averages=averages)


def _write_artefacts(run: Run) -> None:
    """Write the task's artefacts between two epochs. A resume repeats this, because a kill may have come after the
    checkpoint and before the artefacts."""
    if run.place.folder is None or run.progress.step or not run.progress.epoch:
        return
    with run.averaged():
        for place, data in run.task.artefacts(run.record).items():
            run.place.folder.write(place, data)


def _begin(run: Run, fresh: Mapping[str, Optimizer]) -> None:
    """Continue from the folder's checkpoint. If there is none, write one first: start and resume take the same path.

    Without a folder the state of the first process counts. Raises `CheckpointError` if the checkpoint belongs to
    another run, and `ValueError` if this process was given another run than the first process.
    """
    folder, processes = run.place.folder, run.engine.processes
    if folder and not folder.last.exists():
        folder.refuse_if_started()  # results whose checkpoint is missing
        _save(run)
    if folder is None and processes.count == 1:
        return
    saved = processes.from_first(partial(_checked, run, fresh))
    if changed := list(differences(*(identity(one.settings) | {"from": None} for one in (saved.record, run.record)))):
        raise ValueError(
            f"process {processes.rank} was given other settings or images than the first "
            f"({'; '.join(changed[:5])}); all must run the same command on the same data"
        )
    _restore(run, saved, folder.last if folder else Path("first process"))
    _write_artefacts(run)


def _restore(run: Run, saved: Checkpoint, path: Path) -> None:
    if saved.modules.keys() != run.task.modules.keys():
        raise CheckpointError(f"{path}: damaged checkpoint (networks {list(saved.modules)}); start in another folder")
    for name, module in run.task.modules.items():
        load_weights(module, saved.modules[name], path)
    run.record, run.progress, run.version = saved.record, saved.progress, saved.version
    if run.done == run.task.steps and saved.version != VERSION:
        return  # a finished run needs only its weights
    try:
        for name, optimizer in run.task.optimizers.items():
            optimizer.load_state_dict(saved.optimizers[name])
        for name, scheduler in run.schedulers.items():
            scheduler.load_state_dict(saved.schedulers[name])
        if run.averages:
            run.averages.load(saved.averages)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged optimiser state ({error}); use another folder") from error


def _checked(run: Run, fresh: Mapping[str, Optimizer]) -> Checkpoint:
    """The folder's checkpoint if it belongs to this run; without a folder, the state in memory."""
    if run.place.folder is None:
        return replace(_state(run), modules={name: _on_cpu(module) for name, module in run.task.modules.items()})
    path = run.place.folder.last
    saved = checkpoints.load(path, run.task.name)
    record = _continued(path, saved, run, fresh)
    for line in differences(record.versions or run.record.versions, run.record.versions):
        logger.warning("resuming with another version, the last digits may differ: %s", line)
    return replace(saved, record=record)


def _continued(path: Path, saved: Checkpoint, run: Run, fresh: Mapping[str, Optimizer]) -> Record[Any]:
    """The saved record as the record of this run, which may be longer or shorter.

    Raises `CheckpointError` if the settings differ, if the saved steps had other learning rates than the same steps of
    this run, or if the record is unfinished and of an older version. A resume may leave out the origin of the first
    weights.
    """
    old, new, task = saved.record.settings, run.record.settings, run.task
    known = old if "from" in new else {name: value for name, value in old.items() if name != "from"}
    changed = list(differences(identity(known), identity(new)))
    length = [line for line in changed if line.startswith(("epochs: ", "steps: "))]
    before = int(old.get("steps") or old.get("epochs", task.epochs) * task.steps_per_epoch)
    done = min(saved.progress.epoch * task.steps_per_epoch + saved.progress.step, before)
    if length:
        changed = list(differences(*(identity(one, outside=OUTSIDE | LENGTH) for one in (known, new))))
    if changed:
        raise CheckpointError(
            f"{path}: was written with other settings ({'; '.join([*length, *changed][:5])}); "
            f"{LONGER if length else 'resume with those, or train in another folder'}"
        )
    if saved.progress.epoch > task.epochs:
        raise CheckpointError(f"{path}: epochs={task.epochs}, but {saved.progress.epoch} are done: ask for more")
    if done > task.steps or (saved.progress.step and done == task.steps):
        raise CheckpointError(f"{path}: steps={task.steps}, but {done} are done, in mid-epoch: ask for more")
    if length and not _same_start(run, fresh, before, done):
        raise CheckpointError(f"{path}: was written with other settings ({'; '.join(length)}); {LONGER}")
    if saved.version != VERSION and done < task.steps:
        raise CheckpointError(
            f"{path}: is of an unfinished run of an older release, whose checkpoints this one does not go on with; "
            "finish it with that release, or start anew in another folder"
        )
    if not length:
        return saved.record
    stated = {name: new[name] for name in ("epochs", "steps", "settings") if name in new}
    finished = done == task.steps and task.row is Epoch
    return replace(saved.record, settings=saved.record.settings | stated, finished=finished)


def _same_start(run: Run, fresh: Mapping[str, Optimizer], before: int, done: int) -> bool:
    """Whether the `done` steps of a run of `before` steps equal the first of this run in epoch and learning rate."""
    task = run.task
    if done == before and before % task.steps_per_epoch:
        return False
    lengths = [math.ceil(steps / task.steps_per_epoch) for steps in (before, task.steps)]
    return task.schedule is None or all(
        same_start(task.schedule, one, lengths, task.steps_per_epoch, done) for one in fresh.values()
    )


def _on_cpu(module: nn.Module, *, copy: bool = False) -> dict[str, Tensor]:
    state = module.state_dict().items()
    return {name: (value.detach().clone() if copy else value.detach()).cpu() for name, value in state}


def _stop_if(number: int, run: Run) -> None:
    """Raise `Interrupted` if `number` is a signal that the processes have agreed on."""
    if not number:
        return
    folder = run.place.folder
    resumable = "resume=True, on the command line --resume"
    way_out = f"continue {folder.path} with {resumable}" if folder else "nothing is kept, directory was None"
    done = f"{run.progress.epoch} epochs and {run.progress.step} steps"
    raise Interrupted(f"stopped by {signal.Signals(number).name} after {done}; {way_out}")
