"""A run as it stands: what it is to do, with what, how far it is; and how that goes to disk and comes back.

checkpoints/last.ckpt          everything a resume needs; one file, replaced atomically
generator.safetensors          the generator of the last whole epoch, for `load_generator`
samples/epoch-0001.png         its images of the same latent vectors, epoch by epoch
record.json, logs/metrics.csv  the deterministic record; logs/timing.jsonl has the wall times
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn
from torch.optim import Optimizer

from lconvnet import atomic
from lconvnet.data import Images
from lconvnet.gan import checkpoint as checkpoints
from lconvnet.gan.checkpoint import STATES, Checkpoint, Progress
from lconvnet.gan.files import save_generator
from lconvnet.gan.grids import grid, png
from lconvnet.gan.objective import Objective
from lconvnet.gan.record import Epoch, Record
from lconvnet.gan.streams import generated, latents
from lconvnet.models import DCGANGenerator
from lconvnet.training import CheckpointError, Diverged
from lconvnet.training.checkpoint import load_weights, require_resumable, require_same_settings
from lconvnet.training.folder import RunFolder
from lconvnet.training.settings import differences
from lconvnet.training.state import first_not_finite

logger = logging.getLogger("lconvnet")
SHOWN = 64  # images on a grid


@dataclass(frozen=True)
class Plan:
    """What is to be done: the arguments of `train_gan` that the loop needs."""

    objective: Objective
    epochs: int
    steps_per_epoch: int
    batch_size: int
    critic_steps: int
    seed: int
    checkpoint_every: int
    on_epoch: Callable[[Epoch], None] | None


@dataclass
class Run:
    """What it is done with, and how far it is."""

    plan: Plan
    images: Images
    generator: DCGANGenerator
    critic: nn.Module
    generator_optimizer: Optimizer
    critic_optimizer: Optimizer
    folder: RunFolder | None
    record: Record
    progress: Progress = field(default_factory=Progress)

    @property
    def step(self) -> int:
        """Generator steps done since the start of the run."""
        return self.progress.epoch * self.plan.steps_per_epoch + self.progress.step


def samples_path(folder: Path, epoch: int) -> Path:
    """Where the grid of an epoch (1-based) lies."""
    return folder / "samples" / f"epoch-{epoch:04d}.png"


def generator_path(folder: Path) -> Path:
    """Where the generator of the last whole epoch lies."""
    return folder / "generator.safetensors"


def diverged(run: Run, what: str) -> Diverged:
    """The error for values that are no longer finite; the last checkpoint is older and stays."""
    kept = f"; the checkpoint in {run.folder.path} is from before" if run.folder else ""
    return Diverged(
        f"training diverged at step {run.step + 1} of the generator: {what}; lower the learning rates{kept}"
    )


def require_finite(run: Run) -> None:
    """Raise `Diverged` if a stored value of generator or critic is NaN or infinite."""
    for owner, module in (("generator", run.generator), ("critic", run.critic)):
        if name := first_not_finite(module):
            raise diverged(run, f"{name} of the {owner} is not finite")


def save(run: Run) -> None:
    """Write the checkpoint, and right after an epoch what follows from it. Raises `Diverged` rather than write NaN."""
    if run.folder is None:
        return
    require_finite(run)
    states = {name: getattr(run, name).state_dict() for name in STATES}
    checkpoints.save(run.folder.last, Checkpoint(run.progress, run.record, states))
    write_results(run)


def write_results(run: Run) -> None:
    """Between two epochs: generator, grid and record. A resume does it again, for the kill may have come before."""
    if run.folder is None or run.progress.step or not run.progress.epoch:
        return
    save_generator(run.generator, generator_path(run.folder.path))
    shown = generated(run.generator, latents(run.generator, SHOWN, run.plan.seed, "grid", 0))
    atomic.write_bytes(samples_path(run.folder.path, run.progress.epoch), png(grid(shown)))
    atomic.write_json(run.folder.record, run.record.to_dict())
    atomic.write_text(run.folder.metrics, run.record.to_csv())


def restore(run: Run) -> None:
    """Take up the state of the folder's checkpoint. Raises `CheckpointError` if it does not belong to this run."""
    if run.folder is None:
        return
    saved = checkpoints.load(run.folder.last)
    _require_this_run(saved.record, run, run.folder.last)
    require_resumable(run.folder.last, saved.version, finished=saved.progress.epoch == run.plan.epochs)
    load_weights(run.generator, saved.states["generator"], run.folder.last)
    load_weights(run.critic, saved.states["critic"], run.folder.last)
    try:
        run.generator_optimizer.load_state_dict(saved.states["generator_optimizer"])
        run.critic_optimizer.load_state_dict(saved.states["critic_optimizer"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{run.folder.last}: damaged optimiser state ({error}); use another folder") from error
    run.record, run.progress = saved.record, saved.progress
    _sweep(run)
    write_results(run)


def _require_this_run(saved: Record, run: Run, path: Path) -> None:
    require_same_settings(path, saved.settings, run.record.settings)
    for line in differences(saved.versions, run.record.versions):
        logger.warning("resuming with another version, the last digits may differ: %s", line)
    if len(saved.epochs) > run.plan.epochs:
        raise CheckpointError(f"{path}: epochs={run.plan.epochs}, but {len(saved.epochs)} are done: ask for more")


def _sweep(run: Run) -> None:
    """Remove what killed writers left half-written; the folder is locked."""
    if run.folder:
        atomic.sweep(generator_path(run.folder.path))
        atomic.sweep(samples_path(run.folder.path, run.progress.epoch))
