"""WGAN-GP: a penalty on the critic's gradient (Gulrajani, Ahmed, Arjovsky, Dumoulin & Courville, NeurIPS 2017)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from lconvnet.gan.objective import CriticLoss, ImageShape, difference, require_one_value
from lconvnet.ops.numbers import PositiveFloat


@dataclass(frozen=True)
class GradientPenalty:
    r"""The critic's gradient is asked to have norm 1 between real and generated images (equation 3).

    $$\mathcal L = \mathbb E f(\tilde x) - \mathbb E f(x)
      + \lambda\,\mathbb E\big(\lVert\nabla f(\hat x)\rVert_2 - 1\big)^2$$

    `weight` is lambda, 10 in the paper, with Adam at 1e-4 and betas (0, 0.9). Gradients are per unit of a pixel in
    [0, 1]. The penalty is a wish: the critic's value is no bound on any distance. A critic that cannot be
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
        penalty = gradient_penalty(critic, interpolated(real, generated, share))
        return CriticLoss(self.weight * penalty - value, value.detach())

    def constrain_(self, critic: nn.Module) -> None:
        """Nothing: the penalty is all."""

    def lipschitz(self, critic: nn.Module, image_shape: ImageShape) -> None:
        return None


def interpolated(real: Tensor, generated: Tensor, share: Tensor) -> Tensor:
    r"""$\hat x = \epsilon x + (1-\epsilon)\tilde x$, $\epsilon$ of shape ``(B, 1, 1, 1)`` (algorithm 1, line 6)."""
    return share * real + (1 - share) * generated


def gradient_penalty(critic: nn.Module, images: Tensor) -> Tensor:
    r"""$\frac1B\sum_b(\lVert\nabla f(x_b)\rVert_2 - 1)^2$, a scalar that can be differentiated by the weights.

    >>> critic = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    >>> _ = nn.init.constant_(critic[1].weight, 1.5)  # a gradient of norm 3 everywhere
    >>> gradient_penalty(critic, torch.zeros(2, 1, 2, 2)).item()
    4.0
    """
    images = images.detach().requires_grad_()
    values = critic(images)
    # Ones that ask for a gradient, so that a last layer which is differentiable once raises and is not taken as linear.
    ones = torch.ones_like(values, requires_grad=True)
    (gradient,) = torch.autograd.grad(values, images, ones, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()
