"""A certified lower bound on the Wasserstein-1 distance of any two distributions."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import RMSprop

from lconvnet import atomic
from lconvnet.baking import bake
from lconvnet.bounds import lipschitz_bound
from lconvnet.training.checks import MakeOptimizer, made_optimizer, made_scheduler
from lconvnet.training.folder import RunFolder
from lconvnet.training.interruption import Interruption
from lconvnet.training.schedules import OneCycle, Schedule
from lconvnet.training.settings import describe, describe_model, describe_optimizer, versions
from lconvnet.wasserstein.critic import default_critic
from lconvnet.wasserstein.loop import Run, begin, train
from lconvnet.wasserstein.progress import OnStep, shown
from lconvnet.wasserstein.result import Estimate, certified_values, judge
from lconvnet.wasserstein.samples import (
    Distribution,
    Given,
    diameter,
    prepare,
    require_comparable,
    require_resolved,
)

FORMAT = "lconvnet-estimate-1"
RATE = 1e-2
RMSPROP = partial(RMSprop, lr=RATE)
ONE_CYCLE = OneCycle()
CYCLE = 100  # steps of what a schedule takes for an epoch


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
    progress: bool = True,
    on_step: OnStep | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Estimate:
    """Train a critic to tell `real` from `fake` and return the certified lower bound on their distance.

    Swapping the two gives the same numbers and the negative critic. The global random state is left as it was.

    Args:
        real, fake: samples `(N, ...)`, paths, names of data sets, or samplers: `lconvnet.wasserstein.samples.prepare`.
        critic: any module with one output that `lipschitz_bound` knows when baked; it is trained in place (and may
            come out with the other sign: `Estimate.critic` is oriented). By default by `default_critic`.
        steps, batch_size: optimiser steps, and samples of each distribution in one.
        optimizer: makes the optimiser from the list of trainable parameters.
        schedule: see `lconvnet.training.schedules`; an epoch is 100 steps, as in the paper.
        seed: decides the default critic's first weights, the held-out samples and the batches.
        confidence: of the interval.
        held_out: how many samples training never sees, a count or a fraction of each side; by default a fifth, and
            10,000 of a sampler.
        support: (low, high) between which every value of both distributions is known to lie, whatever the samples;
            pixels of 8 bits lie in (0, 1) by themselves. `Estimate.guaranteed` rests on it.
        directory: folder for record.json, checkpoints/last.ckpt and a lock beside it (.lock); None: nothing is written.
        resume: go on from the folder's checkpoint; without it, a folder that holds a run is refused.
        checkpoint_every: steps between two checkpoints: what a kill can cost at most.
        progress: a bar on standard error, where that is a terminal; otherwise lines in the log `lconvnet`.
        on_step: called with the number of steps done and the difference on the last batch.
        origin: JSON-able facts on where the critic's initial weights came from, for the record (`from`); a resume may
            leave it out.

    Raises:
        ValueError: an argument or the samples do not fit, the samples lie too far from 0, or the folder holds a run and
            `resume` is not set.
        CheckpointError: a file in the folder is damaged, foreign, or of other settings.
        Interrupted: SIGINT or SIGTERM, after saving a checkpoint.
        Diverged: the critic left the finite numbers.
        atomic.WriteError: the folder cannot be written.

    >>> low = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    >>> found = estimate(low + 3.0, low, steps=50)
    >>> found.units, found.interval[0] < 18**0.5 < found.interval[1]
    ('l2 over 2 values as given', True)
    """
    _require_positive(steps=steps, batch_size=batch_size, checkpoint_every=checkpoint_every)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed={seed!r}: must be an integer")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence!r}: must lie strictly between 0 and 1, such as 0.95")
    sides = [
        prepare(given, name, held_out=held_out, batch_size=batch_size, seed=seed)
        for given, name in ((real, "real"), (fake, "fake"))
    ]
    require_comparable(*sides)
    require_resolved(*sides)
    diameter(support, *sides)
    high, low = sorted(sides, key=lambda side: side.key)  # by content, so that swapping changes only a sign
    if critic is None:
        critic = default_critic(torch.cat([high.batch(0), low.batch(0)]), seed)
    folder = None if directory is None else RunFolder(Path(directory))
    with _own_randomness(critic), folder.locked() if folder else contextlib.nullcontext():
        if folder and not resume:
            folder.refuse_if_started()
        require_critic(critic, high)
        options = {"steps": steps, "batch_size": batch_size, "seed": seed, "held_out": describe(held_out)}
        options |= {"from": describe(origin)} if origin else {}
        run = _prepare(critic, high, low, optimizer, schedule, options, checkpoint_every, folder)
        begin(run)
        _carry_out(run, progress, on_step)
        sign = 1 if high is sides[0] else -1
        found = judge(
            critic,
            *sides,
            sign=sign,
            confidence=confidence,
            support=support,
            history=run.values,
            settings=run.settings,
        )
        if folder:
            record = {"format": FORMAT, **found.to_dict(), "versions": versions(run.like.device)}
            atomic.write_json(folder.record, record)
    return found


def _prepare(
    critic: nn.Module,
    high: Distribution,
    low: Distribution,
    make_optimizer: MakeOptimizer,
    schedule: Schedule,
    options: dict[str, Any],
    checkpoint_every: int,
    folder: RunFolder | None,
) -> Run:
    """Optimiser, schedule, and the settings that decide what is computed."""
    trained = [parameter for parameter in critic.parameters() if parameter.requires_grad]
    optimizer = made_optimizer(make_optimizer, trained)
    facts = {"optimizer": describe_optimizer(optimizer), "schedule": describe(schedule)}  # before it changes the rate
    scheduler = made_scheduler(schedule, optimizer, math.ceil(options["steps"] / CYCLE), CYCLE)
    data = {"high": high.key, "low": low.key}
    settings = {**options, **facts, "critic": describe_model(critic), "data": data}
    steps, seed = options["steps"], options["seed"]
    settings = json.loads(json.dumps(settings))
    return Run(critic, high, low, optimizer, scheduler, steps, seed, checkpoint_every, folder, settings)


def _carry_out(run: Run, progress: bool, on_step: OnStep | None) -> None:
    """Train to the end with displays and signal handlers in place."""
    with shown(run.steps, progress=progress) as show, Interruption() as interruption:

        def heard(done: int, value: float) -> None:
            show(done, value)
            if on_step:
                on_step(done, value)

        train(run, interruption, heard)


def require_critic(critic: nn.Module, side: Distribution) -> None:
    """Raise `ValueError` unless the critic can be trained and bounded, and gives one number a sample."""
    if not any(parameter.requires_grad for parameter in critic.parameters()):
        raise ValueError("critic has no parameter that requires a gradient: there is nothing to train")
    network = bake(critic)
    bound = lipschitz_bound(network, input_shape=side.shape, diagnose=False)
    certified_values(network, bound, side.held_out[:2])


@contextlib.contextmanager
def _own_randomness(critic: nn.Module) -> Iterator[None]:
    """Give the global generators back as they were."""
    device = next(critic.parameters(), torch.zeros(())).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _require_positive(**counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: must be an integer of at least 1")
