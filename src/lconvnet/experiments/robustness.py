"""Clean, certified and attacked accuracy of a baked network: records of single images, and their totals.

:func:`certify_all` and :func:`attack_all` keep their records in journals below the run; a second call measures only
what is missing. Random numbers follow from the seed, the attack and the batch, so an interrupted evaluation ends with
the same records as an undisturbed one. *Certified and attacked can never both hold*: if a perturbation shorter than an
image's certified radius changes its label, the evaluation writes the evidence and stops.

:func:`accuracies` turns the records into the numbers of `results.yaml`, under the original's keys, and :func:`columns`
into the rows of `examples.parquet`. For each eps, `natural` is the clean accuracy, `lb` the certified accuracy (correct
and radius > eps), and `lb_dist` the mean certified radius over all images, 0 for wrong answers. For each attack:

* `NAME-ub`: the accuracy that remains (correct and not fooled within eps)
* `NAME-ub-success-rate`: one minus `NAME-ub`
* `NAME-ub-dist`: the mean norm needed for the images answered wrongly within eps, 0 for those that were wrong before (0
  if there is none)
* `NAME-ub-zero-gradient`: the number of images without a gradient, if the attack follows it

Then lb <= NAME-ub <= natural. NAME is that of the attack, with the options in which two attacks of one name differ:
`pgd(steps=20)-ub`.

`adv_robustness` is about all test images, `adv_robustness_mini_eval` about the first few, which slow attacks use.
`adv_robustness_linf` and `adv_robustness_linf_mini_eval` measure eps in l-infinity. Since |x|_2 <= sqrt(d) |x|_inf, an
image is certified there if its radius is above sqrt(d) eps.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lconvnet import atomic
from lconvnet.attacks import AttackResult, norms
from lconvnet.bounds import Bound, fingerprint
from lconvnet.certify import Certificates, certified_accuracy, certified_at, certify, linear_margins
from lconvnet.data import Images, batch
from lconvnet.experiments.evaluation import Attack, Evaluation
from lconvnet.experiments.run_folder import RunFolder
from lconvnet.training.engine import derive_seed
from lconvnet.training.settings import describe_images, versions

logger = logging.getLogger("lconvnet")


class ContradictionError(RuntimeError):
    """An attack succeeded inside a certified radius. This is an incident and must never be explained away."""


@dataclass(frozen=True)
class Certified:
    """The rightly answered images of a batch, with their places in the test set, margins and radii."""

    index: Tensor
    images: Tensor
    labels: Tensor
    margin: Tensor
    radius: Tensor


def check(
    network: nn.Module, bound: Bound, level: str, batch: Certified, result: AttackResult, *, name: str, evidence: Path
) -> Tensor:
    """Return which attacks succeeded. Raises ContradictionError, with the evidence on disk, if an image was fooled
    inside its certified radius, even beyond the attack's eps.

    Certificates are about the network in float64, so there the float64 copy decides: a wrong answer in float32 alone
    does not count.
    """
    length = norms(result.adversarial.double() - batch.images.double())
    inside = (length < batch.radius) & fooled(network, result.adversarial, batch.labels)
    if not inside.any():
        return result.success
    broken = inside & fooled(deepcopy(network).double(), result.adversarial.double(), batch.labels)
    if not broken.any():
        logger.warning(
            "%s changes the answer to %d certified images inside their radius in float32, by rounding alone: level "
            "%r is about exact arithmetic, so these count as no success",
            name,
            int(inside.sum()),
            level,
        )
        return result.success & ~inside
    place = int(broken.nonzero()[0])
    facts = {
        "attack": name,
        "index": int(batch.index[place]),
        "label": int(batch.labels[place]),
        "margin": float(batch.margin[place]),
        "radius": float(batch.radius[place]),
        "norm": float(length[place]),
        "bound": bound.upper,
        "level": level,
    }
    tensors = {"image": batch.images[place], "adversarial": result.adversarial[place]}
    data = atomic.encode_safetensors(tensors, metadata=json.dumps(facts))
    path = evidence / f"{name}-image-{facts['index']}-{sha256(data).hexdigest()[:12]}.safetensors"
    atomic.write_bytes(path, data)
    raise ContradictionError(
        f"a certificate is contradicted: {name} changed the label of test image {facts['index']} with a perturbation "
        f"of norm {facts['norm']!r} inside its certified radius {facts['radius']!r} (margin "
        f"{facts['margin']!r}, Lipschitz bound {facts['bound']!r}, level {level}); evidence: {path}"
    )


@torch.no_grad()
def fooled(network: nn.Module, adversarial: Tensor, labels: Tensor) -> Tensor:
    """Return which images the network labels differently."""
    return network.eval()(adversarial).argmax(dim=1) != labels


Row = dict[str, Any]
SEAL = "seal"
SEAL_DIGITS = 12


@dataclass(frozen=True)
class Journal:
    """Records of single images that survive a kill: the file `NAME-HASH.jsonl` in `folder`, one JSON line per image.

    Every row has an `index` and exactly the `columns` (name -> types). The first line states the subject of the records
    (`facts`), and its hash is part of the file's name: other weights, images or options go to another file. Nothing is
    rewritten. Every row carries a hash of itself and of the facts. A row damaged by a kill, a bad disk or an edit is
    reported with file and line number, and its image is measured again.
    """

    folder: Path
    name: str
    facts: Mapping[str, Any]
    columns: Mapping[str, tuple[type, ...]]

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}-{self._digest(dict(self.facts))[:12]}.jsonl"

    def _digest(self, value: Any) -> str:
        return hashlib.sha256(json.dumps([self.facts, value], sort_keys=True).encode()).hexdigest()

    def read(self) -> dict[int, Row]:
        """Return the rows by index, the last one for a repeated index; unusable rows are logged."""
        rows: dict[int, Row] = {}
        for number, line in enumerate(_lines(self.path), start=1):
            found = _parsed(line)
            if self._is_row(found):
                rows[found["index"]] = {name: found[name] for name in found if name != SEAL}
            elif found != {"facts": json.loads(json.dumps(self.facts))}:
                logger.warning("%s:%d: not a record, ignored; what it stood for is measured again", self.path, number)
        return rows

    def append(self, rows: Iterable[Row]) -> None:
        """Add rows and wait until they are on disk. Raises `atomic.WriteError` if the disk is full."""
        begun = self.path.exists() and self.path.stat().st_size
        head = [] if begun else [_dumped({"facts": dict(self.facts)})]
        atomic.append_text(
            self.path, "".join([*head, *(_dumped({**row, SEAL: self._digest(row)[:SEAL_DIGITS]}) for row in rows)])
        )

    def _is_row(self, found: Any) -> bool:
        if not isinstance(found, dict) or set(found) != {"index", *self.columns, SEAL}:
            return False
        types = {"index": (int,), **self.columns}
        row = {name: found[name] for name in found if name != SEAL}
        sealed = found[SEAL] == self._digest(row)[:SEAL_DIGITS]
        return sealed and all(type(found[name]) in kinds for name, kinds in types.items())


def _lines(path: Path) -> Iterator[bytes]:
    if path.exists():
        yield from path.read_bytes().splitlines()


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _dumped(value: Any) -> str:
    return json.dumps(value) + "\n"


Report = Callable[[str, int, int], None]
"""Receives what is measured, how many images are done, and the total."""

CERTIFICATE = {"label": (int,), "prediction": (int,), "margin": (float,), "radius": (float,), "reason": (str,)}
LINEAR = {"margin": (float, type(None))}
OUTCOME = {"success": (bool,), "norm": (float, type(None)), "l2": (float, type(None)), "zero_gradient": (bool,)}


@dataclass(frozen=True)
class EvaluationTarget:
    """A network with its bound and test images, the place of the records, and the receiver of progress."""

    network: nn.Module
    bound: Bound
    images: Images
    folder: RunFolder
    batch_size: int
    seed: int
    report: Report

    def batches(self, count: int) -> Iterator[range]:
        """Yield the places of the first `count` images, a batch at a time."""
        for start in range(0, count, self.batch_size):
            yield range(start, min(start + self.batch_size, count))

    def journal(self, name: str, facts: dict[str, Any], columns: dict[str, tuple[type, ...]]) -> Journal:
        """Return the journal of one measurement of this network on these images."""
        about = {"network": fingerprint(self.network), "images": describe_images(self.images)["sha256"]}
        made_with = versions(torch.device("cpu"))
        del made_with["threads"]  # a resumed evaluation may have another number of them
        common = {"format": 1, "batch_size": self.batch_size, "versions": made_with}
        return Journal(self.folder.evaluation, name, {**common, **about, **facts}, columns)


@dataclass(frozen=True)
class Outcome:
    """The effect of an attack on the first N images, wrongly answered ones included (success, norm 0).

    `norm` is that of the successful perturbations in the attack's own norm, infinity elsewhere. For an attack within a
    ball, success means within eps. For one that looks for the shortest perturbation, eps is None. `zero_gradient` is
    true if an attack along the gradient found none.
    """

    attack: Attack
    eps: float | None
    success: Tensor
    norm: Tensor
    zero_gradient: Tensor

    def radii(self, evaluation: Evaluation) -> tuple[float, ...]:
        """The eps for which the outcome counts: its own, or all if the attack looked for the shortest perturbation."""
        return self.attack.radii(evaluation) if self.eps is None else (self.eps,)


Rows = dict[float, dict[str, float]]


def certify_all(target: EvaluationTarget) -> Certificates:
    """Return the certificates of all images, computed batch by batch."""
    facts = {"bound": target.bound.upper, "level": target.bound.level, "format": 2}
    journal = target.journal("certificates", facts, CERTIFICATE)

    def measure(places: range) -> list[Row]:
        images, labels = batch(target.images, places)
        found = certify(target.network, images, bound=target.bound, batch_size=target.batch_size)
        columns = (labels, found.label, found.margin.double(), found.radius.double(), found.reason)
        return _rows(places, dict(zip(CERTIFICATE, (column.tolist() for column in columns), strict=True)))

    rows = _complete(target, journal, len(target.images), measure)
    column = {name: [row[name] for row in rows] for name in CERTIFICATE}
    return Certificates(
        label=torch.tensor(column["prediction"]),
        margin=torch.tensor(column["margin"], dtype=torch.float64),
        radius=torch.tensor(column["radius"], dtype=torch.float64),
        level=target.bound.level,
        reason=np.array(column["reason"]),
    )


def certify_linearly(target: EvaluationTarget, certificates: Certificates, eps: float) -> Certificates:
    """Return the certificates, improved by linear bounds at `eps`, computed batch by batch.

    A row is the smallest lower bound of the answer's margins over the ball. It is null if the bound is not a number, or
    the answer is wrong; wrong answers are neither bounded nor attacked.
    """
    journal = target.journal(f"linear@{eps}", {"eps": eps, "level": certificates.level}, LINEAR)

    def measure(places: range) -> list[Row]:
        images, labels = batch(target.images, places)
        right = certificates.label[places.start : places.stop] == labels
        found = torch.full((len(labels),), -math.inf, dtype=torch.float64)
        if right.any():
            found[right] = linear_margins(target.network, images[right], labels[right], eps)
        return _rows(places, {"margin": [m if math.isfinite(m) else None for m in found.tolist()]})

    rows = _complete(target, journal, len(target.images), measure)
    margins = [-math.inf if row["margin"] is None else row["margin"] for row in rows]
    return certified_at(certificates, torch.tensor(margins, dtype=torch.float64), eps)


def attack_all(
    target: EvaluationTarget, certificates: Certificates, attack: Attack, eps: float | None, count: int
) -> Outcome:
    """Attack the first `count` images; raise ContradictionError if a certificate breaks."""
    label = _with_eps(attack.label, eps)
    options = attack.model_dump(mode="json", exclude={"eps", "mini"})
    facts = {"attack": options, "eps": eps, "seed": target.seed, "count": count, "library": attack.made_with()}
    facts |= {"format": 2}
    journal = target.journal(label, facts, OUTCOME)

    def measure(places: range) -> list[Row]:
        """Attack the rightly answered images; the others need no perturbation."""
        images, labels = batch(target.images, places)
        index = torch.arange(places.start, places.stop)
        right = (certificates.label[index] == labels).nonzero().flatten()
        wrong = torch.ones(len(labels), dtype=torch.bool)
        result = AttackResult(images, wrong, torch.zeros(len(labels), dtype=torch.float64), ~wrong)
        if len(right):
            margin, radius = certificates.margin[index[right]], certificates.radius[index[right]]
            known = Certified(index[right], images[right], labels[right], margin, radius)
            seed = derive_seed(target.seed, label, 0, places.start)
            found = attack.run(target.network, known.images, known.labels, eps, seed)
            network, bound, level = target.network, target.bound, certificates.level
            success = check(network, bound, level, known, found, name=label, evidence=target.folder.evidence)
            result = result.replaced(right, replace(found, success=success))
        lengths = norms(result.adversarial.double() - images.double())
        fooled = result.success.tolist()
        norm, l2 = ([x if y else None for x, y in zip(v.tolist(), fooled, strict=True)] for v in (result.norm, lengths))
        return _rows(places, dict(zip(OUTCOME, (fooled, norm, l2, result.zero_gradient.tolist()), strict=True)))

    def consistent(row: Row) -> bool:
        i, length = row["index"], row["l2"]
        right = certificates.label[i] == target.images.labels[i]
        return not (right and row["success"] and length is not None and length < certificates.radius[i])

    rows = _complete(target, journal, count, measure, usable=consistent)
    norm = [torch.inf if row["norm"] is None else row["norm"] for row in rows]
    success, flat = (torch.tensor([row[key] for row in rows]) for key in ("success", "zero_gradient"))
    if flat.any():
        what = "%s found no gradient at %d of %d images (zero or not finite): of these it says nothing, square would"
        logger.warning(what, label, int(flat.sum()), count)
    return Outcome(attack, eps, success, torch.tensor(norm, dtype=torch.float64), flat)


def mean_loss(target: EvaluationTarget, loss: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Return the loss averaged over all images."""
    total = 0.0
    with torch.no_grad():
        for places in target.batches(len(target.images)):
            images, labels = batch(target.images, places)
            total += float(loss(target.network(images), labels)) * len(labels)
    return total / len(target.images)


