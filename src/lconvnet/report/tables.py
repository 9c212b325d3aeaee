"""All tables, as pivots of the frame of all measurements.

Tables 1 to 4 follow the published numbers of the paper (Li et al. 2019); the numbers 7 to 9 are assigned by content.

* 1: clean and provably robust accuracy of four methods    * 7: the same of all six methods
* 2: BCOP against FC-3 and published baselines             * 8: provable accuracy at the other radii
* 3: accuracy under attacks of the same networks           * 9: every attack on every network
* 4a, 4b: lower bounds on the Wasserstein distance, STL-10 and CIFAR-10

Accuracies are percentages. The mean is over seeds, the deviation is the population's. Runs with another recipe than the
paper's have their own columns. To add a row or column, add a `Line` to a table below.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from shlex import quote
from typing import Any

from lconvnet.report import labels
from lconvnet.report.facts import Facts, name_of_facts
from lconvnet.report.rendering import Cell, Row, Table, summarize, with_best, without_empty
from lconvnet.report.runs import NORMS, W1, W1_OVER_L, Run, measurements

Frame = Any  # a pandas.DataFrame, whose own annotations are too vague about its columns for checks
Key = tuple[Any, ...]
PAPER_METHODS = ("OSSN", "RKO", "SVCM", "BCOP")
ALL_METHODS = ("OSSN", "RKO", "SVCM", "RK-L2NE", "BCOP-Fixed", "BCOP")
CRITIC_METHODS = ("OSSN", "RKO", "BCOP")
CRITIC_RATES = {"MaxMin": 0.0001, "ReLU": 0.001}  # the published ones
NETWORK = ("data", "architecture", "method", "recipe")  # tells experiments with classifiers apart
CRITIC = (*NETWORK, "activation")  # tells experiments with critics apart, except for the learning rate
DISTANCES = (W1, W1_OVER_L)
MEASURE = ("measure", "attack", "eps", "norm", "mini")

MINI_MARK = "*"
MINI_NOTE = f"{MINI_MARK} on the first test images only (adv_robustness_mini_eval; the original: 100)"
BIAS = "chosen by the numbers shown themselves, which lean upward where several rates were tried"
PERCENT = 100.0
OWN_CERTIFICATE = (
    "no command: these published networks are certified by a method of their own, which results.yaml does not hold"
)
NO_EVALUATION = "no command evaluates these published networks"
PUBLISHED = (
    "no command trains these published networks; put their weights into {0} and run lconvnet evaluate {0}, or put "
    "their results.yaml there"
)


# The order of rows in the table of all attacks.
ARCHITECTURES = ("FC-3", "Small", "Large")
METHODS = (*labels.CONVS.values(), *labels.LINEARS.values(), *labels.PUBLISHED)


@dataclass(frozen=True)
class Line:
    """A row or column to fill: its label (below the row's `block`), and the part of the frame that it shows."""

    label: str
    at: Mapping[str, Any]
    block: str = ""


def measure(label: str, key: str, *, attack: str = "", mini: bool = False) -> Line:
    """Return the line of a measure; `mini` restricts it to the first test images."""
    return Line(label + (MINI_MARK if mini else ""), {"measure": key, "attack": attack, "mini": mini})


def attack(name: str, *, mini: bool = False) -> Line:
    """Return the line of an attack.

    >>> attack("pointwise", mini=True).label
    'Pointwise*'
    """
    return measure(labels.attack_label(name), "ub", attack=name, mini=mini)


WHOLE = {"attack": "", "mini": False, "eps": 0.0, "norm": "l2"}  # of measures without a radius
CLEAN = Line("Clean", {"measure": "accuracy", **WHOLE})
CERTIFIED = measure("Provable", "lb")
MINI_CLEAN, MINI_CERTIFIED = measure("Clean", "natural", mini=True), measure("Provable", "lb", mini=True)
ROBUST = (CLEAN, replace(CERTIFIED, label="Robust"))
FOUR_ATTACKS = (
    attack("pgd"),
    attack("fgsm"),
    attack("boundary_attack", mini=True),
    attack("pointwise", mini=True),
)


def tables(runs: Iterable[Run], root: str = "runs") -> tuple[Table, ...]:
    """Return every table that has at least one value; `root` is the folder of the runs, for commands."""
    runs = tuple(runs)
    if not runs:
        return ()
    frame: Frame = measurements(runs)
    classifiers = Averages(frame[frame["task"] == "robustness"], root)
    table, small_and_large = classifiers.table, ("Small", "Large")
    rows = [row for data in labels.EPS for name in small_and_large for row in _rows(data, ROBUST, architecture=name)]
    robust = [row for data in labels.EPS for row in _rows(data, ROBUST)]
    attacked = [row for data in labels.EPS for row in _rows(data, (CLEAN, CERTIFIED, *FOUR_ATTACKS))]
    other = [row for data in labels.OTHER_EPS for row in _rows(data, (CERTIFIED,), radii=labels.OTHER_EPS)]
    large, small, dense = _networks("BCOP Large", "BCOP Small", "Orthogonal FC-3")
    published = _networks("KW Small", "KW Large", "QW Model-3", "QW Model-4")
    each = _networks(*(f"{method} {name}" for name in small_and_large for method in ALL_METHODS))
    four, six = _networks(*PAPER_METHODS), _networks(*ALL_METHODS)
    found = (
        table("1", "Clean and provably robust accuracy (%)", rows, four),
        table("2", "BCOP against FC-3 and published networks, accuracy (%)", robust, [large, dense, *published]),
        table("3", "Accuracy under attack (%)", attacked, [large, small, dense, *published], MINI_NOTE),
        critic_table("4a", "stl10", frame, root),
        critic_table("4b", "cifar10", frame, root),
        table("7", "Clean and provably robust accuracy (%), all methods", rows, six),
        without_empty(table("8", "Provable accuracy at other radii (%)", other, [dense, *each])),
        attack_table("9", classifiers),
    )
    return tuple(with_best(table) for table in found if not table.empty)


@dataclass(frozen=True)
class Averages:
    """The means over seeds of a frame of runs below `root`; the columns `network` tell its experiments apart."""

    frame: Frame
    root: str
    network: Sequence[str] = NETWORK

    @cached_property
    def experiments(self) -> Mapping[Key, Frame]:
        """The rows of each experiment."""
        return dict(iter(self.frame.groupby([*self.network], sort=False)))

    @property
    def each(self) -> list[dict[str, Any]]:
        """The first row of each experiment."""
        return [found.iloc[0].to_dict() for found in self.experiments.values()]

    @cached_property
    def cells(self) -> Mapping[Key, Cell]:
        """The mean over seeds of each accuracy and distance of each experiment."""
        shown = self.frame[self.frame["measure"].isin(["accuracy", "natural", "lb", "ub", *DISTANCES])]
        keys = [*self.network, *MEASURE]
        groups = shown.groupby(keys, sort=False)
        return {key: self._cell(found, dict(zip(keys, key, strict=True))) for key, found in groups}

    def table(
        self, number: str, title: str, rows: Sequence[Line], columns: Sequence[Mapping[str, str]], *notes: str
    ) -> Table:
        """Return a table of these rows; the columns of other recipes follow the column of the same network."""
        given = [key for key in ("data", "architecture") if key in rows[0].at]
        concerned = [found for found in self.each if all(any(row.at[k] == found[k] for row in rows) for k in given)]
        wide = [
            Line(labels.network_label(**column, recipe=recipe), {**column, "recipe": recipe})
            for column in columns
            for recipe in dict.fromkeys(["", *(found["recipe"] for found in concerned if _fits(found, column))])
        ]
        recipes = (_recipe_note(line.label, found) for line in wide for found in concerned if _fits(found, line.at))
        unique = dict.fromkeys(filter(None, recipes))
        return Table(number, title, tuple(line.label for line in wide), self.pivot(rows, wide), notes=(*unique, *notes))

    def pivot(self, rows: Sequence[Line], columns: Sequence[Line]) -> tuple[Row, ...]:
        """Return the rows of a table, with one cell per row and column; it may be missing."""
        keys, filled = (*self.network, *MEASURE), []
        for row in rows:
            places = [{**row.at, **column.at} for column in columns]
            cells = (self.cells.get(tuple(at[key] for key in keys)) or self.missing_cell(at) for at in places)
            filled.append(Row(row.block, row.label, tuple(cells)))
        return tuple(filled)

    def missing_cell(self, at: Mapping[str, Any]) -> Cell:
        """Return a cell with its remedy: the command that trains and evaluates the run, or evaluates it again. Commands
        are suggested only for the paper's cells, and for runs that exist."""
        found = self.experiments.get(tuple(at[key] for key in self.network))
        if at["norm"] != "l2" or (found is None and at["recipe"]):
            return Cell()
        if found is not None and found["specified"].iloc[0]:
            return Cell(fill=self._to_measure(found, at))
        if found is not None and at["method"] in labels.PUBLISHED:
            return Cell(fill=OWN_CERTIFICATE if at["measure"] == "lb" else NO_EVALUATION)
        facts = Facts("robustness", at["data"], at["architecture"], at["method"], "MaxMin", "A")
        if activation := at.get("activation"):
            facts = replace(facts, task="wasserstein", activation=activation, learning_rate=CRITIC_RATES[activation])
        return Cell(fill=to_train(facts))

    def _to_measure(self, experiment: Frame, at: Mapping[str, Any]) -> str:
        run = experiment[experiment["run"] == experiment["run"].iloc[0]]
        command = f"lconvnet evaluate {quote(f'{self.root}/' + run['run'].iloc[0])}"
        if at["measure"] == "lb" and not at["mini"]:
            known = run[(run["norm"] == "l2") & ~run["mini"] & (run["eps"] > 0)]["eps"]
            radii = ", ".join(f"{eps:.10g}" for eps in sorted({*known, at["eps"]}))
            return f"{command} --set 'evaluation.eps=[{radii}]'"
        name = (at["attack"] or "an attack") + (" (mini: true)" if at["mini"] else "")
        return f"{command}  # with {name} under evaluation.attacks of its cfg.yaml"

    def _cell(self, found: Frame, at: Mapping[str, Any]) -> Cell:
        """Missing if an attack had other settings in some of the runs."""
        if len(set(found["settings"])) > 1:
            where = ", ".join(f"{self.root}/{run}" for run in found["run"])
            different = f"{at['attack']} was set differently in these runs"
            return Cell(fill=f"{different}; lconvnet evaluate each with the same: {where}")
        is_distance = at["measure"] in DISTANCES
        # A certified accuracy is a lower bound of the true one; an attacked accuracy is an upper bound.
        side = "down" if at["measure"] == "lb" or is_distance else "up" if at["attack"] else "nearest"
        return summarize(found["value"] * (1 if is_distance else PERCENT), side)


def averages(runs: Iterable[Run], eps: float, columns: Sequence[Line]) -> dict[str, Cell]:
    """Return the means over repetitions of one classifier, by the columns' labels, at an l2 radius."""
    frame: Frame = measurements(runs)
    at = {key: frame[key].iloc[0] for key in NETWORK} | {"eps": eps, "norm": "l2"}
    (row,) = Averages(frame, "").pivot([Line("", at)], columns)
    return {column.label: cell for column, cell in zip(columns, row.cells, strict=True)}


def to_train(facts: Facts) -> str:
    """Return the command that trains and evaluates a run of the paper, or a replacement for it.

    >>> to_train(Facts("robustness", "mnist", "Large", "RKO", "MaxMin", "A"))
    'python -m lconvnet.run --cfg runs/adv-rob-mnist/large/RKO/multi-trial-A/cfg.yaml  # then again with --test'
    """
    folder = f"runs/{name_of_facts(facts)}"
    if facts.method in labels.PUBLISHED:
        return PUBLISHED.format(folder)
    return f"python -m lconvnet.run --cfg {folder}/cfg.yaml  # then again with --test"


def attack_table(number: str, classifiers: Averages) -> Table:
    """Return every attack on every network, by data set, radius (l2 unless another norm is named) and architecture.

    A network that was never attacked has rows at all its radii. Provable <= attacked <= clean holds in every row,
    because each results.yaml that violates it is refused.
    """
    experiments = sorted(
        classifiers.each,
        key=lambda found: (
            _place(list(labels.DATA), found["data"]),
            found["method"] in labels.PUBLISHED,
            _place(ARCHITECTURES, found["architecture"]),
            _place(METHODS, found["method"]),
            found["recipe"],
        ),
    )
    frame = classifiers.frame[classifiers.frame["measure"] == "ub"]
    given = set(zip(frame["attack"], frame["mini"], strict=True))
    known = sorted(set(frame["attack"]), key=lambda name: _place(list(labels.ATTACKS), name))
    full, mini = ([attack(name, mini=part) for name in known if (name, part) in given] for part in (False, True))
    columns = [CLEAN, CERTIFIED, *full, *((MINI_CLEAN, MINI_CERTIFIED, *mini) if mini else ())]
    rows = [row for norm in NORMS for found in experiments for row in _attacked(found, norm, classifiers)]
    blocks = list(dict.fromkeys(row.block for row in rows))
    filled = classifiers.pivot(sorted(rows, key=lambda row: blocks.index(row.block)), columns)
    recipes = filter(None, (_recipe_note(_network_label(found), found) for found in experiments))
    notes = (*((MINI_NOTE,) if mini else ()), *recipes)
    return Table(
        number, "Every attack: remaining accuracy (%)", tuple(line.label for line in columns), filled, "column", notes
    )


def critic_table(number: str, data: str, frame: Frame, root: str) -> Table:
    """Return the lower bounds on the Wasserstein-1 distance between images and a generator's samples.

    A critic's value W1 is a lower bound only after division by the critic's Lipschitz constant L; both are shown. Each
    cell is at the learning rate with the largest mean of W1/L. The largest W1 itself would choose critics that
    diverged, with L up to 1e11. The same held-out samples choose the rate and give the number, because the original's
    files hold no
    others: a cell chosen among several rates is biased upward.
    """
    critics = frame[(frame["task"] == "wasserstein") & (frame["data"] == data)]
    bounds = critics[critics["measure"] == W1_OVER_L]
    means = bounds.groupby([*CRITIC, "learning_rate"], as_index=False)["value"].mean()
    best = means.loc[means.groupby([*CRITIC])["value"].idxmax(), [*CRITIC, "learning_rate"]]
    name = labels.DATA.get(data, data)
    at = {**WHOLE, "data": data, "architecture": "Critic"}
    activations = labels.ACTIVATIONS.values()
    rows = [
        Line(key, {**at, "measure": key, "activation": activation}, f"{name}, {activation}")
        for activation in activations
        for key in DISTANCES
    ]
    title = f"Lower bound on the Wasserstein distance, {name}"
    made = Averages(critics.merge(best), root, CRITIC).table(number, title, rows, _networks(*CRITIC_METHODS))
    rates = {(one.activation, one.method, one.recipe): one.learning_rate for one in best.itertuples()}
    places = [(a, labels.network_label(m, recipe=recipe), rate) for (a, m, recipe), rate in rates.items()]
    places.sort(key=lambda place: ([*activations].index(place[0]), made.columns.index(place[1])))
    said = ", ".join(f"{activation} {label} {rate:g}" for activation, label, rate in places)
    note = f"at the learning rate with the largest mean of W1/L ({BIAS}): {said}"
    return replace(made, notes=(note, *made.notes))


def _recipe_note(label: str, experiment: Mapping[str, Any]) -> str:
    """The differences between a recipe and the paper's; empty if its label names them all."""
    if experiment["recipe_in_full"] == experiment["recipe"]:
        return ""
    return f"{label}, {experiment['data']}, {experiment['architecture']}: {experiment['recipe_in_full']}"


def _networks(*names: str) -> list[Mapping[str, str]]:
    """Columns by method, or by method and architecture."""
    return [dict(zip(("method", "architecture"), name.split(" "), strict=False)) for name in names]


def _rows(
    data: str, measures: Sequence[Line], radii: Mapping[str, float] = labels.EPS, architecture: str = ""
) -> list[Line]:
    at = {"data": data, "eps": radii[data], "norm": "l2", **({"architecture": architecture} if architecture else {})}
    block = _block(data, radii[data], architecture)
    return [Line(line.label, {**at, **line.at}, block) for line in measures]


def _block(data: str, eps: float, architecture: str = "", norm: str = "l2") -> str:
    radius = labels.eps_label(eps) + ("" if norm == "l2" else f" in {norm}")
    return f"{labels.DATA.get(data, data)} (ε = {radius})" + (f", {architecture}" if architecture else "")


def _fits(experiment: Mapping[str, Any], at: Mapping[str, Any]) -> bool:
    return all(experiment[key] == value for key, value in at.items())


def _attacked(experiment: Mapping[str, Any], norm: str, classifiers: Averages) -> list[Line]:
    """One line per radius at which an experiment was attacked, or else per radius that it has."""
    at = {key: experiment[key] for key in NETWORK}
    found = classifiers.experiments[tuple(at.values())]
    found = found[(found["norm"] == norm) & (found["eps"] > 0)]
    attacked = found[found["measure"] == "ub"]
    group = "published networks" if experiment["method"] in labels.PUBLISHED else experiment["architecture"]
    return [
        Line(_network_label(experiment), {**at, "eps": eps, "norm": norm}, _block(experiment["data"], eps, group, norm))
        for eps in sorted(set((found if attacked.empty else attacked)["eps"]))
    ]


def _network_label(experiment: Mapping[str, Any]) -> str:
    named = experiment["method"] in (*labels.PUBLISHED, "Orthogonal")
    architecture = experiment["architecture"] if named else ""
    return labels.network_label(experiment["method"], architecture, experiment["recipe"])


def _place(known: Sequence[str], name: str) -> tuple[int, str]:
    return (known.index(name) if name in known else len(known), name)
