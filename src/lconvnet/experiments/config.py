"""The typed configuration of an experiment: one frozen section per section of a `cfg.yaml`.

Types are strict (`"6"` is not a number, `true` is not 1) and unknown keys are refused. All eps are l2 distances between
images with pixels in [0, 1]. A classifier has no `task`; `task: wasserstein` estimates a distance, `task: gan` trains a
generator. Losses, optimisers and schedules are the callables themselves, see `lconvnet.experiments.options`.

>>> experiment = Experiment.model_validate({"model": {"architecture": "small", "conv": "rko"}})
>>> experiment.loss, experiment.evaluation.eps
(OffsetCrossEntropy(eps=1.58, temperature=0.25, offset=None), (1.58,))
>>> values = {"task": "wasserstein", "data": {"name": "cifar10"}, "generated": "generator.safetensors"}
>>> WassersteinExperiment.model_validate(values).critic.conv
'bcop'
>>> values = {"task": "gan", "data": {"name": "cifar10"}, "critic": {"name": "lipschitz", "conv": "rko"}}
>>> GanExperiment.model_validate(values).generator.width
64
"""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import nn

from lconvnet import data, gan, models
from lconvnet.data.loading import locate
from lconvnet.data.sets import held_out
from lconvnet.experiments import options
from lconvnet.experiments.evaluation import Evaluation
from lconvnet.experiments.options import Chosen, Section, arguments, default
from lconvnet.layers import NearestUpsampling
from lconvnet.losses import OffsetCrossEntropy
from lconvnet.models import baselines
from lconvnet.ops.numbers import NonNegativeInt, OpenFraction, PositiveFloat, PositiveInt
from lconvnet.training import schedules
from lconvnet.training.engine import derive_seed
from lconvnet.training.optimizers import Adam, Rmsprop
from lconvnet.training.schedules import Exponential, OneCycle

Shape = tuple[int, int, int]
Precision = Literal["32-true", "bf16-mixed"]
Free = dict[str, Any]
"""The keys of an experiment's sections that a resumed run may change; True: all."""

if TYPE_CHECKING:
    Conv = str
    Linear = str
    Activation = str
    Augmentation = str
    Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    Optimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    Schedule = schedules.Schedule
else:
    Conv = Literal[tuple(options.CONVS)]
    Linear = Literal[tuple(options.LINEARS)]
    Activation = Literal[tuple(options.ACTIVATIONS)]
    Augmentation = Literal[tuple(options.AUGMENTATIONS)]
    # The hidden options are for Python: they would have the same value in every configuration here.
    Loss = options.value_of(options.LOSSES, hidden=frozenset({"lipschitz", "p"}))
    Optimizer = options.value_of(options.OPTIMIZERS)
    Schedule = options.value_of(options.SCHEDULES, hidden=frozenset({"start", "end"}))


class RealImages(Section):
    """The training images of a named set, or all images below a folder or in a parquet file, labelled or not.

    `image_size` (side length) and `channels` convert the images; `limit` keeps that many.
    """

    name: Annotated[str, Field(min_length=1)]
    directory: str | None = None
    image_size: PositiveInt | None = None
    channels: Literal[1, 3] | None = None
    limit: PositiveInt | None = None

    def load(self) -> data.Images:
        """Return the images."""
        if self.name in data.NAMES:
            return data.load(self.name, validation=0, **self.model_dump(exclude={"name"})).train
        path = locate(self.name, self.directory)
        size = (self.image_size, self.image_size) if self.image_size else None
        pixels = data.read_samples(path, image_size=size, channels=self.channels)
        images = data.Images(pixels, torch.zeros(len(pixels), dtype=torch.int64), 1, path.resolve().stem)
        kept, _ = held_out(images.labels, self.limit or len(images), seed=0)
        return images.subset(kept.sort().values)


