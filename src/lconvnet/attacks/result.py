"""What an attack returns, and the check that does not trust it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits ``(B, classes)`` and labels ``(B,)`` to a number that grows as the answers get worse, summed or
averaged."""


@dataclass(frozen=True)
class AttackResult:
    """What became of B images.

    Attributes:
        adversarial: images in [0, 1], shape and dtype of the originals.
        success: bool ``(B,)``: the answer differs from the label, and the norm is at most eps.
        norm: exact l2 distance to the original, float64 ``(B,)``.
    """

    adversarial: Tensor
    success: Tensor
    norm: Tensor


class Attack(Protocol):
    """Any attack: images ``(B, C, H, W)`` in [0, 1] with their labels, and the l2 radius it may use."""

    def __call__(self, network: nn.Module, images: Tensor, labels: Tensor, eps: float, **options: Any) -> AttackResult:
        """Attack the images."""
        ...


@torch.no_grad()
def score(network: nn.Module, images: Tensor, labels: Tensor, adversarial: Tensor, eps: float) -> AttackResult:
    """Clip to [0, 1], measure the distance in float64, and ask the network again.

    An image further than eps, or not finite, counts as failed, whatever the attack says.

    >>> x = torch.zeros(1, 2)
    >>> score(nn.Flatten(), x, torch.tensor([0]), torch.tensor([[0.0, 1.0]]), eps=0.5).success.tolist()
    [False]
    """
    clipped = adversarial.to(images.dtype).clamp(0, 1)
    norm = torch.linalg.vector_norm((clipped.double() - images.double()).flatten(1), dim=1)
    fooled = network(clipped).argmax(dim=1) != labels
    return AttackResult(clipped, fooled & (norm <= eps), norm)
