"""The typed configuration of a generator's training: `task: gan` at the top of a `cfg.yaml`.

>>> values = {"task": "gan", "data": {"name": "cifar10"}, "critic": {"name": "lipschitz", "conv": "rko"}}
>>> experiment = GanExperiment.model_validate(values)
>>> experiment.critic.name, experiment.generator.width, experiment.training.critic_steps
('lipschitz', 64, 5)
"""

from typing import Annotated, Literal

from pydantic import Field

from lconvnet.experiments.config import Adam, Rmsprop, Sgd
from lconvnet.experiments.estimation_config import Critic, RealImages
from lconvnet.experiments.section import NonNegativeInt, PositiveFloat, PositiveInt, Section


class Generator(Section):
    """A DCGAN generator of the shape of the images, whose side must be a power of two (`data.image_size` converts)."""

    latent: PositiveInt = 128
    width: PositiveInt = 64


class GradientPenaltyCritic(Section):
    """WGAN-GP: an unconstrained critic with a penalty on its gradient, times `weight` (Gulrajani et al. 2017)."""

    name: Literal["gradient-penalty"]
    weight: PositiveFloat = 10.0
    width: PositiveInt = 64


class WeightClippingCritic(Section):
    """WGAN: an unconstrained critic whose weights are clipped to `bound` (Arjovsky et al. 2017)."""

    name: Literal["weight-clipping"]
    bound: PositiveFloat = 0.01
    width: PositiveInt = 64


class ConstrainedCritic(Critic):
    """A critic of 1-Lipschitz layers: no penalty, no clipping."""

    name: Literal["lipschitz"]


class Epochs(Section):
    """The loop: epochs of `steps_per_epoch` generator steps, each after `critic_steps` of the critic; a grid of samples
    after every epoch."""

    epochs: PositiveInt = 200
    steps_per_epoch: PositiveInt = 500
    batch_size: PositiveInt = 64
    critic_steps: PositiveInt = 5
    checkpoint_every: PositiveInt = 50


class GanExperiment(Section):
    """A generator trained against a critic on images; `optimizer` is of both, by default that of the critic's paper."""

    task: Literal["gan"]
    seed: NonNegativeInt = 0
    data: RealImages
    generator: Generator = Generator()
    critic: Annotated[GradientPenaltyCritic | WeightClippingCritic | ConstrainedCritic, Field(discriminator="name")] = (
        GradientPenaltyCritic(name="gradient-penalty")
    )
    optimizer: Annotated[Adam | Sgd | Rmsprop, Field(discriminator="name")] | None = None
    training: Epochs = Epochs()