def _complete(
    target: EvaluationTarget,
    journal: Journal,
    count: int,
    measure: Callable[[range], list[Row]],
    usable: Callable[[Row], bool] = lambda row: True,
) -> list[Row]:
    """Return the rows of the first `count` images; whole batches come from the journal if it has them."""
    rows = {index: row for index, row in journal.read().items() if 0 <= index < count and usable(row)}
    for places in target.batches(count):
        if not all(index in rows for index in places):
            found = measure(places)
            journal.append(found)
            rows |= {row["index"]: row for row in found}
        target.report(journal.name, places.stop, count)
    return [rows[index] for index in range(count)]


def _rows(places: range, columns: Mapping[str, Sequence[Any]]) -> list[Row]:
    """The rows of images from columns."""
    named = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    return [{"index": index, **row} for index, row in zip(places, named, strict=True)]


def columns(
    certificates: Certificates, labels: Tensor, outcomes: Sequence[Outcome], evaluation: Evaluation
) -> dict[str, list[Any]]:
    """Return one row per image as columns: index, label, prediction, margin, radius, reason. Each attack adds `NAME
    success` and `NAME norm`, null if it was not run or did not succeed."""
    table: dict[str, list[Any]] = {
        "index": list(range(len(labels))),
        "label": labels.tolist(),
        "prediction": certificates.label.tolist(),
        "margin": certificates.margin.tolist(),
        "radius": certificates.radius.tolist(),
        "reason": certificates.reason.tolist(),
    }
    for outcome in outcomes:
        rest = [None] * (len(labels) - len(outcome.success))
        name = _with_eps(evaluation.column(outcome.attack), outcome.eps)
        table[f"{name} success"] = outcome.success.tolist() + rest
        table[f"{name} norm"] = [n if n < torch.inf else None for n in outcome.norm.tolist()] + rest
    return table


