"""The training of a generator: steps of its critic, then one of its own (Arjovsky et al. 2017, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lconvnet.data import Images
from lconvnet.models import DCGANGenerator
from lconvnet.tasks.images import Facts, RealSamples, encode_generator, generated, grid, latents, png
from lconvnet.tasks.objectives import Objective
from lconvnet.training.checkpoint import Progress
from lconvnet.training.checks import MakeOptimizer, made_optimizer
from lconvnet.training.engine import Engine, Measures, as_computed
from lconvnet.training.engine import generator as drawn
from lconvnet.training.loop import Position, train
from lconvnet.training.options import Options, opened, require_counts, require_seed
from lconvnet.training.processes import Precision
from lconvnet.training.record import GeneratorEpoch, Record, Row
from lconvnet.training.settings import describe, describe_model, described

SHOWN = 64  # images in a grid
FILE = "generator.safetensors"


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
    devices: int = 1,
    precision: Precision = "32-true",
    clip_gradient: float | None = None,
    ema: float | None = None,
    progress: bool = True,
    on_epoch: Callable[[GeneratorEpoch], None] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Record[GeneratorEpoch]:
    """Train `generator` against `critic` on `images`, in place, and return the record.

    The caller chooses the initial weights: call `torch.manual_seed` before building the networks. After that all random
    draws are functions of (seed, step), and the global random state is restored. Both networks must be on one device
    and stay there; training is in their dtype. On return both are in eval mode.

    The run folder gets checkpoints/last.ckpt, record.json and logs/ as with `lconvnet.fit`. It also gets
    generator.safetensors (the generator of the last whole epoch, for `load_generator`) and, in samples/, one grid per
    epoch with images of the same latent vectors.

    Args:
        images: real images of the generator's shape: `lconvnet.data.load("cifar10").train`.
        objective: `gan.GradientPenalty()` (WGAN-GP), `gan.WeightClipping()` (WGAN) or `gan.LipschitzCritic()`.
        epochs: total number of epochs. A resumed run may have more of them, and then equals a run of that length from
            the start.
        steps_per_epoch: generator steps per epoch; a sample grid and the record follow each epoch.
        batch_size: real images per step, and generated images; real ones are drawn uniformly with replacement.
        critic_steps: steps of the critic before each of the generator.
        generator_optimizer, critic_optimizer: make the optimiser from the list of parameters, such as
            `partial(torch.optim.Adam, lr=1e-4)`; by default the objective's own.
        directory: run folder; with None nothing is written, and nothing can be resumed.
        resume: continue from the folder's last checkpoint (start if there is none yet). Without it a folder that holds
            a run is refused.
        checkpoint_every: generator steps between two checkpoints within an epoch: the most that a kill can cost.
        devices, precision, clip_gradient, ema: as in `lconvnet.fit`. Each of several processes makes all images and
            gives the critic its share. The gradient of each network is clipped by itself; both have moving averages.
        progress: a bar on standard error, if that is a terminal; otherwise one line per epoch in the log `lconvnet`.
        on_epoch: called with every finished `Epoch`.
        origin: JSON-able facts on the origin of the initial weights, for the record (`from`); a resume may leave them
            out.

    Raises:
        ValueError: an argument, the critic or the images do not fit, or the folder holds a run already.
        CheckpointError: a file in the folder is damaged, foreign, or of other settings.
        Interrupted: SIGINT, SIGTERM or SIGUSR1, after saving a checkpoint.
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
    require_counts(epochs=epochs, steps_per_epoch=steps_per_epoch, batch_size=batch_size, critic_steps=critic_steps)
    require_seed(seed)
    options = Options(
        directory, resume, checkpoint_every, "auto", devices, precision, clip_gradient, ema, progress,
        on_epoch=on_epoch,
    )  # fmt: skip
    with opened(options, generator, critic) as place:
        _require_images(images, generator)
        parameters = _trainable(generator, "generator"), _trainable(critic, "critic")
        objective.check(critic.eval(), generator.image_shape)
        inputs = {
            "data": images,
            "generator": generator,
            "critic": critic,
            "objective": objective,
            "generator_optimizer": made_optimizer(
                generator_optimizer or objective.optimizer, parameters[0], "generator_optimizer"
            ),
            "critic_optimizer": made_optimizer(
                critic_optimizer or objective.optimizer, parameters[1], "critic_optimizer"
            ),
            "steps_per_epoch": steps_per_epoch,
            "batch_size": batch_size,
            "critic_steps": critic_steps,
            "seed": seed,
        }
        facts = Facts.of(generator).model_dump(exclude={"format"}) | describe_model(generator)
        task = Generation(**inputs, epochs=epochs)
        return train(task, described(inputs) | {"generator": facts}, place, origin=describe(origin)).record


