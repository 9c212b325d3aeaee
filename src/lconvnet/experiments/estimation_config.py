"""The typed configuration of a Wasserstein estimate: `task: wasserstein` at the top of a `cfg.yaml`.

>>> values = {"task": "wasserstein", "data": {"name": "cifar10"}, "generated": "generator.safetensors"}
>>> WassersteinExperiment.model_validate(values).critic.conv
'bcop'
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lconvnet.experiments.config import (
    Adam,
    Constant,
    ConvName,
    Exponential,
    Network,
    OneCycle,
    Rmsprop,
    Sgd,
)
from lconvnet.experiments.section import NonNegativeInt, OpenFraction, PositiveInt, Section


class RealImages(Section):
    """Which images: the training part of a named set, or all below a folder or in a parquet file, labelled or not.

    The keys are as in a classifier's `data`.
    """

    name: Annotated[str, Field(min_length=1)]
    directory: str | None = None
    image_size: PositiveInt | None = None
    channels: Literal[1, 3] | None = None
    limit: PositiveInt | None = None


class Critic(Network):
    """The paper's DCGAN critic: four strided convolutions, `width` channels after the first, and one dense output.

    With `upsampling` s every pixel becomes s × s equal ones first (paper: 2 on CIFAR-10), which the bound accounts for.
    """

    conv: ConvName = "bcop"
    width: PositiveInt = 64
    upsampling: PositiveInt = 1


class Steps(Section):
    """The loop: optimiser steps, samples of each distribution in one, steps between checkpoints."""

    steps: PositiveInt = 2000
    batch_size: PositiveInt = 64
    checkpoint_every: PositiveInt = 500


class HeldOut(Section):
    """What the estimate is made of: samples that training never sees (of each distribution), and its confidence.

    `transport` compares with the exact transport between so many of them (extra `wasserstein`; 2,000 take ten seconds).
    """

    samples: Annotated[int, Field(ge=2)] = 4096
    confidence: OpenFraction = 0.95
    transport: PositiveInt | None = None

    @model_validator(mode="after")
    def _transport_is_between_held_out_samples(self) -> "HeldOut":
        if self.transport is not None and self.transport > self.samples:
            raise ValueError(
                f"transport is {self.transport}, of {self.samples} samples; give no more than are held out"
            )
        return self


class WassersteinExperiment(Section):
    """A certified lower bound on the Wasserstein-1 distance between images and others, such as a generator's.

    `generated` is the path of a generator's weights (`lconvnet.gan`), a folder of images, a parquet file or an array.
    """

    task: Literal["wasserstein"]
    seed: NonNegativeInt = 0
    data: RealImages
    generated: Annotated[str, Field(min_length=1)]
    critic: Critic = Critic()
    optimizer: Annotated[Adam | Sgd | Rmsprop, Field(discriminator="name")] = Rmsprop(name="rmsprop", lr=1e-4)
    schedule: Annotated[Exponential | OneCycle | Constant, Field(discriminator="name")] = Exponential(
        name="exponential"
    )
    training: Steps = Steps()
    evaluation: HeldOut = HeldOut()
