"""Attacks along the gradient in l2: one step (FGSM; Goodfellow et al. 2015) and many (PGD; Madry et al.
2018).

x <- Pi( x + step grad / |grad| ),          Pi: into the ball of radius eps around the image, then into [0, 1]
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lconvnet.attacks.result import AttackResult, Loss, score
from lconvnet.ops.images import check_eps, check_images, check_labels

INSIDE = 1 - 1e-6
"""Perturbations end this much inside the ball, so that rounding to the images' dtype does not leave it."""


def fgsm(
    network: nn.Module, images: Tensor, labels: Tensor, eps: float, *, loss: Loss = F.cross_entropy
) -> AttackResult:
    """One step of length eps along the gradient of the loss.

    Args:
        network: in eval mode; evaluated in its own dtype.
        images: ``(B, C, H, W)``, floats in [0, 1].
        labels: true classes ``(B,)``.
        eps: l2 radius.
        loss: what the attack increases.

    >>> fgsm(nn.Linear(4, 2), torch.full((1, 4), 0.5), torch.tensor([0]), 0.25).norm.item() <= 0.25
    True
    """
    labels = _checked(images, labels, eps)
    step = _direction(network, images, labels, loss) * eps
    return score(network, images, labels, _projected(images, images + step, eps), eps)


def pgd(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float,
    *,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    generator: torch.Generator | None = None,
    loss: Loss = F.cross_entropy,
) -> AttackResult:
    """Projected gradient ascent of the loss from uniformly random points of the ball.

    Args:
        network: in eval mode; evaluated in its own dtype.
        images: ``(B, C, H, W)``, floats in [0, 1].
        labels: true classes ``(B,)``.
        eps: l2 radius.
        steps: of every restart.
        step_size: l2 length of a step, by default ``2.5 eps / steps``.
        restarts: attempts; an image stays with its first success.
        generator: source of the random starts; by default one with seed 0.
        loss: what the attack increases.

    >>> pgd(nn.Linear(4, 2), torch.full((1, 4), 0.5), torch.tensor([0]), 0.25, steps=3).norm.item() <= 0.25
    True
    """
    labels = _checked(images, labels, eps)
    if steps < 1 or restarts < 1:
        raise ValueError(f"steps={steps} and restarts={restarts} must be at least 1")
    step_size = 2.5 * eps / steps if step_size is None else check_eps(step_size)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    best = score(network, images, labels, images, eps)
    for _ in range(restarts):
        x = _projected(images, images + eps * _uniform_ball(images, generator), eps)
        for _ in range(steps):
            x = _projected(images, x + step_size * _direction(network, x, labels, loss), eps)
        best = _keep_successes(best, score(network, images, labels, x, eps))
    return best


def _keep_successes(best: AttackResult, new: AttackResult) -> AttackResult:
    keep = best.success.reshape(-1, *[1] * (best.adversarial.ndim - 1))
    return AttackResult(
        torch.where(keep, best.adversarial, new.adversarial),
        best.success | new.success,
        torch.where(best.success, best.norm, new.norm),
    )


def _direction(network: nn.Module, x: Tensor, labels: Tensor, loss: Loss) -> Tensor:
    """Gradient of the loss with norm 1 for every image; zero where it vanishes or is not finite."""
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(network(x), labels), x)
    norm = _norms(gradient.double())
    unit = gradient.double() / torch.where(norm > 0, norm, torch.ones_like(norm))
    return torch.nan_to_num(unit, nan=0.0, posinf=0.0, neginf=0.0).to(x.dtype)


def _projected(images: Tensor, x: Tensor, eps: float) -> Tensor:
    """Into the ball, then into [0, 1]: the second step only moves pixels towards the image, so both hold."""
    delta = x.double() - images.double()
    shrink = (eps * INSIDE / _norms(delta).clamp(min=torch.finfo(torch.float64).tiny)).clamp(max=1)
    return (images.double() + delta * shrink).clamp(0, 1).to(images.dtype)


def _uniform_ball(images: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform points of the unit ball: a random direction times U^(1/d)."""
    shape, device = images.shape, generator.device
    direction = torch.randn(shape, generator=generator, dtype=torch.float64, device=device)
    radius = torch.rand(shape[0], generator=generator, dtype=torch.float64, device=device) ** (1 / images[0].numel())
    return (direction / _norms(direction) * radius.reshape(-1, *[1] * (images.ndim - 1))).to(images.device)


def _norms(x: Tensor) -> Tensor:
    """l2 norm of every image, shaped to broadcast."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1).reshape(-1, *[1] * (x.ndim - 1))


def _checked(images: Tensor, labels: Tensor, eps: float) -> Tensor:
    check_eps(eps)
    return check_labels(labels, len(check_images(images))).to(images.device)
