"""Attacks of the libraries pyautoattack and foolbox (extra `attacks`).

**In a ball** (pyautoattack): the standard ensemble AutoAttack (Croce & Hein 2020) and its members. APGD chooses its own
step sizes. Square (Andriushchenko et al. 2020) uses only logits. AutoAttack runs APGD on cross-entropy, targeted APGD,
targeted FAB and Square, each on the images that are left. These attacks work in float32, so they search a ball that is
smaller by the factor :data:`INSIDE`.

**The shortest perturbation** (foolbox): one run serves every eps. Some follow the gradient, each image alone: DeepFool
(Moosavi-Dezfooli et al. 2016), C&W (Carlini & Wagner 2017), DDN (Rony et al. 2019), FMN (Pintor et al. 2021). Others
use only the answers: the boundary attack (Brendel et al. 2018), pointwise (Schott et al. 2019) and HopSkipJump (Chen et
al. 2020). They draw for the batch as a whole, so a result depends on the other images. They walk from a *start*, an
image with another answer: the nearest among the other images of the batch and uniform noise. A certified network often
gives all noise the same answer; an image without a start counts as not attacked.

:func:`lconvnet.attacks.score` clips and measures every result again.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lconvnet.attacks.gradient import Normalized, marked, require_three
from lconvnet.attacks.result import AttackResult, Norm, checked, score, seeded
from lconvnet.extras import require
from lconvnet.ops.images import check_eps
from lconvnet.ops.numbers import PositiveFloat, PositiveInt

INSIDE = 1 - 1e-5
TARGETS = 9
TIE = 1e-4  # of a spread of 10
APGD = {"cross-entropy": "apgd-ce", "logit-difference-ratio": "apgd-dlr"}
NOISE_STARTS = 100


@checked("pyautoattack")
def apgd(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float,
    *,
    steps: PositiveInt = 100,
    restarts: PositiveInt = 1,
    norm: Norm = "l2",
    seed: int = 0,
    loss: Literal["cross-entropy", "logit-difference-ratio"] = "cross-entropy",
) -> AttackResult:
    """Gradient ascent of the loss that halves its step when progress stops.

    >>> result = apgd(nn.Linear(4, 4), torch.full((1, 4), 0.5), torch.tensor([0]), 0.25, steps=3)
    >>> result.norm.item() <= 0.25
    True
    """

    def tune(ensemble: Any) -> None:
        ensemble.apgd.n_iter, ensemble.apgd.n_restarts = steps, restarts

    if loss not in APGD:
        raise ValueError(f"loss={loss!r}: apgd climbs {' or '.join(map(repr, APGD))}")
    if loss == "logit-difference-ratio":
        require_three(_classes(network, images))
    return _run([APGD[loss]], tune, network, images, labels, eps, norm, seed)


@checked("pyautoattack", by_gradient=False)
def square(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float,
    *,
    queries: PositiveInt = 5000,
    norm: Norm = "l2",
    seed: int = 0,
) -> AttackResult:
    """Random search over squares of pixels; needs images ``(B, C, H, W)`` of at least 5 x 5 pixels."""
    _require_squares(images)

    def tune(ensemble: Any) -> None:
        ensemble.square.n_queries = queries

    return _run(["square"], tune, network, images, labels, eps, norm, seed)


@checked("pyautoattack")
def autoattack(
    network: nn.Module, images: Tensor, labels: Tensor, eps: float, *, norm: Norm = "l2", seed: int = 0
) -> AttackResult:
    """The standard version; without targeted APGD, which is not defined, if there are fewer than four classes."""

    def tune(ensemble: Any) -> None:
        targets = min(TARGETS, classes - 1)
        ensemble.apgd.n_restarts = ensemble.fab.n_restarts = ensemble.apgd_targeted.n_restarts = 1
        ensemble.apgd_targeted.n_target_classes = ensemble.fab.n_target_classes = targets

    _require_squares(images)
    classes = _classes(network, images)
    members = ["apgd-ce", "apgd-t", "fab-t", "square"] if classes > 3 else ["apgd-ce", "fab-t", "square"]
    return _run(members, tune, network, images, labels, eps, norm, seed)


def _require_squares(images: Tensor) -> None:
    if images.ndim != 4 or min(images.shape[2:]) < 5:
        raise ValueError(f"images has shape {tuple(images.shape)}: square needs (B, C, H, W) of 5 x 5 pixels or more")


class Decided(Normalized):
    """Logits with ties broken as argmax does: Square would count a tie as a wrong answer and stop."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        top = logits.topk(2).values
        tied = (top[:, :1] == top[:, 1:]) * F.one_hot(logits.argmax(dim=1), logits.shape[1])
        return logits + TIE * tied


