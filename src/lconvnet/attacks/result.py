"""What an attack returns, and the check that does not trust it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

Norm = Literal["l2", "linf"]
"""How a perturbation is measured: Euclidean length, or the largest change of a pixel."""


@dataclass(frozen=True)
class AttackResult:
    """What became of B images.

    Attributes:
        adversarial: images in [0, 1], shape and dtype of the originals.
        success: bool ``(B,)``: the answer differs from the label, and the norm is at most eps (where the attack
            was given one).
        norm: exact distance to the original in the norm of the attack, float64 ``(B,)``.
        zero_gradient: bool ``(B,)``: rightly answered, and an attack along the gradient had none to follow (zero or not
            finite): at every point that `fgsm` and `pgd` looked at, at the image for attacks of the libraries.
    """

    adversarial: Tensor
    success: Tensor
    norm: Tensor
    zero_gradient: Tensor


class Attack(Protocol):
    """An attack within a ball: images ``(B, C, H, W)`` in [0, 1] with their labels, and the radius eps."""

    def __call__(self, network: nn.Module, images: Tensor, labels: Tensor, eps: float, **options: Any) -> AttackResult:
        """Attack the images."""
        ...


class MinimumNormAttack(Protocol):
    """An attack that looks for the shortest perturbation: one run serves every eps."""

    def __call__(self, network: nn.Module, images: Tensor, labels: Tensor, **options: Any) -> AttackResult:
        """Attack the images."""
        ...


@torch.no_grad()
def score(
    network: nn.Module, images: Tensor, labels: Tensor, adversarial: Tensor, eps: float | Tensor, *, norm: Norm = "l2"
) -> AttackResult:
    """Clip to [0, 1], measure the distance in float64, and ask the network again.

    An image further than eps (one number, or one for each image), or not finite, counts as failed, whatever the attack
    says.

    >>> x = torch.zeros(1, 2)
    >>> score(nn.Flatten(), x, torch.tensor([0]), torch.tensor([[0.0, 1.0]]), eps=0.5).success.tolist()
    [False]
    """
    clipped = adversarial.to(images.dtype).clamp(0, 1)
    distance = norms(clipped.double() - images.double(), norm)
    fooled = network(clipped).argmax(dim=1) != labels
    return AttackResult(clipped, fooled & (distance <= eps), distance, torch.zeros_like(fooled))


def norms(perturbation: Tensor, norm: Norm = "l2") -> Tensor:
    """Return the norm of every image of a batch ``(B, ...)``, as ``(B,)``.

    >>> norms(torch.tensor([[3.0, -4.0]])).item(), norms(torch.tensor([[3.0, -4.0]]), "linf").item()
    (5.0, 4.0)
    """
    if norm not in ("l2", "linf"):
        raise ValueError(f"norm={norm!r}: must be 'l2' or 'linf'")
    return torch.linalg.vector_norm(perturbation.flatten(1), ord=2 if norm == "l2" else torch.inf, dim=1)
