"""Table 4: lower bounds on the Wasserstein-1 distance between images and a generator's samples.

A critic's value is minus its loss. It is a lower bound only after division by the critic's Lipschitz constant L
(`sanity_check/layer-l-constant`); both are shown. Each cell is at the learning rate with the largest mean of W1/L: the
largest W1 itself would choose critics that diverged, with L up to 1e11. The held-out samples that choose the rate are
those of the number shown, for the original's files hold no other: a cell that chose among several leans upward.
"""

from collections.abc import Callable, Sequence

from lconvnet.report import names
from lconvnet.report.cells import Cell, Row, Table, summarize
from lconvnet.report.fills import to_train_critic
from lconvnet.report.groups import Group, recipe_note
from lconvnet.report.results import Results

METHODS = ("OSSN", "RKO", "BCOP")
BIAS = "chosen by the numbers shown themselves, which lean upward where several rates were tried"


def table(number: str, data: str, groups: Sequence[Group]) -> Table:
    """Return the table of one data set, by method and activation."""
    critics = [g for g in groups if g.facts.task == "wasserstein" and g.facts.data == data]
    columns = [(method, text) for method in METHODS for text in _variants(method, critics)]
    labels = tuple(f"{method} ({text})" if text else method for method, text in columns)
    rows, notes, recipes = [], [], dict[str, None]()
    for activation in names.ACTIVATIONS.values():
        sweeps = [_sweep(critics, *column, activation) for column in columns]
        chosen = [max(sweep, key=_mean_certified, default=None) for sweep in sweeps]
        fills = [to_train_critic(data, method, activation) for method, _ in columns]
        for label, measure in (("W1", distance), ("W1/L", certified_distance)):
            cells = tuple(_cell(g, measure, fill) for g, fill in zip(chosen, fills, strict=True))
            rows.append(Row(f"{names.data_label(data)}, {activation}", label, cells))
        found = [(label, g) for label, g in zip(labels, chosen, strict=True) if g is not None]
        notes += [_rate(activation, label, g) for label, g in found]
        recipes.update(dict.fromkeys(text for label, g in found if (text := recipe_note(label, g))))
    title = f"Lower bound on the Wasserstein distance, {names.data_label(data)}"
    note = f"at the learning rate with the largest mean of W1/L ({BIAS}): {', '.join(notes)}"
    return Table(number, title, labels, tuple(rows), notes=(note, *recipes))


def distance(results: Results) -> float:
    """Return W1, the critic's value on the test samples."""
    return -results.loss


def certified_distance(results: Results) -> float | None:
    """Return W1/L, which is a lower bound whatever L is; None where L was not measured."""
    return None if results.lipschitz is None else -results.loss / results.lipschitz


def _variants(method: str, critics: Sequence[Group]) -> list[str]:
    return sorted({"", *(g.variant.text for g in critics if g.facts.method == method)})


def _sweep(critics: Sequence[Group], method: str, text: str, activation: str) -> list[Group]:
    """The groups of one experiment at each learning rate, those that have W1/L."""
    wanted = (method, activation, text)
    found = [g for g in critics if (g.facts.method, g.facts.activation, g.variant.text) == wanted]
    return [g for g in found if _certified(g)]


def _certified(found: Group) -> list[float]:
    values = [certified_distance(run.results) for run in found.runs]
    return [value for value in values if value is not None]


def _mean_certified(found: Group) -> float:
    values = _certified(found)
    return sum(values) / len(values)


def _cell(found: Group | None, measure: Callable[[Results], float | None], fill: str) -> Cell:
    if found is None:
        return Cell(fill=fill)
    return summarize((value for run in found.runs if (value := measure(run.results)) is not None), "down")


def _rate(activation: str, label: str, found: Group) -> str:
    return f"{activation} {label} {found.facts.learning_rate:g}"
