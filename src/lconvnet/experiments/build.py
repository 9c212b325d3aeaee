"""From the sections of a configuration to what they describe: network, loss, optimiser, schedule, images."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lconvnet import data, models
from lconvnet.experiments import names
from lconvnet.experiments.config import Convnet, Data, Experiment, Kw, Mlp, Network, Qw, Section
from lconvnet.experiments.estimation_config import Critic, RealImages
from lconvnet.layers import NearestUpsampling


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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(config, Mlp):
            return _mlp(config, image_shape, classes)
        if isinstance(config, Kw | Qw):
            return _baseline(config, image_shape, classes)
        return _convnet(config, image_shape, classes)


def build_critic(config: Critic, image_shape: tuple[int, int, int], *, seed: int) -> nn.Sequential:
    """Return the paper's critic for images of shape (C, H, W), its initial weights a function of `seed` alone.

    >>> build_critic(Critic(conv="rko"), (3, 32, 32), seed=0)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 1])
    """
    channels, height, width = image_shape
    factor = config.upsampling
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        critic = models.dcgan_critic(
            channels,
            (factor * height, factor * width),
            conv=names.CONVS[config.conv],
            linear=names.LINEARS[config.linear],
            activation=_activation(config),
        )
    return critic if factor == 1 else nn.Sequential(NearestUpsampling(factor), *critic)


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


def load_real_images(config: RealImages) -> Tensor:
    """Return the training images of a set as they are stored, uint8 `(N, C, H, W)`."""
    return data.load(config.name, validation=0, **config.model_dump(exclude={"name"})).train.images


def settings(experiment: Experiment) -> dict[str, Any]:
    """Return the part of a configuration that determines the weights, as JSON-able values.

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
