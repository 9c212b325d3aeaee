"""A WGAN whose critic is 1-Lipschitz by construction: no penalty, no clipping (Li et al., NeurIPS 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from lconvnet.baking import bake
from lconvnet.bounds import lipschitz_bound
from lconvnet.gan.objective import CriticLoss, ImageShape, difference, require_one_value
from lconvnet.layers import ConstrainedLayer
from lconvnet.training.projection import project_


@dataclass(frozen=True)
class LipschitzCritic:
    r"""The bare difference $\mathbb E f(x) - \mathbb E f(\tilde x)$ of a critic of constrained layers.

    With L the upper bound on the baked critic's constant, the difference is at most L times the Wasserstein-1 distance
    (l2 over pixels in [0, 1]) of the images it is taken on; L is in the record, epoch by epoch. Kernels that are
    projected (SVCM) are so after every step. Adam with betas (0, 0.9) as in WGAN-GP, at 1e-3.
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
