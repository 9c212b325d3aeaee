"""Every number that is printed of something proved lies on its safe side, and not far from it.

Texts are read back as decimal numbers and compared, in exact arithmetic, with what was to be printed.
"""

import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lconvnet.cli import families, output, wasserstein
from lconvnet.experiments import estimation, tasks
from lconvnet.experiments.run_folder import RunFolder
from lconvnet.experiments.sweep import Status
from lconvnet.report.labels import eps_label
from lconvnet.report.pictures import singular_value_histograms
from lconvnet.report.rendering import Cell, Row, Table, latex, markdown, to_csv
from lconvnet.training.record import Epoch

NUMBER = r"(-?\d+(?:\.\d+)?)"
distances = st.floats(1e-6, 1e6)
fractions = st.integers(1, 10_000).flatmap(lambda n: st.integers(0, n).map(lambda k: k / n))


def printed(show: Callable[[Console], object]) -> str:
    console = Console(width=300, color_system=None)
    with console.capture() as captured:
        show(console)
    return captured.get()


def numbers(pattern: str, text: str) -> list[Fraction]:
    found = re.search(pattern.replace("#", NUMBER), text)
    assert found, text
    return [Fraction(number) for number in found.groups()]


def below(shown: Fraction, value: float, step: float) -> bool:
    return Fraction(value) - Fraction(step) <= shown <= Fraction(value)


def percent_below(shown: Fraction, value: float) -> bool:
    """Of the shortest decimal number that is the float: 57 of 100 images are 57 %."""
    return below(shown, Fraction(repr(value)) * 100, 0.01)


def percent_above(shown: Fraction, value: float) -> bool:
    return percent_below(-shown, -value)


@given(distances, distances)
def test_radii_and_margins(radius, margin):
    row = {"image": "a", "class": None, "label": 3, "certified": {}, "margin": margin, "radius": radius}
    text = printed(lambda console: output.show_certificates([row], "sound", 1 + radius, console))
    shown = numbers(r"margin #, radius #", text)
    assert below(shown[0], margin, 1e-4) and below(shown[1], radius, 1e-4)
    assert below(-numbers(r"Lipschitz bound #", text)[0], -(1 + radius), 1e-9)


@pytest.mark.parametrize("level", ["estimate", "sound"])
def test_a_radius_of_0_says_why_and_no_other_does(level):
    row = {"image": "a", "class": None, "label": 3, "certified": {"0.1": False}, "margin": 0.5}
    none, small = row | {"radius": 0.0, "reason": "tie"}, row | {"radius": 1e-9, "reason": "certified"}
    text = printed(lambda console: output.show_certificates([none, small], level, 1.0, console))
    assert "radius 0.0000 (tie), not certified at 0.1\n" in text
    assert "radius 0.0000, not certified at 0.1\n" in text


@given(fractions, fractions, st.floats(1e-3, 10))
def test_accuracies_of_an_evaluation(certified, attacked, eps):
    rows = {eps: {"natural": 0.5, "lb": certified, "pgd-ub": attacked}}
    text = printed(lambda console: console.print(output.accuracy_table("", rows)))
    *_, radius, clean, low, high = re.findall(r"[\d./]+", text)
    assert abs(float(Fraction(radius)) - eps) <= 1e-6 and clean == "50.00"
    assert percent_below(Fraction(low), certified) and percent_above(Fraction(high), attacked)


def test_an_evaluation_says_once_how_it_is_rounded():
    results = {"data": "10 test images", "epoch": 1, "level": "analytic", "sanity_check/layer-l-constant": 1.0}
    text = printed(lambda console: output.show_results(results, Path("results.yaml"), console))
    assert text.count("certified accuracy is rounded down") == 1


@given(st.floats(1e-3, 10))
def test_a_radius_that_is_no_fraction_of_255_is_printed_exactly(eps):
    label = eps_label(eps)
    assert "/255" in label or float(label) == eps


