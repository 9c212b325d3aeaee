"""Attacks along the gradient: one step (FGSM; Goodfellow et al. 2015) and many (PGD; Madry et al. 2018).

x <- Pi( x + step d ),      d = grad / |grad| in l2, sign(grad) in l-infinity,
                            Pi: into the ball of radius eps around the image, then into [0, 1]

FGSM starts at the image. PGD starts at Pi of a uniform point of the cube of side 2 eps around it, as in the paper's
code (Li et al. 2019). The loss does not depend on the scale of the logits z. They are first divided by a tenth of their
spread, the median of max z − min z over a fixed set of noise images. So attacks do not depend on a positive factor of
the network or on the other images of a batch, the softmax does not saturate and gradients do not under- or overflow.
With label y, and classes π in descending order of their logits, the losses of an image are

    margin                    max_{j≠y} z_j − z_y                          (Li et al. 2019)
    cross-entropy             log Σ_j exp z_j − z_y                        (Madry et al. 2018)
    logit-difference-ratio    (max_{j≠y} z_j − z_y) / (z_π1 − z_π3)        (Croce & Hein 2020, equation 6)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lconvnet.attacks.result import AttackResult, Norm, checked, norms, score
from lconvnet.ops.images import check_eps
from lconvnet.ops.margins import margin
from lconvnet.ops.numbers import PositiveFloat, PositiveInt

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps logits ``(B, classes)`` of spread :data:`SPREAD` and labels ``(B,)`` to a sum or mean that grows as the answers
get worse."""

LossName = Literal["margin", "cross-entropy", "logit-difference-ratio"]

NOISE = 32
"""Number of noise images that measure a network's spread."""

SPREAD = 10.0
"""The spread of logits that losses and libraries see: at this scale cross-entropy weighs the nearest classes most and
keeps its precision."""

INSIDE = 1 - 1e-6
"""Perturbations are at most this fraction of eps long, so that rounding to the images' dtype stays inside the ball."""


@checked()
def fgsm(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float | Tensor,
    *,
    norm: Norm = "l2",
    loss: Loss | LossName = "margin",
) -> AttackResult:
    """One step of length eps along the gradient of the loss.

    Args:
        network: evaluated as a copy in eval mode, in its own dtype.
        images: ``(B, C, H, W)``, floats in [0, 1].
        labels: true classes ``(B,)``.
        eps: radius of the ball, or one per image ``(B,)``.
        norm: "l2" or "linf", for the ball and the step.
        loss: the loss to increase: a name, or a callable of the logits at spread 10 and the labels.

    >>> fgsm(nn.Linear(4, 2), torch.full((1, 4), 0.5), torch.tensor([0]), 0.25).norm.item() <= 0.25
    True
    """
    eps = _radii(images, eps)
    direction, fooled = _ascent(network, images, labels, _objective(network, images, loss), norm)
    moved = _projected(images, images + _like_images(eps, images) * direction, eps, norm)
    result = score(network, images, labels, moved, eps, norm=norm)
    return replace(result, zero_gradient=_flat(direction) & ~fooled & ~result.success)


@checked()
def pgd(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float | Tensor,
    *,
    steps: PositiveInt = 20,
    step_size: PositiveFloat | None = None,
    restarts: PositiveInt = 1,
    norm: Norm = "l2",
    seed: int = 0,
    loss: Loss | LossName = "margin",
) -> AttackResult:
    """Projected gradient ascent of the loss from random points of the ball.

    Args:
        network, images, labels, eps, norm, loss: as in `fgsm`.
        steps: number of steps in each restart.
        step_size: length of a step, by default ``2.5 eps / steps``.
        restarts: number of attempts. An image keeps its first success, also within an attempt.
        seed: of the random starts, which are drawn for the batch in order. Otherwise images do not affect each other.

    >>> pgd(nn.Linear(4, 2), torch.full((1, 4), 0.5), torch.tensor([0]), 0.25, steps=3).norm.item() <= 0.25
    True
    """
    eps = _radii(images, eps)
    step = 2.5 * eps / steps if step_size is None else eps.new_full(eps.shape, step_size)
    generator, objective = torch.Generator().manual_seed(seed), _objective(network, images, loss)
    best = score(network, images, labels, images, eps, norm=norm)
    flat = ~best.success
    for _ in range(restarts):
        start = images + _like_images(eps, images) * _uniform_cube(images, generator)
        left = (~best.success).nonzero().flatten()
        if not len(left):
            break
        original, right, radius = images[left], labels[left], eps[left]
        x = _projected(original, start[left].clamp(0, 1), radius, norm)
        for _ in range(steps):
            direction, fooled = _ascent(network, x, right, objective, norm)
            flat[left] &= _flat(direction)
            moved = _projected(original, x + _like_images(step[left], x) * direction, radius, norm)
            x = torch.where(_like_images(fooled, x), x, moved)
        best = best.replaced(left, score(network, original, right, x, radius, norm=norm))
    return replace(best, zero_gradient=flat & ~best.success)


