"""Every run below a folder: each results.yaml, validated, and all of them as one tidy data frame.

For each radius, `lb` is the certified accuracy, `NAME-ub` the accuracy under an attack, `natural` the clean accuracy. A
file that violates lb <= NAME-ub <= natural contradicts itself and is refused. So are numbers that are not finite, and
accuracies outside [0, 1].
"""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lconvnet.experiments.reading import read
from lconvnet.report import labels
from lconvnet.report.facts import Facts, Recipe, describe, facts_of, variants, with_setting
from lconvnet.visible import walk

if TYPE_CHECKING:
    from pandas import DataFrame

logger = logging.getLogger("lconvnet")

NAME = "results.yaml"
TRAINED = {"record.json", "model.safetensors"}
ROUNDING = 1e-6  # accuracies in some files are float32 means
NORMS = ("l2", "linf")
# Norm of eps, and whether only the first test images were used → key of results.yaml.
SECTIONS = {
    (norm, mini): f"adv_robustness{'' if norm == 'l2' else '_linf'}{'_mini_eval' if mini else ''}"
    for norm in NORMS
    for mini in (False, True)
}
CHECKS = "sanity_check/"
L_CONSTANT = f"{CHECKS}layer-l-constant"
W1, W1_OVER_L = "W1", "W1/L"


class Measurement(NamedTuple):
    """A number of a results.yaml: its measure, its attack, and its radius with the norm (None and l2 without a radius);
    `mini` if only the first test images were used."""

    measure: str
    value: float
    attack: str = ""
    eps: float | None = None
    norm: str = "l2"
    mini: bool = False

    @property
    def place(self) -> tuple[str, ...]:
        """The keys of the number in a results.yaml.

        >>> Measurement("ub", 0.5, "pgd", 1.58, mini=True).place
        ('adv_robustness_mini_eval', '1.58', 'pgd-ub')
        """
        above = () if self.eps is None else (SECTIONS[self.norm, self.mini], f"{self.eps:.10g}")
        return (*above, f"{self.attack}-{self.measure}" if self.attack else self.measure)


@dataclass(frozen=True)
class Run:
    """One run: its folder relative to the one that was read, its facts, its measurements, its attacks' settings."""

    path: str
    facts: Facts
    measurements: tuple[Measurement, ...]
    attacks: Mapping[str, Recipe]


@dataclass(frozen=True)
class Skipped:
    """A results.yaml that was not used."""

    path: str
    reason: str


@dataclass(frozen=True)
class Found:
    """The runs of a folder, sorted by path; `unmeasured` are trained networks without results.yaml."""

    folder: Path
    runs: tuple[Run, ...]
    skipped: tuple[Skipped, ...]
    unmeasured: tuple[str, ...] = ()

    def report_skipped(self) -> None:
        """Warn about every file that was not used."""
        for skipped in self.skipped:
            logger.warning("not used: %s: %s", self.folder / skipped.path, skipped.reason)


