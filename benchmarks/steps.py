"""One training step as a function without arguments."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lconvnet.losses import OffsetCrossEntropy
from lconvnet.wasserstein.objective import critic_values, difference

LOSS = OffsetCrossEntropy(eps=1.58)


def training_step(network: nn.Module, loss: Callable[[], Tensor], lr: float = 1e-3) -> Callable[[], None]:
    """Gradients to zero, loss (which runs the network forward), backward, Adam."""
    optimizer = torch.optim.Adam(network.parameters(), lr)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def classification_step(network: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """The same on one batch that stays."""
    return training_step(network, lambda: LOSS(network(images), labels))


def critic_step_of(network: nn.Module, images: Tensor) -> Callable[[], None]:
    """A critic's step: the first half of the images is real, the second generated."""
    half = len(images) // 2

    def loss() -> Tensor:
        values = critic_values(network, images)
        return -difference(values[:half], values[half:])

    return training_step(network, loss)


def is_finite(network: nn.Module) -> bool:
    """Whether no step has diverged: Adam keeps a NaN, and an iteration on NaN may end early and look fast."""
    return all(bool(parameter.isfinite().all()) for parameter in network.parameters())
