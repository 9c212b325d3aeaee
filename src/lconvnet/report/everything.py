"""Table 9: every attack on every network, by data set, radius (l2 unless another norm is named) and architecture.

Provable <= attacked <= clean holds in every row (each results.yaml is refused where it does not).
"""

from collections.abc import Sequence

from lconvnet.report import names
from lconvnet.report.cells import Row, Table
from lconvnet.report.groups import Group, recipe_note
from lconvnet.report.measures import (
    CERTIFIED,
    CLEAN,
    MINI_CERTIFIED,
    MINI_CLEAN,
    MINI_NOTE,
    Measure,
    attack,
    cell,
)
from lconvnet.report.results import NORMS, Radii, Results

BASELINE_BLOCK = "published networks"
METHODS = (*names.CONVS.values(), *names.LINEARS.values(), *names.BASELINES.values())
ARCHITECTURES = ("FC-3", "Small", "Large")


def table(number: str, groups: Sequence[Group], root: str) -> Table:
    """Return the table of all attacks there are; a network that was never attacked is listed at all its radii."""
    classifiers = sorted((g for g in groups if g.facts.task == "robustness"), key=_order)
    full, mini = _attacks(classifiers, mini=False), _attacks(classifiers, mini=True)
    measures = (CLEAN, CERTIFIED, *full, *((MINI_CLEAN, MINI_CERTIFIED, *mini) if mini else ()))
    lines = [(_block(g, eps, norm), g, eps, norm) for norm in NORMS for g in classifiers for eps in _radii(g, norm)]
    blocks = dict.fromkeys(block for block, *_ in lines)
    rows = [_row(*line, measures, root) for known in blocks for line in lines if line[0] == known]
    labels = tuple(measure.label for measure in measures)
    notes = (*((MINI_NOTE,) if mini else ()), *filter(None, (recipe_note(_label(g), g) for g in classifiers)))
    return Table(number, "Every attack: remaining accuracy (%)", labels, tuple(rows), "column", tuple(notes))


def _row(block: str, found: Group, eps: float, norm: str, measures: Sequence[Measure], root: str) -> Row:
    return Row(block, _label(found), tuple(cell(found, measure, eps, root, norm) for measure in measures))


def _attacks(groups: Sequence[Group], *, mini: bool) -> list[Measure]:
    """Every attack that was measured, the paper's first."""
    sections = [run.results.rows[norm, mini] for norm in NORMS for g in groups for run in g.runs]
    rows = [row for section in sections for row in section.values()]
    keys = {key for row in rows for key in row if key.endswith("-ub")}
    known = list(names.ATTACKS)
    order = {
        key: (known.index(name) if (name := key.removesuffix("-ub")) in known else len(known), key) for key in keys
    }
    return [attack(key, mini=mini) for key in sorted(keys, key=order.__getitem__)]


def _radii(found: Group, norm: str) -> list[float]:
    """The radii at which the group was attacked, or else all that it has."""
    sections = [section for run in found.runs for section in _sections(run.results, norm)]
    attacked = [eps for rows in sections for eps, row in rows.items() if any(key.endswith("-ub") for key in row)]
    return names.distinct_eps(attacked or [eps for rows in sections for eps in rows])


def _sections(results: Results, norm: str) -> tuple[Radii, Radii]:
    return results.rows[norm, False], results.rows[norm, True]


def _block(found: Group, eps: float, norm: str) -> str:
    facts = found.facts
    group = BASELINE_BLOCK if facts.method in names.BASELINES.values() else facts.architecture
    return (
        f"{names.data_label(facts.data)} (ε = {names.eps_label(eps)}{'' if norm == 'l2' else f' in {norm}'}), {group}"
    )


def _label(found: Group) -> str:
    facts, text = found.facts, found.variant.text
    named = facts.method in (*names.BASELINES.values(), "Orthogonal")
    name = names.network_label(facts.method, facts.architecture if named else "")
    return f"{name} ({text})" if text else name


def _order(found: Group) -> tuple[object, ...]:
    facts = found.facts
    return (
        _place(list(names.DATA), facts.data),
        facts.method in names.BASELINES.values(),
        _place(ARCHITECTURES, facts.architecture),
        _place(METHODS, facts.method),
        found.variant.text,
    )


def _place(known: Sequence[str], name: str) -> tuple[int, str]:
    return (known.index(name) if name in known else len(known), name)
