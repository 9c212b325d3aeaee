r"""The objectives of a generator's critic, and the ways to bound its growth.

A Wasserstein GAN (Arjovsky, Chintala & Bottou, ICML 2017) trains a critic f to tell real images from generated ones,
and a generator g against it:

$$\min_g\ \max_{f\in\mathcal F}\ \mathbb E_{x\sim P} f(x) - \mathbb E_{z\sim N(0, 1)} f(g(z))$$

If $\mathcal F$ are the 1-Lipschitz functions, the maximum is the Wasserstein-1 distance (Kantorovich-Rubinstein). The
objectives differ in how they keep f near $\mathcal F$.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Adam, Optimizer, RMSprop

from lconvnet.baking import bake
from lconvnet.bounds import lipschitz_bound
from lconvnet.layers import ConstrainedLayer
from lconvnet.ops.numbers import PositiveFloat
from lconvnet.training.engine import as_computed, project_

ImageShape = tuple[int, int, int]


class CriticLoss(NamedTuple):
    """The loss of a critic, and the mean difference of its values (real minus generated) in it; both scalars."""

    loss: Tensor
    difference: Tensor


class Objective(Protocol):
    """A way to train a critic; a frozen dataclass, so that a record can describe it."""

    def check(self, critic: nn.Module, image_shape: ImageShape) -> None:
        """Raise `ValueError` for a critic that this objective cannot train."""
        ...

    def optimizer(self, parameters: list[nn.Parameter]) -> Optimizer:
        """The optimiser of the paper, for critic and generator."""
        ...

    def critic_loss(self, critic: nn.Module, real: Tensor, generated: Tensor, generator: torch.Generator) -> CriticLoss:
        """The loss of real and generated images ``(B, C, H, W)``; random draws come from `generator`."""
        ...

    def constrain_(self, critic: nn.Module) -> None:
        """Move the critic back into its set, in place, after a step of its optimiser."""
        ...

    def lipschitz(self, critic: nn.Module, image_shape: ImageShape) -> float | None:
        """A rigorous upper bound on the critic's Lipschitz constant, if this objective gives one."""
        ...


@dataclass(frozen=True)
class LipschitzCritic:
    r"""A critic that is 1-Lipschitz by construction: no penalty, no clipping (Li et al., NeurIPS 2019).

    The loss is the bare difference $\mathbb E f(x) - \mathbb E f(\tilde x)$ of a critic of constrained layers. With L
    the upper bound on the baked critic's constant, the difference is at most L times the Wasserstein-1 distance (l2
    over pixels in [0, 1]) between the images of the batch. The record has L per epoch. Projected kernels (SVCM) are
    projected after every step. Adam with betas (0, 0.9) as in WGAN-GP, at 1e-3.
    """

    def check(self, critic: nn.Module, image_shape: ImageShape) -> None:
        layers = [module for module in critic.modules() if isinstance(module, ConstrainedLayer)]
        constrained = {id(parameter) for layer in layers for parameter in layer.parameters()}
        for name, parameter in critic.named_parameters():
            if id(parameter) not in constrained:
                raise ValueError(
                    f"critic has the unconstrained parameter {name!r}: build it of this package's layers, such as "
                    "models.dcgan_critic, or use gan.GradientPenalty() or gan.WeightClipping()"
                )
        require_one_value(critic, image_shape)
        self.lipschitz(critic, image_shape)

    def optimizer(self, parameters: list[nn.Parameter]) -> Optimizer:
        return Adam(parameters, lr=1e-3, betas=(0.0, 0.9))

    def critic_loss(self, critic: nn.Module, real: Tensor, generated: Tensor, generator: torch.Generator) -> CriticLoss:
        value = difference(critic, real, generated)
        return CriticLoss(-value, value.detach())

    def constrain_(self, critic: nn.Module) -> None:
        project_(critic)

    def lipschitz(self, critic: nn.Module, image_shape: ImageShape) -> float:
        return lipschitz_bound(bake(critic), input_shape=image_shape, diagnose=False).upper


@dataclass(frozen=True)
class WeightClipping:
    r"""WGAN: every parameter of the critic is clipped to $[-c, c]$ after each of its steps (Arjovsky et al. 2017,
    algorithm 1, line 7).

    This bounds the Lipschitz constant by an unknown number, so the critic's value is a distance in unknown units.
    `bound` is c, 0.01 in the paper, with RMSprop at 5e-5.

    >>> critic = nn.Linear(1, 1)
    >>> _ = nn.init.constant_(critic.weight, 3.0)
    >>> WeightClipping().constrain_(critic)
    >>> round(critic.weight.item(), 6)
    0.01
    """

    bound: PositiveFloat = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.bound < math.inf:
            raise ValueError(f"bound={self.bound!r}: must be positive and finite; 0.01 in the paper")

    def check(self, critic: nn.Module, image_shape: ImageShape) -> None:
        for name, module in critic.named_modules():  # clipped free parameters do not bound the weights made of them
            if isinstance(module, ConstrainedLayer):
                raise ValueError(
                    f"critic has a {type(module).__name__} ({name!r}), constrained already: weight clipping needs an "
                    "unconstrained critic (models.baselines.unconstrained_critic); use gan.LipschitzCritic() for this "
                    "one"
                )
        require_one_value(critic, image_shape)

    def optimizer(self, parameters: list[nn.Parameter]) -> Optimizer:
        return RMSprop(parameters, lr=5e-5)

    def critic_loss(self, critic: nn.Module, real: Tensor, generated: Tensor, generator: torch.Generator) -> CriticLoss:
        value = difference(critic, real, generated)
        return CriticLoss(-value, value.detach())

    @torch.no_grad()
    def constrain_(self, critic: nn.Module) -> None:
        for parameter in critic.parameters():
            parameter.clamp_(-self.bound, self.bound)

    def lipschitz(self, critic: nn.Module, image_shape: ImageShape) -> None:
        return None


