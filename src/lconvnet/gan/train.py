"""`train_gan`: everything between a generator with a critic and images, and the trained generator with its record."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lconvnet.data import Images
from lconvnet.gan.files import facts_of
from lconvnet.gan.loop import train
from lconvnet.gan.objective import Objective
from lconvnet.gan.record import Epoch, Record
from lconvnet.gan.reporting import display
from lconvnet.gan.state import Plan, Run, restore, save
from lconvnet.gan.streams import require_seed
from lconvnet.kernels.base import require_positive
from lconvnet.models import DCGANGenerator
from lconvnet.training.checks import MakeOptimizer, made_optimizer
from lconvnet.training.folder import RunFolder
from lconvnet.training.interruption import Interruption
from lconvnet.training.settings import describe, describe_images, describe_model, describe_optimizer, versions


def train_gan(
    generator: DCGANGenerator,
    critic: nn.Module,
    images: Images,
    *,
    objective: Objective,
    epochs: int,
    steps_per_epoch: int = 100,
    batch_size: int = 64,
    critic_steps: int = 5,
    generator_optimizer: MakeOptimizer | None = None,
    critic_optimizer: MakeOptimizer | None = None,
    seed: int = 0,
    directory: str | Path | None = None,
    resume: bool = False,
    checkpoint_every: int = 50,
    progress: bool = True,
    on_epoch: Callable[[Epoch], None] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Record:
    """Train `generator` against `critic` on `images`, in place, and return the record.

    Initial weights are the caller's: call `torch.manual_seed` before building the networks. From there on everything
    drawn is a function of (seed, step), and the global random state is left as it was. Both networks must be on one
    device and stay there; training is in their dtype. On return both are in eval mode.

    Args:
        images: the real ones, of the generator's shape: `lconvnet.data.load("cifar10").train`.
        objective: `gan.GradientPenalty()` (WGAN-GP), `gan.WeightClipping()` (WGAN) or `gan.LipschitzCritic()`.
        epochs: epochs in all. A run may be resumed with more of them and is then the run that was asked for more.
        steps_per_epoch: steps of the generator in an epoch; after each epoch come a sample grid and the record.
        batch_size: real, and generated, images of a step; real ones are drawn uniformly with replacement.
        critic_steps: steps of the critic before each of the generator.
        generator_optimizer, critic_optimizer: make the optimiser from the list of parameters, such as
            `partial(torch.optim.Adam, lr=1e-4)`; by default the objective's own.
        directory: run folder (see `lconvnet.gan.state`); with None nothing is written, and nothing can be resumed.
        resume: go on from the folder's last checkpoint (from the start where there is none yet). Without it a folder
            that holds a run is refused.
        checkpoint_every: generator steps between two checkpoints within an epoch: what a kill can cost at most.
        progress: a bar on standard error, where that is a terminal; otherwise one line an epoch in the log `lconvnet`.
        on_epoch: called with every finished `Epoch`.
        origin: JSON-able facts on where the initial weights came from, for the record (`from`); a resume may leave it
            out.

    Raises:
        ValueError: an argument, the critic or the images do not fit, or the folder holds a run already.
        CheckpointError: a file in the folder is damaged, foreign, or of other settings.
        Interrupted: SIGINT or SIGTERM, after saving a checkpoint.
        Diverged: a loss or a weight became NaN or infinite.
        atomic.WriteError: the folder cannot be written.

    >>> from lconvnet import models
    >>> from lconvnet.gan import WeightClipping
    >>> pixels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    >>> images = Images(pixels, torch.zeros(4, dtype=torch.int64), 1, "black")
    >>> generator = DCGANGenerator(latent=4, channels=1, image_size=8, width=2)
    >>> critic = models.baselines.unconstrained_critic(1, 8, width=2)
    >>> record = train_gan(generator, critic, images, objective=WeightClipping(), epochs=1, steps_per_epoch=2)
    >>> [(epoch.epoch, epoch.step) for epoch in record.epochs]
    [(1, 2)]
    """
    require_positive(
        epochs=epochs, steps_per_epoch=steps_per_epoch, batch_size=batch_size, critic_steps=critic_steps,
        checkpoint_every=checkpoint_every,
    )  # fmt: skip
    plan = Plan(
        objective, epochs, steps_per_epoch, batch_size, critic_steps, require_seed(seed), checkpoint_every, on_epoch
    )
    folder = None if directory is None else RunFolder(Path(directory))
    with _own_randomness(generator), folder.locked() if folder else contextlib.nullcontext():
        if folder and not resume:
            folder.refuse_if_started()
        make = (generator_optimizer or objective.optimizer, critic_optimizer or objective.optimizer)
        facts = {"from": describe(origin)} if origin else {}
        run = _prepare(generator, critic, images, plan, folder, *make, facts)
        _begin(run)
        with (
            display(epochs, steps_per_epoch, run.progress.epoch, progress=progress) as screen,
            Interruption() as interruption,
        ):
            train(run, interruption, screen)
    generator.eval()
    critic.eval()
    return run.record


def _prepare(
    generator: DCGANGenerator,
    critic: nn.Module,
    images: Images,
    plan: Plan,
    folder: RunFolder | None,
    make_generator_optimizer: MakeOptimizer,
    make_critic_optimizer: MakeOptimizer,
    facts: dict[str, Any],
) -> Run:
    """Optimisers, and a record that holds the settings; all checked, nothing written."""
    shape = tuple(images.images.shape[1:])
    if not len(images) or shape != generator.image_shape:
        raise ValueError(
            f"images {images.name!r}: {len(images)} of shape {shape}, the generator makes {generator.image_shape}: "
            f"load them with image_size={generator.image_size}, channels={generator.channels}, or build it for them"
        )
    parameters = _trainable(generator, "generator"), _trainable(critic, "critic")
    plan.objective.check(critic.eval(), generator.image_shape)
    optimizers = (
        made_optimizer(make_generator_optimizer, parameters[0], "generator_optimizer"),
        made_optimizer(make_critic_optimizer, parameters[1], "critic_optimizer"),
    )
    settings = json.loads(json.dumps(_settings(generator, critic, images, plan, *optimizers) | facts))
    record = Record(settings, versions(next(generator.parameters()).device))
    return Run(plan, images, generator, critic, *optimizers, folder, record)


def _trainable(module: nn.Module, name: str) -> list[nn.Parameter]:
    parameters = list(module.parameters())
    if not parameters or not all(parameter.requires_grad for parameter in parameters):
        raise ValueError(f"{name} has parameters that are frozen, or none: all of them are trained")
    return parameters


def _settings(
    generator: DCGANGenerator,
    critic: nn.Module,
    images: Images,
    plan: Plan,
    generator_optimizer: Optimizer,
    critic_optimizer: Optimizer,
) -> dict[str, Any]:
    """The settings that decide what a step computes; `epochs` and `checkpoint_every` are not among them, nor paths."""
    return {
        "data": {"name": images.name, **describe_images(images)},
        "generator": {**facts_of(generator).model_dump(exclude={"format"}), **describe_model(generator)},
        "critic": describe_model(critic),
        "objective": describe(plan.objective),
        "generator_optimizer": describe_optimizer(generator_optimizer),
        "critic_optimizer": describe_optimizer(critic_optimizer),
        "steps_per_epoch": plan.steps_per_epoch,
        "batch_size": plan.batch_size,
        "critic_steps": plan.critic_steps,
        "seed": plan.seed,
    }


def _begin(run: Run) -> None:
    """Take up the folder's checkpoint, first writing one where there is none: start and resume are the same path."""
    if run.folder is None:
        return
    if not run.folder.last.exists():
        run.folder.refuse_if_started()  # results without the checkpoint that they came from
        save(run)
    restore(run)


def _own_randomness(generator: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Give the global generators back as they were."""
    device = next(generator.parameters()).device
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