class Data(Section):
    """Images of a named set, or of a folder or parquet file by its path, and how they are split.

    The keys are the arguments of `lconvnet.data.load`. `validation` and `test` are counts or fractions; null takes its
    defaults. With `validation` 0 a run trains on every training image and keeps the last epoch. `image_size` (side
    length) and `channels` convert the images. `limit` keeps that many images of each part, for quick trials.
    """

    name: Annotated[str, Field(min_length=1)] = "digits"
    directory: str | None = None
    validation: NonNegativeInt | OpenFraction | None = None
    test: PositiveInt | OpenFraction | None = None
    image_size: PositiveInt | None = None
    channels: Literal[1, 3] | None = None
    limit: PositiveInt | None = None
    augment: Augmentation = "none"

    def load(self, *, seed: int) -> data.Splits:
        """Return the train, validation and test images, the validation split drawn with `seed`."""
        return data.load(self.name, seed=seed, **self.model_dump(exclude={"name", "augment"}))


class Parts(Section):
    """The parts of a network: dense layers and an activation."""

    linear: Linear = default(models.mlp, "linear")
    activation: Activation = default(models.mlp, "activation")
    group_size: Annotated[int, Field(ge=2)] | None = None

    @model_validator(mode="after")
    def _group_size_belongs_to_groupsort(self) -> "Parts":
        if (self.activation == "groupsort") != (self.group_size is not None):
            raise ValueError(
                f"group_size is {self.group_size} with activation {self.activation!r}; "
                "groupsort needs a group_size (2 or more), the other activations take none"
            )
        return self

    def parts(self) -> dict[str, Callable[..., nn.Module]]:
        """The layers, as arguments of a network."""
        activation = options.ACTIVATIONS[self.activation]
        sorting = activation if self.group_size is None else partial(activation, self.group_size)
        return {"linear": options.LINEARS[self.linear], "activation": sorting}


class Network(Chosen):
    """A classifier: a function of `lconvnet.models` with its options."""

    if TYPE_CHECKING:
        architecture: str

    def build(self, image_shape: Shape, classes: int, *, seed: int) -> nn.Sequential:
        """Return the network for images of shape (C, H, W), its initial weights a function of `seed` alone.

        The global random state is left as it was. Raises ValueError if the architecture does not fit the images.

        >>> config = Experiment.model_validate({"model": {"architecture": "mlp", "widths": [8]}})
        >>> config.model.build((1, 4, 4), 3, seed=0)(torch.zeros(2, 1, 4, 4)).shape
        torch.Size([2, 3])
        """
        channels, *sides = image_shape
        given = {"in_features": prod(image_shape), "in_channels": channels, "image_size": tuple(sides)}
        fitting = {key: value for key, value in given.items() if key in arguments(self.call)}
        return _drawn(seed, self.call, **fitting, classes=classes, **self.options())


class Dense(Parts, Network):
    """A network of dense layers."""

    def options(self) -> dict[str, Any]:
        return super().options() | self.parts()


class Convnet(Dense):
    """A network of convolutions; `padding_mode` null is circular, except for `unconstrained`, which allows only
    zeros."""

    architecture: str
    conv: Conv = default(models.small_convnet, "conv")
    padding_mode: Literal["circular", "zeros"] | None = None

    @model_validator(mode="after")
    def _unconstrained_pads_with_zeros(self) -> "Convnet":
        if self.conv == "unconstrained" and self.padding_mode == "circular":
            raise ValueError("padding_mode is 'circular' with conv 'unconstrained'; use 'zeros' or leave it out")
        return self

    def parts(self) -> dict[str, Callable[..., nn.Module]]:
        conv = options.CONVS[self.conv]
        if self.padding_mode is not None and self.conv != "unconstrained":
            conv = partial(conv, padding_mode=self.padding_mode)
        return super().parts() | {"conv": conv}


def _base_of(network: Callable[..., Any]) -> type[Chosen]:
    """The section for a network; one that takes an activation is made of our parts."""
    keys = arguments(network)
    return Network if "activation" not in keys else Convnet if "conv" in keys else Dense


