"""WGAN with weight clipping (Arjovsky, Chintala & Bottou, ICML 2017, algorithm 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer, RMSprop

from lconvnet.gan.objective import CriticLoss, ImageShape, difference, require_one_value
from lconvnet.layers import ConstrainedLayer
from lconvnet.ops.numbers import PositiveFloat


@dataclass(frozen=True)
class WeightClipping:
    r"""Every parameter of the critic is clipped to $[-c, c]$ after each of its steps (algorithm 1, line 7).

    That bounds the Lipschitz constant by some number that nobody knows, so the critic's value is a distance in unknown
    units. `bound` is c, 0.01 in the paper, with RMSprop at 5e-5.

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
        _refuse_constrained(critic)
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


def _refuse_constrained(critic: nn.Module) -> None:
    """Clipping free parameters says nothing of the weights that are made of them."""
    for name, module in critic.named_modules():
        if isinstance(module, ConstrainedLayer):
            raise ValueError(
                f"critic has a {type(module).__name__} ({name!r}), constrained already: weight clipping needs an "
                "unconstrained critic (models.baselines.unconstrained_critic); use gan.LipschitzCritic() for this one"
            )