@torch.no_grad()
def _classes(network: nn.Module, images: Tensor) -> int:
    return network(images[:1]).shape[1]


def _run(
    members: Sequence[str],
    tune: Callable[[Any], None],
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float,
    norm: Norm,
    seed: int,
) -> AttackResult:
    eps = check_eps(eps)
    if images.dtype != torch.float32:
        raise ValueError(f"images has dtype {images.dtype}: AutoAttack works in float32, use images.float()")
    library = require("pyautoattack", "attacks")
    ensemble = library.AutoAttack(
        Decided(network, images),
        attacks=list(members),
        device=images.device,
        eps=eps * INSIDE,
        norm=norm.capitalize(),
        seed=seed % 2**31,
        version="custom",
    )
    tune(ensemble)
    trace = sys.gettrace()  # the library's checks reset it
    with seeded(seed, images.device):
        try:
            found, _ = ensemble.run_standard_evaluation(images, labels, batch_size=max(1, len(images)))
        finally:
            sys.settrace(trace)
    result = score(network, images, labels, found, eps, norm=norm)
    return result if members == ["square"] else marked(network, images, labels, result)


@checked("foolbox")
def deepfool(
    network: nn.Module, images: Tensor, labels: Tensor, *, steps: PositiveInt = 50, norm: Norm = "l2", seed: int = 0
) -> AttackResult:
    """Steps to the nearest decision boundary of the linearised network.

    >>> result = deepfool(nn.Linear(4, 2).eval(), torch.full((1, 4), 0.5), torch.tensor([0]))
    >>> result.norm.shape
    torch.Size([1])
    """
    kind = {"l2": "L2DeepFoolAttack", "linf": "LinfDeepFoolAttack"}[norm]
    return _by_gradient(kind, network, images, labels, norm, seed, steps=steps)


@checked("foolbox")
def carlini_wagner(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: PositiveInt = 1000,
    binary_search_steps: PositiveInt = 9,
    step_size: PositiveFloat = 1e-2,
    seed: int = 0,
) -> AttackResult:
    """Adam on norm plus c times margin, with a binary search for c."""
    # Not abort_early: it checks the progress of all images of the batch at once.
    options = {"steps": steps, "binary_search_steps": binary_search_steps, "stepsize": step_size, "abort_early": False}
    return _by_gradient("L2CarliniWagnerAttack", network, images, labels, "l2", seed, **options)


@checked("foolbox")
def ddn(network: nn.Module, images: Tensor, labels: Tensor, *, steps: PositiveInt = 100, seed: int = 0) -> AttackResult:
    """Gradient steps on a sphere that shrinks while the answer is wrong and grows while it is right."""
    return _by_gradient("DDNAttack", network, images, labels, "l2", seed, steps=steps)


@checked("foolbox")
def fmn(
    network: nn.Module, images: Tensor, labels: Tensor, *, steps: PositiveInt = 100, norm: Norm = "l2", seed: int = 0
) -> AttackResult:
    """Like DDN, with the distance to the boundary estimated from the gradient."""
    kind = {"l2": "L2FMNAttack", "linf": "LInfFMNAttack"}[norm]
    return _by_gradient(kind, network, images, labels, norm, seed, steps=steps)


@checked("foolbox", by_gradient=False)
def boundary_attack(
    network: nn.Module, images: Tensor, labels: Tensor, *, steps: PositiveInt = 5000, seed: int = 0
) -> AttackResult:
    """A random walk along the boundary towards the image."""
    return _by_answers("BoundaryAttack", network, images, labels, seed, steps=steps)


@checked("foolbox", by_gradient=False)
def hop_skip_jump(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: PositiveInt = 64,
    max_gradient_eval_steps: PositiveInt = 10000,
    norm: Norm = "l2",
    seed: int = 0,
) -> AttackResult:
    """Steps along gradients at the boundary, which are estimated from answers, and binary searches back to it."""
    options = {"steps": steps, "max_gradient_eval_steps": max_gradient_eval_steps, "constraint": norm}
    return _by_answers("HopSkipJumpAttack", network, images, labels, seed, norm, **options)


@checked("foolbox", by_gradient=False)
def pointwise(network: nn.Module, images: Tensor, labels: Tensor, *, seed: int = 0) -> AttackResult:
    """From salt-and-pepper noise, resets pixel after pixel to the image while the answer stays wrong."""
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
            result = result.replaced(index, score(network, chosen, right, moved, math.inf, norm=norm))
    return result


@torch.no_grad()
def _starts(network: nn.Module, images: Tensor, labels: Tensor, *, salt_and_pepper: bool) -> tuple[Tensor, Tensor]:
    """For each image, the nearest one whose answer differs from the label, and whether there is one."""
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
    """Undo the library's use of the root logger, which would add a handler for all messages of the process."""
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