@given(fractions)
def test_accuracies_while_training_and_of_a_family(certified):
    epoch = Epoch(1, 1, 0.1, 1.0, 0.5, 0.5, {0.14117647: certified}, 1.0)
    eps, shown = numbers(r"certified@# #%", epoch.validated())
    assert eps == Fraction("0.14117647") and percent_below(shown, certified)
    row = families.status_row(Status(Path("a/b"), "finished", certified=certified), Path("a"))
    assert percent_below(Fraction(row[4].removesuffix("%")), certified)


@given(st.tuples(distances, distances, distances).map(sorted))
def test_distances(ends):
    low, middle, high = ends
    found = SimpleNamespace(
        interval=(low, high), guaranteed=(low, high), confidence=0.95, lower_bound=middle, held_out=(9, 9), units="l2",
        training=middle, lipschitz=1 + low, level="analytic", assumes="what it assumes",
    )  # fmt: skip
    step = 1e-5 * high
    text = printed(lambda console: wasserstein.show(found, [], console))
    guaranteed, least = (Fraction(number) for number in re.findall(rf"W1 >= {NUMBER}", text))
    estimated, left, right = numbers(r"estimate #, interval \[#, #\]", text)
    assert guaranteed == least == left and below(left, low, step) and below(estimated, middle, step)
    assert below(-right, -high, step)


def test_a_distance_of_a_run_says_what_it_assumes(monkeypatch, capsys):
    found = SimpleNamespace(
        interval=(0.00009, 2.00001), confidence=0.95, lower_bound=1.99999, units="l2", lipschitz=1.0, level="analytic",
        assumes="what it assumes", guaranteed=None,
    )  # fmt: skip
    monkeypatch.setattr(estimation, "run", lambda *arguments, **options: found)
    made = tasks.TASKS["wasserstein"].train(None, RunFolder(Path()), tasks.Asked())
    output.show_outcome(made, as_json=False)
    said = capsys.readouterr().out
    assert "estimate 1.9999 of a lower bound" in said and "at 0.95 from 0.0000 to 2.0001, assuming what it" in said


@given(st.sampled_from(["down", "up"]), st.integers(0, 1_000_000))
def test_single_cells_of_tables(side, millionths):
    """In every format; CSV keeps all digits. Means over several seeds are statistics, and rounded to the nearest."""
    exact = Fraction(millionths, 10**4)
    cell, mean = Cell(millionths / 10**4, 0.0, 1, side=side), Cell(millionths / 10**4, 0.5, 3, side=side)
    table = Table("1", "", ("A",), (Row("x", "y", (cell,)),))
    shown = Fraction(cell.text)
    assert (exact - shown if side == "down" else shown - exact) in (0, *(Fraction(k, 10**4) for k in range(1, 100)))
    assert f"| {cell.text} |" in markdown([table]) and f"& {cell.text} " in latex([table])
    assert f"A,{cell.mean}," in to_csv([table])
    assert abs(Fraction(mean.text.split()[0]) - exact) <= Fraction(1, 200)


def test_float32_noise_in_files_moves_no_digit():
    """The original keeps 0.5938 as a mean of float32 numbers, a bit above or below."""
    for noise in (100 * 0.5938000082969666, 100 * 0.5937999725341797):
        assert Cell(noise, 0.0, 1, side="down").text == Cell(noise, 0.0, 1, side="up").text == "59.38"


@pytest.mark.parametrize("seed", range(3))
def test_titles_of_singular_values(seed):
    values = torch.rand(5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    title = singular_value_histograms({"a": values}).axes[0].get_title(loc="left")
    low, high = (Decimal(number) for number in re.findall(r"[\[ ](\d\.\d+)[,\]]", title))
    assert low <= Decimal(float(values.min())) and Decimal(float(values.max())) <= high
    assert high - low < Decimal(float(values.max() - values.min())) + Decimal("2e-9")