class Critic(Parts):
    """The paper's DCGAN critic: four strided convolutions, `width` channels after the first, and one dense output.

    With `upsampling` s every pixel first becomes s × s equal ones (paper: 2 on CIFAR-10); the bound accounts for this.
    """

    conv: Conv = default(models.dcgan_critic, "conv")
    width: PositiveInt = default(models.dcgan_critic, "width")
    upsampling: PositiveInt = 1

    def build(self, image_shape: Shape, *, seed: int) -> nn.Sequential:
        """Return the critic for images of shape (C, H, W), its initial weights a function of `seed` alone.

        >>> Critic(conv="rko").build((3, 32, 32), seed=0)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 1])
        """
        channels, *sides = image_shape
        size = tuple(self.upsampling * side for side in sides)
        conv = options.CONVS[self.conv]
        critic = _drawn(seed, models.dcgan_critic, channels, size, width=self.width, conv=conv, **self.parts())
        return critic if self.upsampling == 1 else nn.Sequential(NearestUpsampling(self.upsampling), *critic)


class Generator(Section):
    """A DCGAN generator of the shape of the images, whose side must be a power of two (`data.image_size` converts)."""

    latent: PositiveInt = default(models.DCGANGenerator, "latent")
    width: PositiveInt = default(models.DCGANGenerator, "width")

    def build(self, image_shape: Shape, *, seed: int) -> models.DCGANGenerator:
        """Return a generator of images of shape (C, H, W), its initial weights a function of `seed` alone.

        >>> Generator(width=2).build((3, 32, 32), seed=0).image_shape
        (3, 32, 32)
        """
        channels, height, width = image_shape
        if height != width:
            raise ValueError(
                f"images are {height}x{width}, a generator makes square ones: give data.image_size, such as 32"
            )
        drawn = derive_seed(seed, "generator", 0)
        return _drawn(drawn, models.DCGANGenerator, self.latent, channels, height, self.width)


class Adversary(Chosen):
    """The adversary of a generator: a critic, and one of the ways in `lconvnet.gan` to keep it in bounds."""

    name: str

    def objective(self) -> gan.Objective:
        """Return the objective that keeps the critic in bounds."""
        return self.call(**self.options())

    @model_validator(mode="after")
    def _options_are_taken(self) -> "Adversary":
        self.objective()
        return self


class Unconstrained(Adversary):
    """A plain critic, held by a penalty or by clipping."""

    width: PositiveInt = default(baselines.unconstrained_critic, "width")

    def build(self, image_shape: Shape, *, seed: int) -> nn.Sequential:
        """Return the critic for images of shape (C, H, W)."""
        channels, *sides = image_shape
        return _drawn(seed, baselines.unconstrained_critic, channels, tuple(sides), width=self.width)


class Constrained(Critic, Adversary):
    """A critic of 1-Lipschitz layers: no penalty, no clipping."""


if TYPE_CHECKING:
    Model = Network
    GanCritic = Unconstrained | Constrained
else:
    Model = options.one_of(
        options.ARCHITECTURES,
        tag="architecture",
        base=_base_of,
        hidden=frozenset({"in_features", "in_channels", "image_size", "classes", "conv", "linear", "width"}),
        more={"qw": {"published": (Literal[3, 4] | None, None)}},
    )
    GanCritic = options.one_of(
        options.OBJECTIVES,
        base=lambda call: Constrained if call is gan.LipschitzCritic else Unconstrained,
    )


