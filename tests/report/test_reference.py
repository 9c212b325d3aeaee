"""The original's 376 results: the published numbers, and every cell recomputed straight from the files."""

import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import yaml

from lconvnet.report import measurements, tables
from lconvnet.report.facts import name_of_facts

EPS = {"mnist": 1.58, "cifar10": 0.1411764706}
OTHER = {"mnist": 0.3, "cifar10": 0.1}
DATA = {"mnist": "MNIST (ε = {})", "cifar10": "CIFAR-10 (ε = {})"}
METHOD = {"BCOP-Bjorck": "BCOP", "L2Nonexpansive": "RK-L2NE", "3-layers": "FC-3"}
KEYS = {
    "Provable": ("adv_robustness", "lb"),
    "Robust": ("adv_robustness", "lb"),
    "PGD": ("adv_robustness", "pgd-ub"),
    "FGSM": ("adv_robustness", "fgsm-ub"),
    "Clean*": ("adv_robustness_mini_eval", "natural"),
    "Provable*": ("adv_robustness_mini_eval", "lb"),
    "Boundary attack*": ("adv_robustness_mini_eval", "boundary_attack-ub"),
    "Pointwise*": ("adv_robustness_mini_eval", "pointwise-ub"),
}


@pytest.fixture(scope="module")
def made(original):
    return tables(original.runs)


@pytest.fixture(scope="module")
def raw(reference_dir: Path) -> dict[str, list[dict]]:
    """Folder of a family → the files of its seeds, read without the package."""
    root = reference_dir / "runs"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    families = defaultdict(list)
    for path in sorted(root.rglob("results.yaml")):
        folder = path.parent.relative_to(root).as_posix()
        with path.open() as file:
            families[re.sub("/multi-trial-.$", "", folder)].append(yaml.load(file, loader))
    return families


def mean_std(values) -> str:
    values = [value for value in values if value is not None]
    if not values:
        return "—"
    text = f"{np.mean(values):.2f}"
    return text if len(values) == 1 else f"{text} ± {np.std(values):.2f}"


def at(values: dict, label: str, eps: float) -> float | None:
    if label == "Clean":
        return 100 * values["accuracy"]
    section, key = KEYS[label]
    value = values.get(section, {}).get(eps, {}).get(key)
    return None if value is None else 100 * value


def test_all_files_are_read(original):
    assert (len(original.runs), original.skipped) == (376, ())


def test_facts_give_back_the_folders_that_they_were_read_from(original):
    assert [name_of_facts(run.facts) for run in original.runs] == [run.path for run in original.runs]


def test_the_frame_has_every_number_once_and_finds_it_by_its_names(original, raw):
    frame = measurements(original.runs)
    assert not frame.duplicated(["run", "measure", "attack", "eps", "norm", "mini"]).any()
    large = frame[(frame["data"] == "cifar10") & (frame["architecture"] == "Large") & (frame["method"] == "BCOP")]
    found = large[(large["measure"] == "ub") & (large["attack"] == "pgd") & (large["eps"] == 36 / 255)]
    expected = [at(values, "PGD", EPS["cifar10"]) / 100 for values in raw["adv-rob-cifar10/large/BCOP-Bjorck"]]
    assert found["value"].tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("number", "block", "label", "column", "text"),
    [
        ("1", "CIFAR-10 (ε = 36/255), Large", "Clean", "BCOP", "72.41 ± 0.22"),
        ("1", "CIFAR-10 (ε = 36/255), Large", "Robust", "BCOP", "58.72 ± 0.23"),
        ("2", "CIFAR-10 (ε = 36/255)", "Robust", "KW Large", "—"),
        ("2", "MNIST (ε = 1.58)", "Robust", "QW Model-3", "42.13"),
        ("3", "CIFAR-10 (ε = 36/255)", "PGD", "BCOP Large", "64.39 ± 0.26"),
        ("3", "CIFAR-10 (ε = 36/255)", "Boundary attack*", "BCOP Large", "71.20 ± 1.60"),
        ("4a", "STL-10, MaxMin", "W1", "OSSN", "7.39 ± 0.31"),
        ("4a", "STL-10, MaxMin", "W1", "RKO", "8.95 ± 0.12"),
        ("4a", "STL-10, MaxMin", "W1", "BCOP", "9.91 ± 0.11"),
        ("4a", "STL-10, ReLU", "W1", "OSSN", "7.06 ± 0.72"),
        ("4a", "STL-10, ReLU", "W1", "RKO", "7.82 ± 0.21"),
        ("4a", "STL-10, ReLU", "W1", "BCOP", "8.28 ± 0.19"),
        ("4b", "CIFAR-10, MaxMin", "W1", "BCOP", "5.34 ± 0.07"),
        ("7", "MNIST (ε = 1.58), Small", "Robust", "RK-L2NE", "39.77 ± 0.73"),
        ("8", "CIFAR-10 (ε = 0.1)", "Provable", "FC-3", "53.67 ± 0.29"),
        ("8", "CIFAR-10 (ε = 0.1)", "Provable", "BCOP Small", "54.20 ± 0.27"),
        ("8", "MNIST (ε = 0.3)", "Provable", "OSSN Large", "96.43 ± 0.06"),
        ("9", "MNIST (ε = 1.58), Large", "BCOP", "PGD", "86.86 ± 0.25"),
    ],
)
def test_published_numbers(made, table_of, number, block, label, column, text):
    assert table_of(made, number)[block, label, column].text == text


