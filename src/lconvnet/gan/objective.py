r"""What a critic is trained for, and how it is kept from growing without bound.

A Wasserstein GAN (Arjovsky, Chintala & Bottou, ICML 2017) trains a critic f to tell real images from generated ones,
and a generator g against it:

$$\min_g\ \max_{f\in\mathcal F}\ \mathbb E_{x\sim P} f(x) - \mathbb E_{z\sim N(0, 1)} f(g(z))$$

Where $\mathcal F$ are the 1-Lipschitz functions the maximum is the Wasserstein-1 distance (Kantorovich-Rubinstein). The
objectives differ in how they keep f near $\mathcal F$: one file each.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

ImageShape = tuple[int, int, int]


class CriticLoss(NamedTuple):
    """What a critic minimises, and the mean difference of its values (real minus generated) in it; both scalars."""

    loss: Tensor
    difference: Tensor


class Objective(Protocol):
    """How a critic is trained; a frozen dataclass, so that a record can describe it."""

    def check(self, critic: nn.Module, image_shape: ImageShape) -> None:
        """Raise `ValueError` for a critic that this objective cannot train."""
        ...

    def optimizer(self, parameters: list[nn.Parameter]) -> Optimizer:
        """The optimiser of the paper, for critic and generator."""
        ...

    def critic_loss(self, critic: nn.Module, real: Tensor, generated: Tensor, generator: torch.Generator) -> CriticLoss:
        """The loss of real and generated images ``(B, C, H, W)``; what is random is drawn from `generator`."""
        ...

    def constrain_(self, critic: nn.Module) -> None:
        """Put the critic back into its set, in place, after a step of its optimiser."""
        ...

    def lipschitz(self, critic: nn.Module, image_shape: ImageShape) -> float | None:
        """A rigorous upper bound on the critic's Lipschitz constant, where this objective gives one."""
        ...


def difference(critic: nn.Module, real: Tensor, generated: Tensor) -> Tensor:
    r"""$\frac1B\sum_b f(x_b) - \frac1{B'}\sum_b f(g_b)$, with one evaluation of the critic's weights for both.

    >>> difference(nn.Flatten(), torch.ones(4, 1, 1, 1), torch.zeros(2, 1, 1, 1)).item()
    1.0
    """
    values = critic(torch.cat([real, generated]))
    return values[: len(real)].mean() - values[len(real) :].mean()


def generator_loss(critic: nn.Module, generated: Tensor) -> Tensor:
    r"""$-\frac1B\sum_b f(g_b)$: the same for every objective (Arjovsky et al. 2017, algorithm 1, line 10)."""
    return -critic(generated).mean()


def require_one_value(critic: nn.Module, image_shape: ImageShape) -> None:
    """Raise `ValueError` unless the critic is a function of one image with one value."""
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
        raise ValueError(f"critic gives outputs of shape {shape} for two images: one value an image is needed")