def _with_eps(name: str, eps: float | None) -> str:
    return name if eps is None else f"{name}@{eps}"


def accuracies(
    certificates: Certificates, labels: Tensor, outcomes: Sequence[Outcome], evaluation: Evaluation, *, pixels: int
) -> dict[str, Rows]:
    """Return section -> eps -> key -> value; `pixels` is the number of values of an image."""
    found: dict[str, Rows] = {"adv_robustness": {}}
    for norm, mini in product(("l2", "linf"), (False, True)):
        chosen = [outcome for outcome in outcomes if outcome.attack.place == (norm, mini)]
        count = min(evaluation.mini_test_size, len(labels)) if mini else len(labels)
        everywhere = evaluation.eps if norm == "l2" and not mini else ()
        rows: Rows = {}
        for eps in dict.fromkeys([*everywhere, *(eps for o in chosen for eps in o.radii(evaluation))]):
            row = _certified(certificates, labels, eps, math.sqrt(pixels) if norm == "linf" else 1.0, count)
            for outcome in chosen:
                if eps in outcome.radii(evaluation):
                    row |= _under_attack(outcome, eps, evaluation.key(outcome.attack))
            rows[eps] = row
        if rows:
            section = "adv_robustness" + ("_linf" if norm == "linf" else "") + ("_mini_eval" if mini else "")
            found[section] = rows
    return found


def _certified(certificates: Certificates, labels: Tensor, eps: float, factor: float, count: int) -> dict[str, float]:
    parts = {name: getattr(certificates, name)[:count] for name in ("label", "margin", "radius", "reason")}
    part = Certificates(**parts, level=certificates.level)
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