def find_runs(folder: str | Path) -> Found:
    """Return the runs below `folder`; a corrupt one is skipped with its reason, and the others are used.

    results-1.yaml and so on are older evaluations and are not read. Links to folders are not followed. Raises
    ValueError if there is no such folder, or no usable run below it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; name one with {NAME} files below it, such as runs")
    skipped: list[Skipped] = []
    runs: dict[Facts, Run] = {}

    def note(error: OSError) -> None:
        path = Path(error.filename or folder)
        skipped.append(Skipped(path.relative_to(folder).as_posix(), f"it cannot be read ({error.strerror})"))

    held = {place: {path.name for path in files} for place, _, files in walk(folder, onerror=note)}
    for path in sorted(place / NAME for place, names in held.items() if NAME in names):
        run = _read_run(path, folder)
        if isinstance(run, Run) and run.facts in runs:
            run = Skipped(run.path, f"the same experiment and seed as {runs[run.facts].path}, which is used")
        if isinstance(run, Run):
            runs[run.facts] = run
        else:
            skipped.append(run)
    if not runs:
        reasons = f": {skipped[0].path}: {skipped[0].reason}" if skipped else "; evaluate a run: lconvnet evaluate RUN"
        raise ValueError(f"{folder} holds no usable {NAME}{reasons}")
    fresh = [place for place, names in held.items() if names >= TRAINED and NAME not in names]
    unmeasured = tuple(sorted(_text(place.relative_to(folder)) for place in fresh))
    return Found(folder, tuple(runs.values()), tuple(sorted(skipped, key=lambda item: item.path)), unmeasured)


def measurements(runs: Iterable[Run]) -> DataFrame:
    """Return all measurements as one tidy frame: one row per run, measure, eps and attack.

    Columns: `run` (its path), the facts of the run, `recipe` (its differences from the paper's as in labels) and
    `recipe_in_full`, then `measure` (for an attack: ub, ub-dist, …), `value` (accuracies are fractions), `attack`,
    `eps` (0 without a radius; radii within 1e-6 are equal), `norm`, `mini`, and `settings` of the attack. A critic has
    `W1` and `W1/L` among its measures. Repetitions of an experiment differ only in `run` and `trial`.
    """
    import pandas as pd  # takes a third of a second, so only the commands that use it import it

    ordered = sorted(runs, key=lambda run: (run.facts.trial, run.path))
    named = variants({replace(run.facts, trial="") for run in ordered})
    order = sorted(named, key=lambda facts: (repr(named[facts].shown), repr(facts)))
    place = {facts: number for number, facts in enumerate(order)}
    rows = []
    for run in sorted(ordered, key=lambda run: place[replace(run.facts, trial="")]):
        variant = named[replace(run.facts, trial="")]
        names = {"recipe": describe(variant.shown), "recipe_in_full": describe(variant.full)}
        for found in (*run.measurements, *_distances(run)):
            settings = run.attacks.get(found.attack, ())
            rows.append({"run": run.path, **vars(run.facts), **names, **found._asdict(), "settings": settings})
    facts = [field.name for field in fields(Facts)]
    columns = ["run", *facts, "recipe_in_full", *Measurement._fields, "settings"]
    frame = pd.DataFrame(rows, columns=columns).astype({"eps": float, "learning_rate": float}).fillna({"eps": 0.0})
    one: dict[float, float] = {}
    for eps in (0.0, *labels.EPS.values(), *labels.OTHER_EPS.values(), *sorted(set(frame["eps"]))):
        one[eps] = next((first for first in one.values() if labels.same_eps(eps, first)), eps)
    return frame.assign(eps=[one[eps] for eps in frame["eps"]])


def parse_results(values: Mapping[str, Any]) -> tuple[Measurement, ...]:
    """Return the numbers in the nested values of a results.yaml; a ValueError names the faulty key.

    >>> parse_results({"loss": 0.5, "adv_robustness": {0.3: {"lb": 0.25}}})[1]
    Measurement(measure='lb', value=0.25, attack='', eps=0.3, norm='l2', mini=False)
    """
    if "loss" not in values:
        raise ValueError(f"it has no loss and is not a results file; its keys: {', '.join(list(values)[:5]) or 'none'}")
    checks = [key for key in values if str(key).startswith(CHECKS)]
    keys = dict.fromkeys(("accuracy", "loss", L_CONSTANT, *checks))
    whole = [Measurement(key, _number(key, values[key], key)) for key in keys if key in values]
    if values.get(L_CONSTANT) == 0:
        raise ValueError(f"{L_CONSTANT} is 0; a Lipschitz bound is positive")
    return (*whole, *itertools.chain.from_iterable(_section(place, values) for place in SECTIONS))


def _section(place: tuple[str, bool], values: Mapping[str, Any]) -> Iterator[Measurement]:
    section = SECTIONS[place]
    radii = values.get(section, {})
    if not isinstance(radii, Mapping):
        raise ValueError(f"{section} is {_short(radii)}; it should map each eps to what was measured there")
    rows = {_number(f"an eps of {section}", eps, "eps"): _row(f"{section} {eps}", row) for eps, row in radii.items()}
    known = sorted(rows)
    if any(labels.same_eps(a, b) for a, b in itertools.pairwise(known)):
        raise ValueError(f"{section} has the same eps twice: {', '.join(map(str, known))}")
    for eps, row in rows.items():
        for key, value in row.items():
            attack, found, rest = key.rpartition("-ub")
            yield Measurement(f"ub{rest}" if found else key, value, attack, eps, *place)


def _row(where: str, values: Any) -> Mapping[str, float]:
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise ValueError(f"{where} is {_short(values)}; it should map names such as lb to numbers")
    row = {key: _number(f"{where}: {key}", value, key) for key, value in values.items()}
    for key in filter(lambda key: key.endswith("-ub"), row):
        # Certified and attacked can never both hold, and an attack cannot raise the accuracy.
        for low, high in (("lb", key), (key, "natural")):
            if row.get(low, 0.0) > row.get(high, 1.0) + ROUNDING:
                raise ValueError(f"{where}: {low} is {row[low]} and {high} is {row[high]}; they contradict each other")
    return row


def _number(name: str, value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
        raise ValueError(f"{name} is {_short(value)}; it should be a finite number")
    low = -math.inf if key == "loss" else 0.0
    fraction = key in ("accuracy", "lb", "natural") or key.endswith(("-ub", "-success-rate"))
    high = 1.0 if fraction else math.inf
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; it should lie between {low:g} and {high:g}")
    return float(value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _distances(run: Run) -> Iterator[Measurement]:
    """The measures of a critic: its value is minus its loss."""
    found = {known.measure: known.value for known in run.measurements if known.eps is None}
    if run.facts.task == "wasserstein":
        yield Measurement(W1, -found["loss"])
        if L_CONSTANT in found:
            yield Measurement(W1_OVER_L, -found["loss"] / found[L_CONSTANT])


def _read_run(path: Path, folder: Path) -> Run | Skipped:
    """Read one run, or return the reason why it is skipped."""
    try:
        values = read(path)
        found = parse_results(values)
        facts, attacks = facts_of(path.parent, values.get("evaluation"))
        if facts.task == "robustness" and found[0].measure != "accuracy":
            raise ValueError("it has no accuracy, which every classifier has")
        if values.get("finished") is False:  # a stopped run is another experiment than a finished one
            facts = with_setting(facts, "finished", False)
        return Run(_text(path.parent.relative_to(folder)), facts, found, attacks)
    except OSError as error:
        reason = f"it cannot be read ({error.strerror})"
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:
        reason = " ".join(str(error).replace(f"{path} ", "it ").replace(f"{path.parent}/", "").split())
    return Skipped(_text(path.relative_to(folder)), reason)


def _text(path: Path) -> str:
    """A path as printable text, for any bytes in its name."""
    return os.fsencode(path.as_posix()).decode("utf-8", "replace")
