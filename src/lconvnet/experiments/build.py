"""From the sections of a configuration to what they describe: network, loss, optimiser, schedule, images."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lconvnet import data, gan, models
from lconvnet.data.locating import locate
from lconvnet.data.splitting import held_out
from lconvnet.experiments import names
from lconvnet.experiments.config import Convnet, Data, Kw, Mlp, Network, Qw, Section
from lconvnet.experiments.estimation_config import Critic, RealImages
from lconvnet.experiments.generation_config import (
    ConstrainedCritic,
    Generator,
    GradientPenaltyCritic,
    WeightClippingCritic,
)
from lconvnet.layers import NearestUpsampling
from lconvnet.models import DCGANGenerator, baselines
from lconvnet.training.randomness import derive_seed

GanCritic = GradientPenaltyCritic | WeightClippingCritic | ConstrainedCritic


def build_model(
    config: Mlp | Convnet | Kw | Qw, image_shape: tuple[int, int, int], classes: int, *, seed: int
) -> nn.Sequential:
    """Return the network for images of shape (C, H, W), its initial weights a function of `seed` alone.

    The global random state is left as it was. Raises ValueError where the architecture does not fit the
    images.

    >>> model = build_model(Mlp(architecture="mlp", widths=(8,)), (1, 4, 4), 3, seed=0)
    >>> model(torch.zeros(2, 1, 4, 4)).shape
    torch.Size([2, 3])
    """
    with _drawn(seed):
        if isinstance(config, Mlp):
            return _mlp(config, image_shape, classes)
        if isinstance(config, Kw | Qw):
            return _baseline(config, image_shape, classes)
        return _convnet(config, image_shape, classes)


@contextmanager
def _drawn(seed: int) -> Iterator[None]:
    """Initial weights are a function of `seed`; raises ValueError where they do not fit in memory."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "allocate" not in str(error):
                raise
            raise ValueError("network does not fit in memory: choose smaller widths or images") from error


def build_critic(config: Critic, image_shape: tuple[int, int, int], *, seed: int) -> nn.Sequential:
    """Return the paper's critic for images of shape (C, H, W), its initial weights a function of `seed` alone.

    >>> build_critic(Critic(conv="rko"), (3, 32, 32), seed=0)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 1])
    """
    channels, height, width = image_shape
    factor = config.upsampling
    with _drawn(seed):
        critic = models.dcgan_critic(
            channels,
            (factor * height, factor * width),
            width=config.width,
            conv=names.CONVS[config.conv],
            linear=names.LINEARS[config.linear],
            activation=_activation(config),
        )
    return critic if factor == 1 else nn.Sequential(NearestUpsampling(factor), *critic)


def build_generator(config: Generator, image_shape: tuple[int, int, int], *, seed: int) -> DCGANGenerator:
    """Return a generator of images of shape (C, H, W), its initial weights a function of `seed` alone.

    >>> build_generator(Generator(width=2), (3, 32, 32), seed=0).image_shape
    (3, 32, 32)
    """
    channels, height, width = image_shape
    if height != width:
        raise ValueError(
            f"images are {height}x{width}, a generator makes square ones: give data.image_size, such as 32"
        )
    with _drawn(derive_seed(seed, "generator", 0)):
        return DCGANGenerator(config.latent, channels, height, config.width)


def build_gan_critic(config: GanCritic, image_shape: tuple[int, int, int], *, seed: int) -> nn.Sequential:
    """Return what a generator is trained against.

    >>> critic = GradientPenaltyCritic(name="gradient-penalty", width=2)
    >>> build_gan_critic(critic, (3, 32, 32), seed=0)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 1])
    """
    if isinstance(config, ConstrainedCritic):
        return build_critic(config, image_shape, seed=seed)
    channels, height, width = image_shape
    with _drawn(seed):
        return baselines.unconstrained_critic(channels, (height, width), width=config.width)


def build_objective(config: GanCritic) -> gan.Objective:
    """Return how that critic is kept in bounds."""
    options = set() if isinstance(config, ConstrainedCritic) else {"weight", "bound"}
    return names.OBJECTIVES[config.name](**config.model_dump(include=options))


def build_loss(config: Section) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss of logits (B, C) and labels (B,)."""
    return names.LOSSES[_name(config)](**_options(config))


def build_optimizer(config: Section) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    """Return a callable from parameters to their optimiser."""
    return partial(names.OPTIMIZERS[_name(config)], **_options(config))


def build_schedule(config: Section) -> names.schedules.Schedule:
    """Return a callable from optimiser, epochs and steps per epoch to the learning-rate schedule."""
    return names.SCHEDULES[_name(config)](**_options(config))


def load_images(config: Data, *, seed: int) -> data.Splits:
    """Return the train, validation and test images, the validation split drawn with `seed`."""
    options = config.model_dump(exclude={"name", "augment"})
    return data.load(config.name, seed=seed, **options)


def load_real_images(config: RealImages) -> data.Images:
    """Return the training images of a named set, or all of a folder or parquet file, labelled or not."""
    options = config.model_dump(exclude={"name"})
    if config.name in data.NAMES:
        return data.load(config.name, validation=0, **options).train
    path = locate(config.name, config.directory)
    size = (config.image_size, config.image_size) if config.image_size else None
    pixels = data.read_samples(path, image_size=size, channels=config.channels)
    images = data.Images(pixels, torch.zeros(len(pixels), dtype=torch.int64), 1, path.resolve().stem)
    kept, _ = held_out(images.labels, config.limit or len(images), seed=0)
    return images.subset(kept.sort().values)


def settings(experiment: Section) -> dict[str, Any]:
    """Return the part of an experiment's configuration that determines the weights, as JSON-able values.

    How the network is evaluated, where the images lie, the devices and the checkpoints are left out.
    """
    outside = {"evaluation": True, "data": {"directory"}, "training": {"accelerator", "devices", "checkpoint_every"}}
    return experiment.model_dump(mode="json", exclude=outside)


def _mlp(config: Mlp, image_shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    features = image_shape[0] * image_shape[1] * image_shape[2]
    linear = names.LINEARS[config.linear]
    return names.ARCHITECTURES[config.architecture](
        features, classes, config.widths, linear=linear, activation=_activation(config)
    )


def _convnet(config: Convnet, image_shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    channels, height, width = image_shape
    conv = names.CONVS[config.conv]
    if config.padding_mode is not None and config.conv != "unconstrained":
        conv = partial(conv, padding_mode=config.padding_mode)
    return names.ARCHITECTURES[config.architecture](
        channels,
        (height, width),
        classes,
        conv=conv,
        linear=names.LINEARS[config.linear],
        activation=_activation(config),
    )


def _baseline(config: Kw | Qw, image_shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    channels, height, width = image_shape
    options = config.model_dump(exclude={"architecture", "published"})
    return names.ARCHITECTURES[config.architecture](channels, (height, width), classes, **options)


def _activation(config: Network) -> Callable[[], nn.Module]:
    activation = names.ACTIVATIONS[config.activation]
    return activation if config.group_size is None else partial(activation, config.group_size)


def _name(config: Section) -> str:
    return str(config.model_dump()["name"])


def _options(config: Section) -> dict[str, Any]:
    return config.model_dump(exclude={"name"})