@dataclass(frozen=True)
class GradientPenalty:
    r"""WGAN-GP: a penalty pulls the critic's gradient to norm 1 between real and generated images (Gulrajani, Ahmed,
    Arjovsky, Dumoulin & Courville, NeurIPS 2017, equation 3).

    $$\mathcal L = \mathbb E f(\tilde x) - \mathbb E f(x)
      + \lambda\,\mathbb E\big(\lVert\nabla f(\hat x)\rVert_2 - 1\big)^2$$

    `weight` is lambda, 10 in the paper, with Adam at 1e-4 and betas (0, 0.9). Gradients are per unit of a pixel in
    [0, 1]. The penalty guarantees nothing: the critic's value does not bound a distance. A critic that cannot be
    differentiated twice is refused.
    """

    weight: PositiveFloat = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ValueError(f"weight={self.weight!r}: must be positive and finite; 10 in the paper")

    def check(self, critic: nn.Module, image_shape: ImageShape) -> None:
        require_one_value(critic, image_shape)
        like = next(critic.parameters())
        x = torch.zeros(1, *image_shape, device=like.device, dtype=like.dtype)
        try:
            gradient_penalty(critic, x).backward()
        except RuntimeError as error:
            raise ValueError(
                f"critic cannot be differentiated twice, which a gradient penalty needs ({error}): build it of plain "
                "layers and ReLU or LeakyReLU, as models.baselines.unconstrained_critic"
            ) from error
        critic.zero_grad()

    def optimizer(self, parameters: list[nn.Parameter]) -> Optimizer:
        return Adam(parameters, lr=1e-4, betas=(0.0, 0.9))

    def critic_loss(self, critic: nn.Module, real: Tensor, generated: Tensor, generator: torch.Generator) -> CriticLoss:
        value = difference(critic, real, generated)
        share = torch.rand(len(real), 1, 1, 1, generator=generator).to(real)
        between = share * real + (1 - share) * generated  # algorithm 1, line 6
        return CriticLoss(self.weight * gradient_penalty(critic, between) - value, value.detach())

    def constrain_(self, critic: nn.Module) -> None:
        """Do nothing: the penalty is enough."""

    def lipschitz(self, critic: nn.Module, image_shape: ImageShape) -> None:
        return None


def gradient_penalty(critic: nn.Module, images: Tensor) -> Tensor:
    r"""$\frac1B\sum_b(\lVert\nabla f(x_b)\rVert_2 - 1)^2$, a scalar that is differentiable in the weights.

    >>> critic = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    >>> _ = nn.init.constant_(critic[1].weight, 1.5)  # a gradient of norm 3 everywhere
    >>> gradient_penalty(critic, torch.zeros(2, 1, 2, 2)).item()
    4.0
    """
    images = images.detach().requires_grad_()
    values = as_computed(critic(images))
    # Ones that require a gradient: a last layer differentiable only once then raises instead of seeming linear.
    ones = torch.ones_like(values, requires_grad=True)
    (gradient,) = torch.autograd.grad(values, images, ones, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def difference(critic: nn.Module, real: Tensor, generated: Tensor) -> Tensor:
    r"""$\frac1B\sum_b f(x_b) - \frac1{B'}\sum_b f(g_b)$, with one evaluation of the critic's weights for both.

    >>> difference(nn.Flatten(), torch.ones(4, 1, 1, 1), torch.zeros(2, 1, 1, 1)).item()
    1.0
    """
    values = as_computed(critic(torch.cat([real, generated])))
    return values[: len(real)].mean() - values[len(real) :].mean()


def require_one_value(critic: nn.Module, image_shape: ImageShape) -> None:
    """Raise `ValueError` unless the critic maps each image on its own to one value."""
    for name, module in critic.named_modules():
        if isinstance(module, _BatchNorm):
            raise ValueError(
                f"critic has a {type(module).__name__} ({name!r}), which mixes the images of a batch: a critic is a "
                "function of one image, leave the normalisation out"
            )
    like = next(critic.parameters(), torch.zeros(()))
    try:
        with torch.no_grad():
            shape = tuple(critic(torch.zeros(2, *image_shape, device=like.device, dtype=like.dtype)).shape)
    except RuntimeError as error:
        raise ValueError(f"critic cannot take images of shape {image_shape} ({error}): build it for them") from error
    if shape not in ((2,), (2, 1)):
        raise ValueError(f"critic gives outputs of shape {shape} for two images: one value per image is needed")
