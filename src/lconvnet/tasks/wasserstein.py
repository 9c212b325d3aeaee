"""The training of a critic, and the certified lower bound on the Wasserstein-1 distance that it gives."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer, RMSprop

from lconvnet.baking import bake
from lconvnet.bounds import lipschitz_bound
from lconvnet.layers import LipschitzLinear, MaxMin, OrthogonalLinear, Scale
from lconvnet.models import dcgan_critic, mlp
from lconvnet.tasks.estimates import Estimate, certified_values, critic_values, judge
from lconvnet.tasks.samples import Distribution, Given, diameter, prepare, require_comparable, require_resolved
from lconvnet.training.checkpoint import CYCLE, VERSION, Progress
from lconvnet.training.checks import MakeOptimizer, made_optimizer
from lconvnet.training.engine import Engine, Measures, as_computed, derive_seed, project_
from lconvnet.training.loop import Position, train
from lconvnet.training.options import Options, opened, require_counts, require_seed
from lconvnet.training.processes import Precision
from lconvnet.training.record import CriticEpoch, Record, Row
from lconvnet.training.schedules import OneCycle, Schedule
from lconvnet.training.settings import describe, described, versions

RATE = 1e-2
RMSPROP = partial(RMSprop, lr=RATE)
ONE_CYCLE = OneCycle()
PROJECT_EVERY = 100
HIDDEN = 4
NARROWEST, WIDEST = 64, 256
OnStep = Callable[[int, float], None]
"""Called after every optimiser step with the number of steps done and the difference on the last batch."""


def estimate(
    real: Given,
    fake: Given,
    *,
    critic: nn.Module | None = None,
    steps: int = 2000,
    batch_size: int = 64,
    optimizer: MakeOptimizer = RMSPROP,
    schedule: Schedule = ONE_CYCLE,
    seed: int = 0,
    confidence: float = 0.95,
    held_out: int | float | None = None,
    support: tuple[float, float] | None = None,
    directory: str | Path | None = None,
    resume: bool = False,
    checkpoint_every: int = 500,
    devices: int = 1,
    precision: Precision = "32-true",
    clip_gradient: float | None = None,
    ema: float | None = None,
    progress: bool = True,
    on_step: OnStep | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Estimate:
    """Train a critic to tell `real` from `fake` and return the certified lower bound on their distance.

    Swapping the two gives the same numbers and the negative critic. The global random state is restored.

    Args:
        real, fake: samples `(N, ...)`, paths, names of data sets, or samplers: `lconvnet.tasks.samples.prepare`.
        critic: any module with one output that `lipschitz_bound` knows after baking. It is trained in place and may get
            the other sign (`Estimate.critic` is oriented). By default that of `default_critic`.
        steps, batch_size: optimiser steps, and samples of each distribution per step. A resumed training may have more
            steps if the steps done keep their learning rates and are a multiple of 100.
        optimizer: makes the optimiser from the list of trainable parameters.
        schedule: see `lconvnet.training.schedules`; an epoch is 100 steps, as in the paper.
        seed: decides the default critic's first weights, the held-out samples and the batches.
        confidence: of the interval.
        held_out: how many samples training never sees, a count or a fraction of each side; by default a fifth, and
            10,000 of a sampler.
        support: (low, high), known limits of every value of both distributions, not only of the samples. 8-bit pixels
            need none: they lie in (0, 1). `Estimate.guaranteed` depends on it.
        directory: folder for record.json, checkpoints/last.ckpt and a lock beside it (.lock), and logs/timing.jsonl;
            with None nothing is written.
        resume: continue from the folder's checkpoint; without it, a folder that holds a run is refused.
        checkpoint_every: steps between two checkpoints within an epoch.
        devices, precision, clip_gradient, ema: as in `lconvnet.fit`; the certified critic is then the averaged one.
        progress: a bar on standard error, if that is a terminal; otherwise one line per epoch in the log `lconvnet`.
        on_step: called with the number of steps done and the difference on the last batch.
        origin: JSON-able facts on the origin of the critic's initial weights, for the record (`from`); a resume may
            leave them out.

    Raises:
        ValueError: an argument or the samples do not fit, the samples lie too far from 0, or the folder holds a run and
            `resume` is not set.
        CheckpointError: a file in the folder is damaged, foreign, or of other settings.
        Interrupted: SIGINT, SIGTERM or SIGUSR1, after saving a checkpoint.
        Diverged: the loss or a weight became NaN or infinite.
        atomic.WriteError: the folder cannot be written.

    >>> low = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    >>> found = estimate(low + 3.0, low, steps=50)
    >>> found.units, found.interval[0] < 18**0.5 < found.interval[1]
    ('l2 over 2 values as given', True)
    """
    require_counts(steps=steps, batch_size=batch_size)
    require_seed(seed)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence!r}: must lie strictly between 0 and 1, such as 0.95")
    options = Options(
        directory, resume, checkpoint_every, "auto", devices, precision, clip_gradient, ema, progress,
        on_step=None if on_step is None else lambda done, measures: on_step(done, measures["difference"]),
    )  # fmt: skip
    sides = [
        prepare(given, name, held_out=held_out, batch_size=batch_size, seed=seed)
        for given, name in ((real, "real"), (fake, "fake"))
    ]
    require_comparable(*sides)
    require_resolved(*sides)
    diameter(support, *sides)
    high, low = sorted(sides, key=lambda side: side.key)  # by content, so that a swap changes only a sign
    if critic is None:
        critic = default_critic(torch.cat([high.batch(0), low.batch(0)]), seed)
    with opened(options, critic) as place:
        require_critic(critic, high)
        made = made_optimizer(optimizer, [parameter for parameter in critic.parameters() if parameter.requires_grad])
        inputs = {"steps": steps, "batch_size": batch_size, "seed": seed, "held_out": held_out, "optimizer": made}
        inputs |= {"schedule": schedule, "critic": critic}
        data = {"high": high.key, "low": low.key}
        task = Wasserstein(**inputs, high=high, low=low)
        run = train(task, described({**inputs, "data": data}), place, origin=describe(origin))
        done = (steps - 1) % PROJECT_EVERY == 0 and ema is None
        if not done and run.version == VERSION:  # older checkpoints hold projected weights
            project_(critic)
        found = judge(
            critic,
            *sides,
            sign=1 if high is sides[0] else -1,
            confidence=confidence,
            support=support,
            history=[value for row in run.record.epochs for value in row.differences],
            settings=run.record.settings,
        )
        if place.folder:
            told = versions(place.device, run.engine.processes.count)
            record = {"format": CriticEpoch.FORMAT, **found.to_dict(), "versions": told}
            place.folder.write("record.json", (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())
    return found


def require_critic(critic: nn.Module, side: Distribution) -> None:
    """Raise `ValueError` unless the critic can be trained and bounded, and gives one number per sample."""
    if not any(parameter.requires_grad for parameter in critic.parameters()):
        raise ValueError("critic has no parameter that requires a gradient: there is nothing to train")
    network = bake(critic)
    bound = lipschitz_bound(network, input_shape=side.shape, diagnose=False)
    certified_values(network, bound, side.held_out[:2])


@dataclass
class Wasserstein:
    """The task of training a critic to be larger on `high` than on `low`."""

    name: ClassVar[str] = "wasserstein"
    row: ClassVar[type[Row]] = CriticEpoch
    steps: int
    batch_size: int
    seed: int
    held_out: int | float | None
    optimizer: Optimizer
    schedule: Schedule
    critic: nn.Module
    high: Distribution
    low: Distribution

    def __post_init__(self) -> None:
        self.modules = {"critic": self.critic}
        self.optimizers = {"critic": self.optimizer}
        self.epochs, self.steps_per_epoch = math.ceil(self.steps / CYCLE), CYCLE

    def step(self, at: Position, engine: Engine) -> Sequence[Measures]:
        """One update that increases mean f(high) - mean f(low) on a batch."""
        step, like = at.epoch * CYCLE + at.step, next(self.critic.parameters())
        engine.seed(self.seed, "critic step", 0, step)
        batches = [side.batch(step).to(engine.device, like.dtype) for side in (self.high, self.low)]
        shares = [engine.share(batch) for batch in batches]
        (high,), (low,) = (own for own, _ in shares)
        with engine.autocast():
            values = as_computed(critic_values(self.critic, torch.cat([high, low])))
        means = values[: len(high)].mean(), values[len(high) :].mean()
        parts = [mean * (count / len(batch)) for mean, (_, count), batch in zip(means, shares, batches, strict=True)]
        gap = parts[0] - parts[1]
        measured = engine.update(self.optimizer, -gap, difference=float(gap.detach()))
        if step % PROJECT_EVERY == 0:
            project_(self.critic)
        return [measured]

    def running(self, progress: Progress) -> str:
        return f"difference {progress.measures['difference'][-1]:.4f}"

    def validate(self, at: Position, progress: Progress, engine: Engine) -> CriticEpoch:
        differences = tuple(progress.measures["difference"])
        return CriticEpoch(at.epoch + 1, at.epoch * CYCLE + len(differences), differences)

    def artefacts(self, record: Record[Any]) -> Mapping[str, bytes]:
        return {}

    def histograms(self) -> Mapping[str, Tensor]:
        return {}


def default_critic(samples: Tensor, seed: int) -> nn.Module:
    """The paper's critic for images `(N, C, H, W)` (Li et al. 2019, appendix), else `dense_critic`.

    Every layer is orthogonal, so gradients keep their norm. The first weights follow from `seed` and the samples alone.
    The critic is on the GPU if there is one. The paper's critic pads to 32x32 and does not upsample. To repeat its
    CIFAR-10 setting, give `nn.Sequential(NearestUpsampling(2), *dcgan_critic(3, 64))`, whose bound is 2.

    >>> default_critic(torch.zeros(4, 2), seed=0).linear1
    LipschitzLinear(
      2, 64
      (kernel): Orthogonal()
    )
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "critic", 0))
        shape = samples.shape[1:]
        critic = dcgan_critic(shape[0], (shape[1], shape[2])) if len(shape) == 3 else dense_critic(samples)
    return critic.to("cuda" if torch.cuda.is_available() else "cpu")


