"""The content of a results.yaml, validated: every number finite, every accuracy in [0, 1], no certificate above an
attack.

For each radius, `lb` is the certified accuracy, `NAME-ub` the accuracy under an attack, `natural` the clean accuracy;
a file in which lb <= NAME-ub <= natural does not hold contradicts itself and is refused.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lconvnet.report.names import same_eps

ROUNDING = 1e-6  # accuracies of some files are float32 means
NORMS = ("l2", "linf")
# Norm of eps, and whether only the first test images were used → key of results.yaml.
SECTIONS = {
    (norm, mini): f"adv_robustness{'' if norm == 'l2' else '_linf'}{'_mini_eval' if mini else ''}"
    for norm in NORMS
    for mini in (False, True)
}
L_CONSTANT = "sanity_check/layer-l-constant"

Radii = Mapping[float, Mapping[str, float]]


@dataclass(frozen=True)
class Results:
    """What was measured: `rows` by norm and by whether only the first test images were used (eps → key → value).

    `accuracy` is None for a critic; `lipschitz` is the network's bound, where the file has one.
    """

    loss: float
    accuracy: float | None
    lipschitz: float | None
    norms: Mapping[str, float]
    rows: Mapping[tuple[str, bool], Radii]
    finished: bool = True

    def at(self, eps: float, *, norm: str = "l2", mini: bool = False) -> Mapping[str, float]:
        """Return what was measured at a radius, {} where nothing was."""
        return next((row for known, row in self.rows[norm, mini].items() if same_eps(known, eps)), {})


def parse_results(values: Mapping[str, Any]) -> Results:
    """Return the results in the nested values of a results.yaml; ValueError names the key that is wrong.

    >>> parse_results({"loss": 0.5, "accuracy": 0.75, "adv_robustness": {0.3: {"lb": 0.25}}}).at(0.3)
    {'lb': 0.25}
    """
    if "loss" not in values:
        raise ValueError(f"it has no loss and is no results file; its keys: {', '.join(list(values)[:5]) or 'none'}")
    norms = {key: _number(key, value, low=0.0) for key, value in values.items() if key.startswith("sanity_check/")}
    lipschitz = norms.pop(L_CONSTANT, None)
    if lipschitz == 0.0:
        raise ValueError(f"{L_CONSTANT} is 0; a Lipschitz bound is positive")
    return Results(
        loss=_number("loss", values["loss"]),
        accuracy=_number("accuracy", values["accuracy"], low=0.0, high=1.0) if "accuracy" in values else None,
        lipschitz=lipschitz,
        norms=norms,
        rows={place: _radii(section, values.get(section, {})) for place, section in SECTIONS.items()},
        finished=values.get("finished") is not False,
    )


def _radii(section: str, values: Any) -> Radii:
    if not isinstance(values, Mapping):
        raise ValueError(f"{section} is {_short(values)}; it should map each eps to what was measured there")
    rows = {_number(f"an eps of {section}", eps, low=0.0): _row(f"{section} {eps}", row) for eps, row in values.items()}
    radii = sorted(rows)
    if any(same_eps(a, b) for a, b in itertools.pairwise(radii)):
        raise ValueError(f"{section} has the same eps twice: {', '.join(map(str, radii))}")
    return rows


def _row(where: str, values: Any) -> Mapping[str, float]:
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise ValueError(f"{where} is {_short(values)}; it should map names such as lb to numbers")
    row = {key: _number(f"{where}: {key}", value, low=0.0, high=_highest(key)) for key, value in values.items()}
    for key in row:
        if key.endswith("-ub"):
            _check_order(where, row, key)
    return row


def _check_order(where: str, row: Mapping[str, float], key: str) -> None:
    """Certified and attacked can never both hold; an attack does not raise the accuracy."""
    for low, high in (("lb", key), (key, "natural")):
        if row.get(low, 0.0) > row.get(high, 1.0) + ROUNDING:
            raise ValueError(f"{where}: {low} is {row[low]} and {high} is {row[high]}; they contradict each other")


def _highest(key: str) -> float:
    return 1.0 if key in ("lb", "natural") or key.endswith(("-ub", "-success-rate")) else math.inf


def _number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
        raise ValueError(f"{name} is {_short(value)}; it should be a finite number")
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; it should lie between {low:g} and {high:g}")
    return float(value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
