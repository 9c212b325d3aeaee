"""Training of a critic: every step is a function of (seed, step) and the state in the checkpoint.

A training that was killed and resumed is, bit for bit, the one that was not (on one machine; on a GPU as far as its
kernels are deterministic).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lconvnet.training import CheckpointError, Diverged
from lconvnet.training.checkpoint import load_weights
from lconvnet.training.folder import RunFolder, interrupted
from lconvnet.training.interruption import Interruption
from lconvnet.training.projection import is_due, project_
from lconvnet.training.randomness import derive_seed, seed_global
from lconvnet.training.state import divergence, first_not_finite, with_name
from lconvnet.wasserstein import checkpoint
from lconvnet.wasserstein.objective import critic_values, difference
from lconvnet.wasserstein.progress import OnStep
from lconvnet.wasserstein.samples import Distribution

PROJECT_EVERY = 100


@dataclass
class Run:
    """A critic that learns to be larger on `high` than on `low`; `values` holds the difference of every step done."""

    critic: nn.Module
    high: Distribution
    low: Distribution
    optimizer: Optimizer
    scheduler: LRScheduler
    steps: int
    seed: int
    checkpoint_every: int
    folder: RunFolder | None
    settings: dict[str, Any]
    values: list[float] = field(default_factory=list)

    @property
    def like(self) -> torch.Tensor:
        """A parameter: device and dtype of the inputs."""
        return next(self.critic.parameters())


def train(run: Run, interruption: Interruption, on_step: OnStep) -> None:
    """Train from where `run` stands to the end. Raises `Diverged`, and `Interrupted` after saving."""
    run.critic.train()
    while len(run.values) < run.steps:
        _step(run)
        done = len(run.values)
        if is_due(done, run.steps, PROJECT_EVERY):
            project_(run.critic)
        on_step(done, run.values[-1])
        if interruption.requested or done % run.checkpoint_every == 0 or done == run.steps:
            save(run)
        if interruption.requested and done < run.steps:
            raise interrupted(interruption.requested, f"{done} of {run.steps} steps", run.folder)
    run.critic.eval()


def _step(run: Run) -> None:
    """One optimiser step that increases mean f(high) - mean f(low) on a batch."""
    step, like = len(run.values), run.like
    seed_global(derive_seed(run.seed, "critic step", 0, step), like.device)
    high, low = (side.batch(step).to(like.device, like.dtype) for side in (run.high, run.low))
    run.optimizer.zero_grad()
    with divergence(partial(_require_finite, run)):
        values = critic_values(run.critic, torch.cat([high, low]))
        gap = difference(values[: len(high)], values[len(high) :])
        (-gap).backward()
    value = float(gap.detach())
    if not math.isfinite(value):
        raise diverged(run, with_name(f"the difference is {value}", run.critic))
    run.optimizer.step()
    run.scheduler.step()
    run.values.append(value)


def diverged(run: Run, what: str) -> Diverged:
    """The error for a critic that left the finite numbers; the last checkpoint is older and stays."""
    rate = float(run.scheduler.get_last_lr()[0])
    kept = f"; the checkpoint in {run.folder.path} is from before" if run.folder else ""
    return Diverged(
        f"critic diverged at step {len(run.values) + 1} with learning rate {rate:.4g}: {what}; "
        f"lower the learning rate of the optimizer{kept}"
    )


def _require_finite(run: Run) -> None:
    """Raise `Diverged` if a stored value of the critic is NaN or infinite."""
    if name := first_not_finite(run.critic):
        raise diverged(run, f"{name} is not finite")


def save(run: Run) -> None:
    """Write the checkpoint. Raises `Diverged` rather than write NaN."""
    _require_finite(run)
    if run.folder is not None:
        states = {name: getattr(run, name).state_dict() for name in ("critic", "optimizer", "scheduler")}
        values = torch.tensor(run.values, dtype=torch.float64)
        checkpoint.write(run.folder.last, {"settings": run.settings, "values": values, **states})


def begin(run: Run) -> None:
    """Take up the folder's checkpoint, first writing one where there is none: start and resume are the same path.

    Raises `CheckpointError` if it is not of this run.
    """
    if run.folder is None:
        return
    path = run.folder.last
    if not path.exists():
        run.folder.refuse_if_started()  # results without the checkpoint that they came from
        save(run)
    state = checkpoint.read(path, run.settings)
    run.settings = state["settings"]
    load_weights(run.critic, state["critic"], path)
    try:
        run.optimizer.load_state_dict(state["optimizer"])
        run.scheduler.load_state_dict(state["scheduler"])
        run.values = [float(value) for value in state["values"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged checkpoint ({error}); use another folder") from error