def dense_critic(samples: Tensor, *, activation: Callable[[], nn.Module] = MaxMin) -> nn.Sequential:
    """s g((x - c) / s), g an orthogonal network, c the mean and s the root mean square distance from it.

    The scales cancel in the Lipschitz constant. They make the training independent of the origin and the unit of the
    samples `(N, ...)`. Biases start at 0, so at first every kink passes through the middle of the samples; with random
    biases most kinks stay away from them (`docs/wasserstein.md`).
    """
    flat = samples.float().flatten(1)
    centre = flat.mean(dim=0)
    scale = float((flat - centre).norm(dim=1).square().mean().sqrt()) or 1.0
    features = prod(samples.shape[1:])
    width = min(max(NARROWEST, features + features % 2), WIDEST)
    network = mlp(features, 1, (width,) * HIDDEN, linear=OrthogonalLinear, activation=activation)
    with torch.no_grad():
        for layer in network.children():
            if isinstance(layer, LipschitzLinear):
                cast(Tensor, layer.bias).zero_()
        first = cast(LipschitzLinear, network.get_submodule("linear1"))
        cast(Tensor, first.bias).copy_(-first.weight @ centre / scale)
    parts = OrderedDict(network.named_children())
    return nn.Sequential(OrderedDict(shrink=Scale(1 / scale)) | parts | OrderedDict(stretch=Scale(scale)))
