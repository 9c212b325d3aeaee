"""From records of single images to the accuracies of `results.yaml`, under the original's keys.

For each eps: `natural` is the clean accuracy, `lb` the certified accuracy (correct and radius > eps), `lb_dist` the
mean certified radius over all images, 0 for those answered wrongly; for each attack, `NAME-ub` is the accuracy that
remains (correct and not fooled within eps), `NAME-ub-success-rate` one minus that, `NAME-ub-dist` the mean norm that
the images answered wrongly within eps needed, 0 for those that were wrong before (0 where there is none), and, where it
goes along the gradient, `NAME-ub-zero-gradient` the number of images that had none. Then lb <= NAME-ub <= natural. NAME
is that of the attack, with the options in which two of one name differ: `pgd(steps=20)-ub`.

`adv_robustness` is about all test images, `adv_robustness_mini_eval` about the first few that slow attacks are given;
`adv_robustness_linf` and `adv_robustness_linf_mini_eval` measure eps in l-infinity, where |x|_2 <= sqrt(d) |x|_inf:
certified there is who has a radius above sqrt(d) eps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lconvnet.certify import Certificates, certified_accuracy
from lconvnet.experiments.config import Evaluation
from lconvnet.experiments.robustness import Outcome

Rows = dict[float, dict[str, float]]


def accuracies(
    certificates: Certificates, labels: Tensor, outcomes: Sequence[Outcome], evaluation: Evaluation, *, pixels: int
) -> dict[str, Rows]:
    """Return section -> eps -> key -> value; `pixels` is the number of values of an image."""
    found: dict[str, Rows] = {"adv_robustness": {}}
    for norm in ("l2", "linf"):
        for mini in (False, True):
            chosen = [o for o in outcomes if (o.attack.norm_name, o.attack.mini) == (norm, mini)]
            count = min(evaluation.mini_test_size, len(labels)) if mini else len(labels)
            rows: Rows = {}
            for eps in _radii(evaluation, chosen, everywhere=norm == "l2" and not mini):
                row = _certified(certificates, labels, eps, math.sqrt(pixels) if norm == "linf" else 1.0, count)
                for outcome in chosen:
                    if eps in outcome_radii(outcome, evaluation):
                        row |= _under_attack(outcome, eps, evaluation.key(outcome.attack))
                rows[eps] = row
            if rows:
                section = "adv_robustness" + ("_linf" if norm == "linf" else "") + ("_mini_eval" if mini else "")
                found[section] = rows
    return found


def outcome_radii(outcome: Outcome, evaluation: Evaluation) -> tuple[float, ...]:
    """The eps that an outcome speaks about: its own, or all where it looked for the shortest perturbation."""
    return outcome.attack.radii(evaluation) if outcome.eps is None else (outcome.eps,)


def _radii(evaluation: Evaluation, outcomes: Sequence[Outcome], *, everywhere: bool) -> list[float]:
    own = [eps for outcome in outcomes for eps in outcome_radii(outcome, evaluation)]
    return list(dict.fromkeys([*(evaluation.eps if everywhere else ()), *own]))


def _certified(certificates: Certificates, labels: Tensor, eps: float, factor: float, count: int) -> dict[str, float]:
    part = Certificates(
        label=certificates.label[:count],
        margin=certificates.margin[:count],
        radius=certificates.radius[:count],
        level=certificates.level,
        reason=certificates.reason[:count],
    )
    correct = part.label == labels[:count]
    return {
        "natural": _mean(correct),
        "lb": certified_accuracy(part, labels[:count], eps * factor),
        "lb_dist": _mean(part.radius.where(correct, 0.0)) / factor,
    }


def _under_attack(outcome: Outcome, eps: float, name: str) -> dict[str, float]:
    wrong = outcome.success & (outcome.norm <= eps)
    remaining, key = _mean(~wrong), f"{name}-ub"
    flat = {f"{key}-zero-gradient": int(outcome.zero_gradient.sum())} if outcome.attack.by_gradient else {}
    return {key: remaining, f"{key}-dist": _mean(outcome.norm[wrong]), f"{key}-success-rate": 1 - remaining} | flat


def _mean(values: Tensor) -> float:
    return float(values.to(torch.float64).mean()) if len(values) else 0.0
