"""The command `lconvnet wasserstein`."""

import json
import math
import re
from decimal import Decimal

import numpy as np
import pytest
import torch
from PIL import Image

import lconvnet as lc
from lconvnet import cli
from lconvnet.tasks.estimates import ranking, training_curve
from lconvnet.wasserstein import estimate
from tests.wasserstein.test_estimate import FAKE, REAL, small

LINE = r"W1 >= (\S+) with confidence 0\.975, assuming .*; estimate (\S+), interval \[(\S+), (\S+)\] at 0\.95\n"
QUICK = ("--steps", "12", "--batch-size", "16", "--quiet")


@pytest.fixture
def arrays(tmp_path):
    for name, values in (("a", REAL), ("b", FAKE)):
        np.save(tmp_path / f"{name}.npy", values.numpy())
    return str(tmp_path / "a.npy"), str(tmp_path / "b.npy")


@pytest.fixture
def command(capsys):
    def run(*arguments) -> tuple[int, str, str]:
        code = cli.invoke(cli.app, ["wasserstein", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_sentence_and_line_of_json(command, arrays):
    found = estimate(*arrays, steps=12, batch_size=16)
    code, out, _ = command(*arrays, *QUICK)
    assert code == 0
    # of a two-sided interval: one end alone fails half as often
    least, estimated, low, high = map(Decimal, re.match(LINE, out).groups())
    assert least == low and 0 <= found.interval[0] - float(low) < 1e-5
    assert 0 <= float(high) - found.interval[1] < 1e-5
    assert 0 <= found.lower_bound - float(estimated) < 1e-5
    assert found.assumes in out
    assert "l2 over 2 values as given; held out 12 and 10 (below 1000: few samples make the interval wide" in out
    code, out, _ = command(*arrays, *QUICK, "--json")
    assert (code, out.count("\n")) == (0, 1)
    values = json.loads(out)
    assert values["lower_bound"] == found.lower_bound
    assert values["interval"] == list(found.interval)
    assert values["units"] == "l2 over 2 values as given"
    assert set(values) == {"lower_bound", "interval", "guaranteed", "assumes", "confidence", "units", "lipschitz",
                           "level", "held_out", "training", "files"}  # fmt: skip


def test_folder(command, arrays, tmp_path):
    out = tmp_path / "out"
    assert command(*arrays, *QUICK, "--out", out)[0] == 0
    assert {path.name for path in out.iterdir()} == {
        "checkpoints",
        "record.json",
        "critic.safetensors",
        "training.png",
        "logs",
    }
    assert math.isclose(lc.lipschitz_bound(lc.load(out / "critic.safetensors")).upper, 1, rel_tol=1e-5)
    code, _, err = command(*arrays, *QUICK, "--out", out)
    assert code == 2
    assert "--resume" in err
    before = (out / "record.json").read_bytes()
    assert command(*arrays, *QUICK, "--out", out, "--resume")[0] == 0
    assert (out / "record.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("nowhere", "b.npy"), "real: nowhere does not exist"),
        (("a.npy", "b.npy", "--lr", "0"), "--lr 0.0: must be positive"),
        (("a.npy", "b.npy", "--confidence", "2"), "confidence=2.0"),
        (("a.npy", "c.npy"), "fake has samples of shape (3,)"),
    ],
)
def test_mistakes(command, arrays, tmp_path, monkeypatch, arguments, line):
    np.save(tmp_path / "c.npy", np.zeros((5, 3)))
    monkeypatch.chdir(tmp_path)
    code, out, err = command(*arguments, *QUICK)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert line in err


def test_folders_of_images_are_ranked(tmp_path):
    """The picture shows what its titles say; a critic that measures brightness ranks by brightness."""
    for name, low in (("bright", 128), ("dark", 0)):
        (tmp_path / name).mkdir()
        for value in range(12):
            Image.new("RGB", (3, 3), (low + value,) * 3).save(tmp_path / name / f"{value}.png")
    critic = torch.nn.Sequential(torch.nn.Flatten(), lc.layers.OrthogonalLinear(27, 1))
    found = estimate(tmp_path / "bright", tmp_path / "dark", critic=critic, steps=60, held_out=4)
    figure = ranking(found)
    titles = [part.get_suptitle() for part in figure.subfigs]
    assert titles == [f"{side}, ranked most {kind}" for side in ("real", "fake") for kind in ("real", "fake")]
    for place, part in enumerate(figure.subfigs):
        shown = [axes.images[0].get_array().mean() for axes in part.axes]
        assert shown == sorted(shown, reverse=place % 2 == 0)
        assert all((value > 0.4) == (place < 2) for value in shown)
    assert "pixels in [0, 1]" in found.units


def test_curve_shows_the_history():
    found = estimate(REAL, FAKE, critic=small(), steps=5, batch_size=8)
    axes = training_curve(found).axes[0]
    assert axes.lines[0].get_xydata().tolist() == [list(point) for point in found.history]
    assert axes.lines[1].get_ydata()[0] == found.lower_bound


def test_the_support_may_be_fractions(command, arrays):
    code, _, err = command(*arrays, *QUICK, "--support", "0", "36/255")
    assert code == 2 and "support=(0.0, 0.1411" in err  # read, and too narrow for these
    code, _, err = command(*arrays, *QUICK, "--support", "0", "wide")
    assert code == 2 and "wide" in err
