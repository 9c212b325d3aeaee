"""Every table, a pure function of the runs.

Tables 1 to 4 follow the published numbers of the paper (Li et al. 2019); the numbers 7 to 9 are assigned by content.

* 1: clean and provably robust accuracy of four methods    * 7: the same of all six methods
* 2: BCOP against FC-3 and published baselines             * 8: provable accuracy at the other radii
* 3: accuracy under attacks of the same networks           * 9: every attack on every network
* 4a, 4b: lower bounds on the Wasserstein distance, STL-10 and CIFAR-10 (`lconvnet.report.critics`)

Accuracies are percentages. The mean is over seeds, the deviation is the population's. Runs with another recipe than the
paper's have columns of their own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from lconvnet.report import critics, everything, names
from lconvnet.report.cells import Cell, Row, Table, with_best, without_empty
from lconvnet.report.fills import to_train
from lconvnet.report.groups import Group, Variant, group, recipe_note
from lconvnet.report.measures import CERTIFIED, CLEAN, FOUR_ATTACKS, MINI_NOTE, Measure, cell
from lconvnet.report.runs import Run

PAPER_METHODS = ("OSSN", "RKO", "SVCM", "BCOP")
ALL_METHODS = ("OSSN", "RKO", "SVCM", "RK-L2NE", "BCOP-Fixed", "BCOP")
PAPER = Variant()
BASELINES = (("Small", "KW"), ("Large", "KW"), ("Model-3", "QW"), ("Model-4", "QW"))
ROBUST = replace(CERTIFIED, label="Robust")


@dataclass(frozen=True)
class Line:
    """A row to be filled: the radius and data set, the architecture unless columns have it, what is measured."""

    data: str
    eps: float
    measure: Measure
    architecture: str = ""

    @property
    def block(self) -> str:
        """The data set, radius and architecture in words."""
        start = f"{names.data_label(self.data)} (ε = {names.eps_label(self.eps)})"
        return f"{start}, {self.architecture}" if self.architecture else start


@dataclass(frozen=True)
class Column:
    """A column to be filled: a method, its architecture unless rows have it, its recipe."""

    method: str
    architecture: str = ""
    variant: Variant = PAPER

    @property
    def label(self) -> str:
        """The column's head.

        >>> Column("BCOP", "Large").label, Column("Orthogonal", "FC-3").label, Column("KW", "Small").label
        ('BCOP Large', 'FC-3', 'KW Small')
        """
        name = names.network_label(self.method, self.architecture)
        return f"{name} ({self.variant.text})" if self.variant.text else name


def tables(runs: Iterable[Run], root: str = "runs") -> tuple[Table, ...]:
    """Return every table that has at least one value; `root` is where the runs' paths begin, for commands."""
    groups = group(runs)
    found = (
        _by_method("1", "Clean and provably robust accuracy (%)", PAPER_METHODS, groups, root),
        _against_baselines(groups, root),
        _under_attack(groups, root),
        critics.table("4a", "stl10", groups),
        critics.table("4b", "cifar10", groups),
        _by_method("7", "Clean and provably robust accuracy (%), all methods", ALL_METHODS, groups, root),
        _other_radii(groups, root),
        everything.table("9", groups, root),
    )
    return tuple(with_best(table) for table in found if not table.empty)


def _by_method(number: str, title: str, methods: Sequence[str], groups: Sequence[Group], root: str) -> Table:
    lines = [
        Line(data, eps, measure, architecture)
        for data, eps in names.EPS.items()
        for architecture in ("Small", "Large")
        for measure in (CLEAN, ROBUST)
    ]
    return _fill(number, title, lines, [Column(method) for method in methods], groups, root)


def _against_baselines(groups: Sequence[Group], root: str) -> Table:
    lines = [Line(data, eps, measure) for data, eps in names.EPS.items() for measure in (CLEAN, ROBUST)]
    columns = [Column("BCOP", "Large"), Column("Orthogonal", "FC-3"), *_baseline_columns()]
    return _fill("2", "BCOP against FC-3 and published networks, accuracy (%)", lines, columns, groups, root)


def _under_attack(groups: Sequence[Group], root: str) -> Table:
    measures = (CLEAN, CERTIFIED, *FOUR_ATTACKS)
    lines = [Line(data, eps, measure) for data, eps in names.EPS.items() for measure in measures]
    own = [Column("BCOP", "Large"), Column("BCOP", "Small"), Column("Orthogonal", "FC-3")]
    table = _fill("3", "Accuracy under attack (%)", lines, [*own, *_baseline_columns()], groups, root)
    return replace(table, notes=(*table.notes, MINI_NOTE))


def _other_radii(groups: Sequence[Group], root: str) -> Table:
    lines = [Line(data, eps, CERTIFIED) for data, eps in names.OTHER_EPS.items()]
    columns = [Column("Orthogonal", "FC-3")]
    columns += [Column(method, architecture) for architecture in ("Small", "Large") for method in ALL_METHODS]
    return without_empty(_fill("8", "Provable accuracy at other radii (%)", lines, columns, groups, root))


def _baseline_columns() -> list[Column]:
    return [Column(method, architecture) for architecture, method in BASELINES]


def _fill(
    number: str, title: str, lines: Sequence[Line], columns: Sequence[Column], groups: Sequence[Group], root: str
) -> Table:
    """Look up every cell; each column is followed by the other recipes of the same method."""
    concerned = [g for g in groups if any(_fits(g, line) for line in lines)]
    wide = [varied for column in columns for varied in _with_variants(column, concerned)]
    rows = [Row(line.block, line.measure.label, tuple(_look_up(line, c, groups, root) for c in wide)) for line in lines]
    notes = dict.fromkeys(recipe_note(column.label, g) for column in wide for g in concerned if _is(g, column))
    return Table(number, title, tuple(column.label for column in wide), tuple(rows), notes=tuple(filter(None, notes)))


def _with_variants(column: Column, groups: Sequence[Group]) -> list[Column]:
    variants = {g.variant.shown: g.variant for g in groups if _matches(g, column) and g.variant.shown}
    return [column, *(replace(column, variant=Variant(shown)) for shown in sorted(variants, key=repr))]


def _look_up(line: Line, column: Column, groups: Sequence[Group], root: str) -> Cell:
    architecture = line.architecture or column.architecture
    found = [g for g in groups if g.facts.architecture == architecture and _fits(g, line) and _is(g, column)]
    return cell(found[0], line.measure, line.eps, root) if found else _absent(line, column)


def _absent(line: Line, column: Column) -> Cell:
    """What the paper has is asked for; other recipes are somebody's choice."""
    if column.variant.shown:
        return Cell()
    return Cell(fill=to_train(line.data, line.architecture or column.architecture, column.method))


def _fits(found: Group, line: Line) -> bool:
    facts = found.facts
    same = line.architecture in ("", facts.architecture)
    return facts.task == "robustness" and facts.data == line.data and same


def _matches(found: Group, column: Column) -> bool:
    return found.facts.method == column.method and column.architecture in ("", found.facts.architecture)


def _is(found: Group, column: Column) -> bool:
    return _matches(found, column) and found.variant.shown == column.variant.shown