def test_certified_distance_is_what_a_diverging_method_really_has(made, table_of):
    cell = table_of(made, "4a")["STL-10, MaxMin", "W1/L", "OSSN"]
    assert f"{cell.mean:.2f}" == "7.05"


@pytest.mark.parametrize("number", ["1", "2", "3", "7", "8", "9"])
def test_every_cell_of_a_classifier(made, raw, table_of, number):
    expected = {}
    for family, files in raw.items():
        parts = family.split("/")
        if parts[0].startswith("wde"):
            continue
        data = next(name for name in EPS if name in family)
        place = {"fc": "FC-3", "small": "Small", "large": "Large"}.get(parts[1])
        method = METHOD.get(parts[-1], parts[-1])
        if parts[0] == "baselines":
            method = f"{'KW' if 'kw' in parts[1] else 'QW'} {parts[-1].capitalize()}"
        full = method if place in (None, "FC-3") else f"{method} {place}"
        for eps, name in ((EPS[data], "1.58" if data == "mnist" else "36/255"), (OTHER[data], f"{OTHER[data]}")):
            block = DATA[data].format(name)
            for label in ("Clean", *KEYS):
                text = mean_std(at(values, label, eps) for values in files)
                expected[f"{block}, {place}", label, method] = text
                expected[block, label, full] = text
                expected[f"{block}, {place or 'published networks'}", method, label] = text
    cells = table_of(made, number)
    wrong = {key: (cell.text, expected[key]) for key, cell in cells.items() if cell.text != expected[key]}
    assert cells and not wrong


@pytest.mark.parametrize(("number", "data"), [("4a", "stl10"), ("4b", "cifar10")])
def test_every_cell_of_a_critic(made, raw, table_of, number, data):
    cells = table_of(made, number)
    for (block, label, method), cell in cells.items():
        activation = block.rpartition(" ")[2].lower()
        sweep = []
        for family, files in raw.items():
            if re.fullmatch(rf"wde_{data}/.*/{method}(/.*)?/{activation}", family):
                w1 = [-values["loss"] for values in files]
                w1_l = [-values["loss"] / values["sanity_check/layer-l-constant"] for values in files]
                sweep.append((np.mean(w1_l), mean_std(w1), mean_std(w1_l)))
        assert len(sweep) == 4, "learning rates"
        assert cell.text == max(sweep)[2 if label == "W1/L" else 1], (block, label, method)


def test_every_best_cell_and_no_other(made):
    for table in made:
        groups = [row.cells for row in table.rows]
        if table.number == "9":
            blocks = [[r.cells for r in table.rows if r.block == b] for b in {row.block for row in table.rows}]
            groups = [column for block in blocks for column in zip(*block, strict=True)]
        for group in groups:
            means = [f"{cell.mean:.2f}" for cell in group if cell.mean is not None]
            highest = max(means, key=float, default="")
            for cell in group:
                best = len(means) > 1 and cell.mean is not None and f"{cell.mean:.2f}" == highest
                assert cell.best == best, (table.number, cell)
    assert sum(cell.best for row in made[0].rows for cell in row.cells) == 8


def test_provable_attacked_clean(made):
    table = made[-1]
    for row in table.rows:
        cells = {column: cell.mean for column, cell in zip(table.columns, row.cells, strict=True)}
        for mark, attacks in (("", ("PGD", "FGSM")), ("*", ("Boundary attack*", "Pointwise*"))):
            for attack in attacks:
                assert (cells[f"Provable{mark}"] or 0) <= cells[attack] <= cells[f"Clean{mark}"] + 1e-4, row


def test_the_only_missing_cells_are_those_that_no_file_has(made):
    missing = {fill: places for table in made for fill, places in table.fills.items()}
    assert len(missing) == 2
    (published,) = (fill for fill in missing if fill.startswith("no command"))
    (command,) = (fill for fill in missing if fill != published)
    assert "runs/adv-rob-cifar10/large/OSSN/multi-trial-A/cfg.yaml" in command
    assert missing[command] == "CIFAR-10 (ε = 0.1), OSSN Large: Provable"
