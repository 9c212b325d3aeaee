"""What is measured of a classifier, and the cell of it over the seeds of a group."""

from dataclasses import dataclass

from lconvnet.report import names
from lconvnet.report.cells import Cell, Side, summarize
from lconvnet.report.fills import to_measure
from lconvnet.report.groups import Group
from lconvnet.report.results import Results

MINI_MARK = "*"
MINI_NOTE = f"{MINI_MARK} on the first test images only (adv_robustness_mini_eval; the original: 100)"
PERCENT = 100.0


@dataclass(frozen=True)
class Measure:
    """A key of results.yaml; `mini` where only the first test images were used."""

    label: str
    key: str
    mini: bool = False

    @property
    def side(self) -> Side:
        """To which side it is rounded: certified accuracy is a lower bound of the robust one, an attack's an upper."""
        return "down" if self.key == "lb" else "up" if self.key.endswith("-ub") else "nearest"

    def value(self, results: Results, eps: float, norm: str = "l2") -> float | None:
        """Return the percentage, or None where it was not measured."""
        at_eps = results.at(eps, norm=norm, mini=self.mini)
        found = results.accuracy if self.key == "accuracy" else at_eps.get(self.key)
        return None if found is None else found * PERCENT


CLEAN = Measure("Clean", "accuracy")
CERTIFIED = Measure("Provable", "lb")
MINI_CLEAN = Measure(f"Clean{MINI_MARK}", "natural", mini=True)
MINI_CERTIFIED = Measure(f"Provable{MINI_MARK}", "lb", mini=True)


def attack(key: str, *, mini: bool) -> Measure:
    """Return the measure of an attack's key.

    >>> attack("pointwise-ub", mini=True).label
    'Pointwise*'
    """
    return Measure(names.attack_label(key) + (MINI_MARK if mini else ""), key, mini)


FOUR_ATTACKS = (
    attack("pgd-ub", mini=False),
    attack("fgsm-ub", mini=False),
    attack("boundary_attack-ub", mini=True),
    attack("pointwise-ub", mini=True),
)


def cell(found: Group, measure: Measure, eps: float, root: str, norm: str = "l2") -> Cell:
    """Return the mean over the seeds that were measured; missing where none was, or where an attack was set
    differently in some."""
    measured = [(run, measure.value(run.results, eps, norm)) for run in found.runs]
    name = measure.key.removesuffix("-ub")
    settings = {run.attacks.get(name) for run, value in measured if value is not None}
    if measure.key.endswith("-ub") and len(settings) > 1:
        where = ", ".join(f"{root}/{run.path}" for run, value in measured if value is not None)
        return Cell(fill=f"{name} was set differently in these runs; lconvnet evaluate each with the same: {where}")
    values = [value for _, value in measured if value is not None]
    if values or norm != "l2":
        return summarize(values, measure.side)
    return Cell(fill=to_measure(found, measure.key, eps, root, mini=measure.mini))