def marked(network: nn.Module, images: Tensor, labels: Tensor, result: AttackResult) -> AttackResult:
    """Return the result with ``zero_gradient`` set for correctly answered images whose margin has gradient zero."""
    direction, fooled = _ascent(network, images, labels, _objective(network, images, "margin"), "linf")
    return replace(result, zero_gradient=_flat(direction) & ~fooled & ~result.success)


def _objective(network: nn.Module, images: Tensor, loss: Loss | LossName) -> Loss:
    """The loss of logits that are first scaled to the spread that losses expect."""
    scale, climbed = unit(network, images), loss_of(loss)

    def objective(logits: Tensor, labels: Tensor) -> Tensor:
        value = climbed(logits / scale, labels)
        if not isinstance(value, Tensor) or value.ndim or not value.is_floating_point():
            found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"loss gives {found}: give loss(logits, labels), a scalar tensor, summed or averaged")
        return value

    return objective


def _flat(direction: Tensor) -> Tensor:
    """Which images have no direction to follow."""
    return (direction == 0).flatten(1).all(dim=1)


def _ascent(network: nn.Module, x: Tensor, labels: Tensor, loss: Loss, norm: Norm) -> tuple[Tensor, Tensor]:
    """The step of norm 1 along the gradient of the loss (zero if that vanishes or is not finite), and which answers are
    already wrong."""
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        logits = network(x)
        (gradient,) = torch.autograd.grad(loss(logits, labels), x)
    fooled = logits.detach().argmax(dim=1) != labels
    if norm == "linf":
        return torch.nan_to_num(gradient.sign(), nan=0.0), fooled
    length = _like_images(norms(gradient.double()), x)
    unit = gradient.double() / torch.where(length > 0, length, torch.ones_like(length))
    return torch.nan_to_num(unit, nan=0.0, posinf=0.0, neginf=0.0).to(x.dtype), fooled


def _projected(images: Tensor, x: Tensor, eps: Tensor, norm: Norm) -> Tensor:
    """Project into the ball, then into [0, 1]. The second step only moves pixels towards the image, so both hold."""
    delta, radius = x.double() - images.double(), _like_images(eps.double() * INSIDE, images)
    if norm == "linf":
        delta = torch.minimum(torch.maximum(delta, -radius), radius)
    else:
        length = _like_images(norms(delta), images).clamp(min=torch.finfo(torch.float64).tiny)
        delta = delta * (radius / length).clamp(max=1)
    return (images.double() + delta).clamp(0, 1).to(images.dtype)


def _uniform_cube(images: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform points of the cube [-1, 1]^d."""
    points = torch.rand(images.shape, generator=generator, dtype=torch.float64, device=generator.device)
    return (2 * points - 1).to(images)


def _like_images(values: Tensor, images: Tensor) -> Tensor:
    """One value per image, shaped to broadcast."""
    return values.reshape(-1, *[1] * (images.ndim - 1))


def _radii(images: Tensor, eps: float | Tensor) -> Tensor:
    """One eps per image."""
    count = len(images)
    try:
        radii = torch.as_tensor(eps, dtype=torch.float64, device=images.device)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"eps={eps!r}: pass one number, or one for each of {count} images") from None
    if radii.shape not in ((), (count,)):
        raise ValueError(f"eps has shape {tuple(radii.shape)}: pass one number, or one for each of {count} images")
    for radius in radii.unique().tolist():
        check_eps(radius)
    return radii.detach().to(images.device, torch.float64).expand(count)


def require_three(classes: int) -> None:
    """Raise ValueError if there are fewer than the three classes that the logit-difference ratio needs."""
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
    """Return the divisor that gives logits the spread :data:`SPREAD` on uniform noise.

    The noise has the shape, dtype and device of the images and does not depend on their values. The divisor is 1 if the
    logits are equal on all the noise.

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
    """A network whose logits have spread :data:`SPREAD` and the dtype of the images; the caller may change them."""

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.network = network
        self.unit = unit(self.network, images)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return (self.network(images) / self.unit).to(images.dtype)
