"""Clean, certified and attacked accuracy of a baked network, under the keys of the original's `results.yaml`.

For each eps: `natural` is the clean accuracy, `lb` the certified accuracy (correct and radius > eps),
`lb_dist` the mean certified radius of the correctly classified images; for each attack, `NAME-ub` is the
accuracy that remains (correct and not fooled within eps), `NAME-ub-success-rate` one minus that,
`NAME-ub-dist` the mean l2 norm of the successful perturbations of correctly classified images (0 where there
is none). Then lb <= NAME-ub <= natural.

*Certified and attacked can never both hold*: an image whose label is changed by a perturbation shorter than
its certified radius stops the evaluation, after the evidence has been written.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lconvnet import atomic
from lconvnet.attacks import AttackResult
from lconvnet.bounds import Bound
from lconvnet.certify import Certificates, certified_accuracy, certify
from lconvnet.data import Images, batch
from lconvnet.experiments import names
from lconvnet.experiments.config import Evaluation, Fgsm, Pgd

logger = logging.getLogger("lconvnet")

Report = Callable[[str], None]


class ContradictionError(RuntimeError):
    """An attack succeeded inside a certified radius: an incident, never to be explained away."""


@dataclass(frozen=True)
class Subject:
    """What is measured: a network with its bound on images, where evidence goes, and who hears of
    progress."""

    network: nn.Module
    bound: Bound
    images: Images
    evidence: Path
    batch_size: int
    report: Report

    def batches(self, count: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield positions, float images in [0, 1] and labels of the first `count` images."""
        for start in range(0, count, self.batch_size):
            chosen = slice(start, min(start + self.batch_size, count))
            yield chosen, *batch(self.images, range(chosen.start, chosen.stop))


def certify_all(subject: Subject) -> Certificates:
    """Return the certificates of all images, computed batch by batch."""
    parts = [
        certify(subject.network, images, bound=subject.bound, batch_size=subject.batch_size)
        for _, images, _ in subject.batches(len(subject.images))
    ]
    label, margin, radius = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("label", "margin", "radius")
    )
    return Certificates(label=label, margin=margin, radius=radius, level=parts[0].level)