class Loop(Section):
    """Options of every task's loop: `clip_gradient`, the largest norm of an update's gradient, and `ema`, the decay of
    a moving average that replaces the weights."""

    younger: ClassVar[frozenset[str]] = frozenset({"clip_gradient", "ema"})

    @model_serializer(mode="wrap")
    def _without_younger_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out options that older releases did not have, so that records stay comparable."""
        fields = type(self).model_fields
        unset = {key for key in self.younger if getattr(self, key) == fields[key].default}
        return {key: value for key, value in handler(self).items() if key not in unset}


class Training(Loop):
    """The loop: epochs, batch size (over all processes), steps between projections and between checkpoints, device.

    `select_eps` is the radius whose certified accuracy on the validation images chooses the epoch; null takes the
    radius of the loss. `devices` is the number of processes on one machine, each with its share of every batch.
    """

    epochs: PositiveInt = 6
    batch_size: PositiveInt = 128
    select_eps: PositiveFloat | None = None
    project_every: PositiveInt = 100
    checkpoint_every: PositiveInt = 500
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: PositiveInt = 1
    precision: Precision = "32-true"
    clip_gradient: PositiveFloat | None = None
    ema: OpenFraction | None = None


class Experiment(Section):
    """One complete experiment: the same configuration and seed give the same record."""

    task: ClassVar[str] = "classification"
    free: ClassVar[Free] = {"evaluation": True, "data": {"directory"}, "training": {"accelerator"}}
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    data: Data = Data()
    model: Model
    loss: Loss = OffsetCrossEntropy(eps=1.58)
    optimizer: Optimizer = Adam()
    schedule: Schedule = OneCycle()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()


class Steps(Loop):
    """The loop: optimiser steps, samples of each distribution per step, steps between checkpoints."""

    younger: ClassVar[frozenset[str]] = frozenset({"devices", "precision", "clip_gradient", "ema"})
    steps: PositiveInt = 2000
    batch_size: PositiveInt = 64
    checkpoint_every: PositiveInt = 500
    devices: PositiveInt = 1
    precision: Precision = "32-true"
    clip_gradient: PositiveFloat | None = None
    ema: OpenFraction | None = None


class HeldOut(Section):
    """The data of the estimate: samples of each distribution that training never sees, and the confidence.

    `transport` is the number of these samples whose exact transport is compared with the estimate (extra `wasserstein`;
    2,000 take ten seconds).
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
    """A certified lower bound on the Wasserstein-1 distance between images and other samples, such as a generator's.

    `generated` is the path of a generator's weights (`lconvnet.gan`), a folder of images, a parquet file or an array.
    """

    free: ClassVar[Free] = {"evaluation": {"confidence", "transport"}, "data": {"directory"}, "training": set()}
    task: Literal["wasserstein"]
    seed: NonNegativeInt = 0
    data: RealImages
    generated: Annotated[str, Field(min_length=1)]
    critic: Critic = Critic()
    optimizer: Optimizer = Rmsprop(lr=1e-4)
    schedule: Schedule = Exponential()
    training: Steps = Steps()
    evaluation: HeldOut = HeldOut()


class Epochs(Loop):
    """The loop: epochs of `steps_per_epoch` generator steps, each after `critic_steps` of the critic. Every epoch ends
    with a grid of samples."""

    younger: ClassVar[frozenset[str]] = frozenset({"devices", "precision", "clip_gradient", "ema"})
    epochs: PositiveInt = 200
    steps_per_epoch: PositiveInt = 500
    batch_size: PositiveInt = 64
    critic_steps: PositiveInt = 5
    checkpoint_every: PositiveInt = 50
    devices: PositiveInt = 1
    precision: Precision = "32-true"
    clip_gradient: PositiveFloat | None = None
    ema: OpenFraction | None = None


class GanExperiment(Section):
    """A generator trained against a critic on images; both use `optimizer`, by default that of the critic's paper."""

    free: ClassVar[Free] = {"data": {"directory"}, "training": {"epochs"}}
    task: Literal["gan"]
    seed: NonNegativeInt = 0
    data: RealImages
    generator: Generator = Generator()
    critic: GanCritic = options.chosen(GanCritic, name="gradient-penalty")
    optimizer: Optimizer | None = None
    training: Epochs = Epochs()


def settings(experiment: Experiment | WassersteinExperiment | GanExperiment) -> dict[str, Any]:
    """Return the part of an experiment's configuration that determines the weights, as JSON-able values.

    It leaves out the evaluation, the location of the images, the devices and the checkpoints.
    """
    outside = experiment.free | {"training": experiment.free["training"] | {"devices", "checkpoint_every"}}
    return experiment.model_dump(mode="json", exclude=outside)


def _drawn(seed: int, make: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Make a network whose initial weights are a function of `seed`; ValueError if it does not fit in memory."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return make(*args, **options)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "allocate" not in str(error):
                raise
            raise ValueError("network does not fit in memory: choose smaller widths or images") from error
