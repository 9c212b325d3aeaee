"""Attacks that look for the shortest adversarial perturbation, from the library foolbox (extra `attacks`).

By the gradient: DeepFool (Moosavi-Dezfooli et al. 2016), C&W (Carlini & Wagner 2017), DDN (Rony et al. 2019), FMN
(Pintor et al. 2021). By the answers alone: the boundary attack (Brendel et al. 2018), pointwise (Schott et al. 2019)
and HopSkipJump (Chen et al. 2020). Each runs once; whoever has an eps compares it with the norms. What they return is
clipped and measured again by :func:`lconvnet.attacks.score`. Those by the gradient treat each image alone; those by
the answers draw for the batch as a whole, so what they find depends on its other images.

Attacks by the answers walk from a *start*, an image with another answer: the nearest of the batch's other images and
of uniform noise. A certified network often answers all noise alike; an image without a start counts as not attacked.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lconvnet.attacks.checks import checked
from lconvnet.attacks.gradient import marked, replaced
from lconvnet.attacks.losses import Normalized
from lconvnet.attacks.randomness import seeded
from lconvnet.attacks.result import AttackResult, Norm, score
from lconvnet.extras import require

NOISE_STARTS = 100


@checked
def deepfool(
    network: nn.Module, images: Tensor, labels: Tensor, *, steps: int = 50, norm: Norm = "l2", seed: int = 0
) -> AttackResult:
    """Step by step over the nearest boundary of the linearised network.

    >>> result = deepfool(nn.Linear(4, 2).eval(), torch.full((1, 4), 0.5), torch.tensor([0]))
    >>> result.norm.shape
    torch.Size([1])
    """
    kind = {"l2": "L2DeepFoolAttack", "linf": "LinfDeepFoolAttack"}[_known(norm)]
    return _by_gradient(kind, network, images, labels, norm, seed, steps=steps)


@checked
def carlini_wagner(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int = 1000,
    binary_search_steps: int = 9,
    step_size: float = 1e-2,
    seed: int = 0,
) -> AttackResult:
    """Adam on norm plus c times margin, with a binary search for c."""
    # Not abort_early, which asks all images of the batch at once whether there is progress.
    options = {"steps": steps, "binary_search_steps": binary_search_steps, "stepsize": step_size, "abort_early": False}
    return _by_gradient("L2CarliniWagnerAttack", network, images, labels, "l2", seed, **options)


@checked
def ddn(network: nn.Module, images: Tensor, labels: Tensor, *, steps: int = 100, seed: int = 0) -> AttackResult:
    """Gradient steps on a sphere that shrinks while the answer is wrong and grows while it is right."""
    return _by_gradient("DDNAttack", network, images, labels, "l2", seed, steps=steps)


@checked
def fmn(
    network: nn.Module, images: Tensor, labels: Tensor, *, steps: int = 100, norm: Norm = "l2", seed: int = 0
) -> AttackResult:
    """As DDN, with the distance to the boundary estimated from the gradient."""
    kind = {"l2": "L2FMNAttack", "linf": "LInfFMNAttack"}[_known(norm)]
    return _by_gradient(kind, network, images, labels, norm, seed, steps=steps)


@checked
def boundary_attack(
    network: nn.Module, images: Tensor, labels: Tensor, *, steps: int = 5000, seed: int = 0
) -> AttackResult:
    """A random walk along the boundary towards the image."""
    return _by_answers("BoundaryAttack", network, images, labels, seed, steps=steps)


@checked
def hop_skip_jump(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int = 64,
    max_gradient_eval_steps: int = 10000,
    norm: Norm = "l2",
    seed: int = 0,
) -> AttackResult:
    """Gradients of the boundary estimated from answers, with binary searches back to it."""
    options = {"steps": steps, "max_gradient_eval_steps": max_gradient_eval_steps, "constraint": _known(norm)}
    return _by_answers("HopSkipJumpAttack", network, images, labels, seed, norm, **options)


@checked
def pointwise(network: nn.Module, images: Tensor, labels: Tensor, *, seed: int = 0) -> AttackResult:
    """From salt-and-pepper noise, pixel after pixel back towards the image while the answer stays wrong."""
    return _by_answers("PointwiseAttack", network, images, labels, seed)


def _by_gradient(
    kind: str, network: nn.Module, images: Tensor, labels: Tensor, norm: Norm, seed: int, **options: Any
) -> AttackResult:
    attacks = require("foolbox.attacks", "attacks")
    attack, normalized = getattr(attacks, kind)(**options), Normalized(network, images)
    with seeded(seed, images.device), _silent_root_logger():
        found = attack.run(_foolbox(normalized, images), images, _misclassified(labels))
    return marked(network, images, labels, score(network, images, labels, found, math.inf, norm=norm))


def _by_answers(
    kind: str, network: nn.Module, images: Tensor, labels: Tensor, seed: int, norm: Norm = "l2", **options: Any
) -> AttackResult:
    """Run on the images that have a start; the others keep their own pixels and count as not attacked."""
    attacks = require("foolbox.attacks", "attacks")
    result = score(network, images, labels, images, math.inf, norm=norm)
    with seeded(seed, images.device), _silent_root_logger():
        starts, found = _starts(network, images, labels, salt_and_pepper=kind == "PointwiseAttack")
        index = (found & ~result.success).nonzero().flatten()
        if len(index):
            chosen, right = images[index], labels[index]
            attack, model = getattr(attacks, kind)(**options), _foolbox(network, images)
            moved = attack.run(model, chosen, _misclassified(right), starting_points=starts[index])
            result = replaced(result, index, score(network, chosen, right, moved, math.inf, norm=norm))
    return result


@torch.no_grad()
def _starts(network: nn.Module, images: Tensor, labels: Tensor, *, salt_and_pepper: bool) -> tuple[Tensor, Tensor]:
    """For every image one with another answer than its label, and whether there is one."""
    noise = torch.rand(NOISE_STARTS, *images.shape[1:]).to(images)
    candidates = torch.cat([images, noise])
    distance = torch.cdist(images.flatten(1).double(), candidates.flatten(1).double())
    distance[network(candidates).argmax(dim=1) == labels[:, None]] = math.inf
    nearest, index = distance.min(dim=1)
    starts, found = candidates[index], nearest < math.inf
    if salt_and_pepper:
        attack = require("foolbox.attacks", "attacks").SaltAndPepperNoiseAttack()
        noisy = attack.run(_foolbox(network, images), images, _misclassified(labels))
        wrong = network(noisy).argmax(dim=1) != labels
        starts[wrong], found = noisy[wrong], found | wrong
    return starts, found


@contextlib.contextmanager
def _silent_root_logger() -> Iterator[None]:
    """The library talks to the root logger, which gives that a handler for everybody's messages."""
    root, level = logging.getLogger(), logging.root.manager.disable
    handlers = root.handlers[:]
    logging.disable(max(level, logging.INFO))
    try:
        yield
    finally:
        logging.disable(level)
        root.handlers[:] = handlers


def _foolbox(network: nn.Module, images: Tensor) -> Any:
    return require("foolbox", "attacks").PyTorchModel(network, bounds=(0, 1), device=images.device)


def _misclassified(labels: Tensor) -> Any:
    return require("foolbox", "attacks").Misclassification(labels)


def _known(norm: Norm) -> Norm:
    if norm not in ("l2", "linf"):
        raise ValueError(f"norm={norm!r}: must be 'l2' or 'linf'")
    return norm