def mean_loss(subject: Subject, loss: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Return the loss averaged over all images."""
    total = 0.0
    with torch.no_grad():
        for _, images, labels in subject.batches(len(subject.images)):
            total += float(loss(subject.network(images), labels)) * len(labels)
    return total / len(subject.images)


def measure(
    subject: Subject, certificates: Certificates, evaluation: Evaluation, *, attacks: bool, seed: int
) -> dict[str, dict[float, dict[str, float]]]:
    """Return `adv_robustness` and, where an attack is marked `mini`, `adv_robustness_mini_eval`: eps -> key
    -> value."""
    found: dict[str, dict[float, dict[str, float]]] = {}
    chosen = evaluation.attacks if attacks else ()
    for section, mini in (("adv_robustness", False), ("adv_robustness_mini_eval", True)):
        members = [attack for attack in chosen if attack.mini == mini]
        count = min(evaluation.mini_test_size, len(subject.images)) if mini else len(subject.images)
        for eps in dict.fromkeys([*evaluation.eps, *(e for attack in members for e in attack.eps or ())]):
            at_eps = [attack for attack in members if eps in (attack.eps or evaluation.eps)]
            if mini and not at_eps:
                continue
            row = certified_row(certificates, subject.images.labels, eps, count)
            for attack in at_eps:
                row |= attacked_row(subject, certificates, attack, eps, count, seed=seed)
            found.setdefault(section, {})[eps] = row
    return found


def certified_row(certificates: Certificates, labels: Tensor, eps: float, count: int) -> dict[str, float]:
    """Return `natural`, `lb` and `lb_dist` at `eps` over the first `count` images."""
    part = Certificates(
        label=certificates.label[:count],
        margin=certificates.margin[:count],
        radius=certificates.radius[:count],
        level=certificates.level,
    )
    correct = part.label == labels[:count]
    return {
        "natural": _mean(correct),
        "lb": certified_accuracy(part, labels[:count], eps),
        "lb_dist": _mean(part.radius[correct]),
    }


def attacked_row(
    subject: Subject, certificates: Certificates, attack: Pgd | Fgsm, eps: float, count: int, *, seed: int
) -> dict[str, float]:
    """Return the keys of one attack at `eps`; raise ContradictionError where it breaks a certificate."""
    run, options = names.ATTACKS[attack.name], attack.model_dump(exclude={"name", "eps", "mini"})
    if isinstance(attack, Pgd):
        options["generator"] = torch.Generator().manual_seed(seed)
    correct = certificates.label[:count] == subject.images.labels[:count]
    fooled, norms = torch.zeros_like(correct), torch.zeros(count, dtype=torch.float64)
    for chosen, images, labels in subject.batches(count):
        result = run(subject.network, images, labels, eps, **options)
        success = check(subject, certificates, attack.name, eps, chosen, images, labels, result)
        fooled[chosen], norms[chosen] = success & correct[chosen], result.norm.double()
        subject.report(f"{attack.name} at eps {eps}: {chosen.stop} of {count} images")
    remaining = _mean(correct & ~fooled)
    key = f"{attack.name}-ub"
    return {key: remaining, f"{key}-dist": _mean(norms[fooled]), f"{key}-success-rate": 1 - remaining}


def check(
    subject: Subject,
    certificates: Certificates,
    name: str,
    eps: float,
    chosen: slice,
    images: Tensor,
    labels: Tensor,
    result: AttackResult,
) -> Tensor:
    """Return which attacks succeeded; raise ContradictionError, with the evidence on disk, where an image was
    fooled inside its certified radius.

    Certificates are about the network in float64, so there the float64 copy decides: an answer that float32
    alone gives away is no success.
    """
    label, radius = certificates.label[chosen], certificates.radius[chosen]
    inside = (label == labels) & result.success & (result.norm.double() < radius)
    if not inside.any():
        return result.success
    broken = inside & fooled_in_float64(subject.network, result.adversarial, labels)
    if not broken.any():
        logger.warning(
            "%s changes the answer to %d certified images inside their radius in float32, by rounding alone: level "
            "%r is about exact arithmetic, so these count as no success",
            name,
            int(inside.sum()),
            certificates.level,
        )
        return result.success & ~inside
    place = int(broken.nonzero()[0])
    index = chosen.start + place
    facts = {
        "attack": name,
        "eps": eps,
        "index": index,
        "label": int(labels[place]),
        "margin": float(certificates.margin[index]),
        "radius": float(certificates.radius[index]),
        "norm": float(result.norm[place]),
        "bound": subject.bound.upper,
        "level": certificates.level,
    }
    path = subject.evidence / f"{name}-eps-{eps}-image-{index}.safetensors"
    tensors = {"image": images[place], "adversarial": result.adversarial[place]}
    atomic.write_safetensors(path, tensors, metadata=json.dumps(facts))
    raise ContradictionError(
        f"a certificate is contradicted: {name} changed the label of test image {index} with a perturbation "
        f"of norm {facts['norm']:.9g} inside its certified radius {facts['radius']:.9g} (margin "
        f"{facts['margin']:.9g}, Lipschitz bound {facts['bound']:.9g}, level {facts['level']}); "
        f"evidence: {path}"
    )


@torch.no_grad()
def fooled_in_float64(network: nn.Module, adversarial: Tensor, labels: Tensor) -> Tensor:
    """Return where a float64 copy of the network answers other than the labels."""
    return deepcopy(network).double().eval()(adversarial.double()).argmax(dim=1) != labels


def _mean(values: Tensor) -> float:
    return float(values.double().mean()) if len(values) else 0.0
