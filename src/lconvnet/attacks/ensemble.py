"""The standard ensemble AutoAttack (Croce & Hein 2020) and its members, from pyautoattack (extra `attacks`).

APGD chooses its own steps; Square (Andriushchenko et al. 2020) asks for logits only; AutoAttack runs APGD on
cross-entropy, targeted APGD, targeted FAB and Square, each on the images that are left. They search a ball that is
:data:`INSIDE` the one asked for, since they work in float32; :func:`lconvnet.attacks.score` then measures what they
found.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lconvnet.attacks.checks import checked
from lconvnet.attacks.gradient import marked
from lconvnet.attacks.losses import Normalized, require_three
from lconvnet.attacks.randomness import seeded
from lconvnet.attacks.result import AttackResult, Norm, score
from lconvnet.extras import require
from lconvnet.ops.images import check_eps

INSIDE = 1 - 1e-5
NORMS = {"l2": "L2", "linf": "Linf"}
TARGETS = 9
TIE = 1e-4  # of a spread of 10
APGD = {"cross-entropy": "apgd-ce", "logit-difference-ratio": "apgd-dlr"}


@checked
def apgd(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float,
    *,
    steps: int = 100,
    restarts: int = 1,
    norm: Norm = "l2",
    seed: int = 0,
    loss: Literal["cross-entropy", "logit-difference-ratio"] = "cross-entropy",
) -> AttackResult:
    """Gradient ascent of the loss that halves its step where it stops to help.

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


@checked
def square(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float,
    *,
    queries: int = 5000,
    norm: Norm = "l2",
    seed: int = 0,
) -> AttackResult:
    """Random search over squares of pixels; needs images ``(B, C, H, W)`` of 5 x 5 pixels or more."""
    _require_squares(images)

    def tune(ensemble: Any) -> None:
        ensemble.square.n_queries = queries

    return _run(["square"], tune, network, images, labels, eps, norm, seed)


@checked
def autoattack(
    network: nn.Module, images: Tensor, labels: Tensor, eps: float, *, norm: Norm = "l2", seed: int = 0
) -> AttackResult:
    """The standard version. Below four classes, where its targeted APGD is not defined, that member is left out."""

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
    """Logits of which one is the largest, as argmax decides: Square takes a tie for a wrong answer, and ends."""

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
    tune: Any,
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float,
    norm: Norm,
    seed: int,
) -> AttackResult:
    eps = check_eps(eps)
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r}: must be 'l2' or 'linf'")
    if images.dtype != torch.float32:
        raise ValueError(f"images has dtype {images.dtype}: AutoAttack works in float32, use images.float()")
    library = require("pyautoattack", "attacks")
    ensemble = library.AutoAttack(
        Decided(network, images),
        attacks=list(members),
        device=images.device,
        eps=eps * INSIDE,
        norm=NORMS[norm],
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