def _require_images(images: Images, generator: DCGANGenerator) -> None:
    shape = tuple(images.images.shape[1:])
    if not len(images) or shape != generator.image_shape:
        raise ValueError(
            f"images {images.name!r}: {len(images)} of shape {shape}, the generator makes {generator.image_shape}: "
            f"load them with image_size={generator.image_size}, channels={generator.channels}, or build it for them"
        )


def _trainable(module: nn.Module, name: str) -> list[nn.Parameter]:
    parameters = list(module.parameters())
    if not parameters or not all(parameter.requires_grad for parameter in parameters):
        raise ValueError(f"{name} has parameters that are frozen, or none: all of them are trained")
    return parameters


@dataclass
class Generation:
    """The task of training a generator: steps of the critic, then one of the generator."""

    name: ClassVar[str] = "gan"
    row: ClassVar[type[Row]] = GeneratorEpoch
    data: Images
    generator: DCGANGenerator
    critic: nn.Module
    objective: Objective
    generator_optimizer: Optimizer
    critic_optimizer: Optimizer
    steps_per_epoch: int
    batch_size: int
    critic_steps: int
    seed: int
    epochs: int

    def __post_init__(self) -> None:
        self.modules = {"generator": self.generator, "critic": self.critic}
        self.optimizers = {"generator": self.generator_optimizer, "critic": self.critic_optimizer}
        self.steps, self.schedule = self.epochs * self.steps_per_epoch, None
        self.real = RealSamples(self.data, self.seed)

    def step(self, at: Position, engine: Engine) -> Sequence[Measures]:
        step = at.epoch * self.steps_per_epoch + at.step
        turns = range(step * self.critic_steps, (step + 1) * self.critic_steps)
        return [*(self._critic_step(turn, engine) for turn in turns), self._generator_step(step, engine)]

    def _critic_step(self, step: int, engine: Engine) -> Measures:
        """One update of the critic on real batch number `step` and as many generated images."""
        engine.seed(self.seed, "critic", 0, step)
        z = latents(self.generator, self.batch_size, self.seed, "critic-latents", step)
        with torch.no_grad(), engine.autocast():
            fake = self.generator(z).to(z)
        (real, fake), own = engine.share(self.real.sample(self.batch_size, step).to(z), fake)
        place = f" of process {engine.processes.rank}" if engine.processes.rank else ""
        draws = drawn(self.seed, f"interpolation{place}", 0, step)
        with engine.autocast():
            loss, difference = self.objective.critic_loss(self.critic, real, fake, draws)
        share = own / self.batch_size
        measures = {"critic_loss": float(loss.detach()) * share, "difference": float(difference) * share}
        found = engine.update(self.critic_optimizer, as_computed(loss), share, **measures)
        self.objective.constrain_(self.critic)
        return found

    def _generator_step(self, step: int, engine: Engine) -> Measures:
        """One update of the generator to lower the mean of minus the critic over its images (line 10). The critic is
        not changed.

        Each process makes all images, because their normalisation is over the joint batch.
        """
        engine.seed(self.seed, "generator", 0, step)
        z = latents(self.generator, self.batch_size, self.seed, "generator-latents", step)
        self.critic.requires_grad_(False)
        try:
            with engine.autocast():
                (fake,), own = engine.share(self.generator(z))
                loss = -as_computed(self.critic(fake)).mean()
            share = own / self.batch_size
            return engine.update(self.generator_optimizer, loss, share, generator_loss=float(loss.detach()) * share)
        finally:
            self.critic.requires_grad_(True)

    def running(self, progress: Progress) -> str:
        return f"real - generated {progress.sums['difference'] / (progress.step * self.critic_steps):.4f}"

    def validate(self, at: Position, progress: Progress, engine: Engine) -> GeneratorEpoch:
        turns = self.steps_per_epoch * self.critic_steps
        return GeneratorEpoch(
            epoch=at.epoch + 1,
            step=(at.epoch + 1) * self.steps_per_epoch,
            critic_loss=progress.sums["critic_loss"] / turns,
            generator_loss=progress.sums["generator_loss"] / self.steps_per_epoch,
            difference=progress.sums["difference"] / turns,
            lipschitz=self.objective.lipschitz(self.critic, self.generator.image_shape),
        )

    def artefacts(self, record: Record[Any]) -> Mapping[str, bytes]:
        shown = generated(self.generator, latents(self.generator, SHOWN, self.seed, "grid", 0))
        samples = {f"samples/epoch-{len(record.epochs):04d}.png": png(grid(shown))}
        return {FILE: encode_generator(self.generator)} | samples | record.files()

    def histograms(self) -> Mapping[str, Tensor]:
        return {}
