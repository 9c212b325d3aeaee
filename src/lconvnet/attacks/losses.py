"""What an attack climbs, whatever the scale of the logits.

Logits z are first divided by a tenth of their spread: the median of max z − min z over the same noise always. So no
attack depends on a positive factor of the network or on the other images of a batch, no softmax saturates and no
gradient under- or overflows. With y the label, and
π the classes in descending order of their logits, the losses of an image are

    margin                    max_{j≠y} z_j − z_y                          (Li et al. 2019)
    cross-entropy             log Σ_j exp z_j − z_y                        (Madry et al. 2018)
    logit-difference-ratio    (max_{j≠y} z_j − z_y) / (z_π1 − z_π3)        (Croce & Hein 2020, equation 6)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lconvnet.ops.margins import margin

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits ``(B, classes)`` of spread :data:`SPREAD` and labels ``(B,)`` to a number that grows as the answers get worse,
summed or averaged."""

LossName = Literal["margin", "cross-entropy", "logit-difference-ratio"]

NOISE = 32
"""Images of noise that tell a network's spread."""

SPREAD = 10.0
"""The spread of logits that losses and libraries see: cross-entropy heeds the nearest classes and has digits left."""


def require_three(classes: int) -> None:
    """Raise ValueError where the logit-difference ratio has no third logit."""
    if classes < 3:
        raise ValueError(f"loss='logit-difference-ratio' needs three classes or more, the network has {classes}")


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    return -margin(logits, labels).sum()


def _logit_difference_ratio(logits: Tensor, labels: Tensor) -> Tensor:
    require_three(logits.shape[1])
    top = logits.topk(3).values
    return -(margin(logits, labels) / (top[:, 0] - top[:, 2])).sum()


LOSSES: Mapping[str, Loss] = {
    "margin": _margin,
    "cross-entropy": F.cross_entropy,
    "logit-difference-ratio": _logit_difference_ratio,
}


def loss_of(loss: Loss | LossName) -> Loss:
    """Return the loss of that name, or the callable itself.

    >>> loss_of("margin")(torch.tensor([[1.0, 3.0]]), torch.tensor([0])).item()
    2.0
    """
    if isinstance(loss, type):
        raise ValueError(f"loss is the class {loss.__name__}: pass a name or a callable, such as {loss.__name__}()")
    if callable(loss):
        return loss
    if loss not in LOSSES:
        raise ValueError(f"loss={loss!r}: must be one of {', '.join(get_args(LossName))}, or a callable")
    return LOSSES[loss]


@torch.no_grad()
def unit(network: nn.Module, images: Tensor) -> float:
    """Return the number by which the logits are divided to have spread :data:`SPREAD` on uniform noise of the shape,
    dtype and device of the images, whatever these are; 1 where all the noise has equal logits.

    >>> unit(nn.Linear(2, 2, bias=False), torch.zeros(1, 2)) == unit(nn.Linear(2, 2, bias=False), torch.ones(9, 2))
    False
    >>> same = nn.Linear(2, 2, bias=False)
    >>> unit(same, torch.zeros(1, 2)) == unit(same, torch.ones(9, 2))
    True
    """
    noise = torch.rand(NOISE, *images.shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits = network(noise.to(images)).double()
    spread = logits.amax(dim=1) - logits.amin(dim=1)
    spread = spread[(spread > 0) & spread.isfinite()]
    return float(spread.median()) / SPREAD if len(spread) else 1.0


class Normalized(nn.Module):
    """A network whose logits have spread :data:`SPREAD`, the dtype of the images, and belong to the caller."""

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.network = network
        self.unit = unit(self.network, images)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return (self.network(images) / self.unit).to(images.dtype)
