"""Pictures say what the records say, and every number on them is one of theirs."""

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import torch

from lconvnet.experiments import execute
from lconvnet.experiments.loading import parse
from lconvnet.experiments.run_folder import RunFolder
from lconvnet.report.pictures import (
    Examples,
    accuracy_curves,
    adversarial_grid,
    draw,
    read_examples,
    singular_value_histograms,
)

pytest.importorskip("matplotlib", reason="pictures come with the extra: pip install 'lconvnet[plots]'")

VALUES = {
    "data": {"name": "digits", "limit": 200, "test": 40},
    "model": {"architecture": "mlp", "widths": [16]},
    "training": {"epochs": 1},
    "evaluation": {
        "eps": [0.1],
        "attacks": [{"name": "pgd", "steps": 3}, {"name": "ddn", "steps": 20, "mini": True}],
        "mini_test_size": 20,
    },
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folders = []
    for seed in (0, 1):
        folder = RunFolder(tmp_path_factory.mktemp("runs") / f"seed-{seed}")
        execute.train(parse({**VALUES, "seed": seed}), folder, progress=False)
        execute.evaluate(folder)
        folders.append(folder)
    return folders


@pytest.fixture
def examples():
    return Examples(
        "toy",
        pd.DataFrame(
            {
                "label": np.array([0, 1, 2, 3]),
                "prediction": np.array([0, 1, 2, 0]),
                "radius": np.array([0.5, 1.0, 2.0, 3.0]),
                "pgd@1.0 success": np.array([True, False, False, True]),
                "pgd@1.0 norm": np.array([0.9, np.nan, np.nan, 0.0]),
                "ddn success": np.array([True, True, None, None], dtype=object),
                "ddn norm": np.array([0.75, 1.5, np.nan, np.nan]),
                "fgsm-linf@0.1 success": np.array([True, True, True, True]),
                "fgsm-linf@0.1 norm": np.array([0.1, 0.1, 0.1, 0.0]),
            }
        ),
    )


def test_accuracies_of_a_toy(examples):
    assert [examples.certified(eps) for eps in (0, 0.5, 1.5, 2)] == [0.75, 0.5, 0.25, 0]
    assert examples.attacks() == ["pgd@1.0", "ddn"], "l-infinity has no place on an l2 axis"
    assert examples.attacked("pgd@1.0", 1.0) == 0.5
    assert [examples.attacked("ddn", eps) for eps in (0.5, 1, 2)] == [1, 0.5, 0], "of the two that were attacked"
    assert examples.part("pgd@1.0") == ""
    assert examples.part("ddn") == " (first 2)"


def test_curves_draw_those_numbers(examples):
    (axes,) = accuracy_curves([examples]).axes
    certified, marker, line = axes.lines
    assert certified.get_ydata().tolist() == [examples.certified(eps) for eps in certified.get_xdata()]
    assert (marker.get_xdata().tolist(), marker.get_ydata().tolist()) == ([1.0], [0.5])
    assert line.get_label() == "toy: under ddn (first 2)"
    assert axes.get_xlabel() == "l2 radius over pixels in [0, 1]"


def test_histograms_count_every_value():
    layers = {"conv1": torch.tensor([0.25, 0.5, 1.0, 1.0]).double(), "linear1": torch.ones(3).double()}
    figure = singular_value_histograms(layers)
    for axes, values in zip(figure.axes, layers.values(), strict=True):
        assert sum(bar.get_height() for bar in axes.patches) == len(values)
    assert figure.axes[0].get_title(loc="left") == "conv1: 4 singular values in [0.250000000, 1.000000000]"


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_shows_images_adversaries_and_differences(channels):
    images = torch.rand(2, channels, 4, 5)
    adversarial = images.flip(3).clone()
    adversarial[1] = torch.nan
    axes = adversarial_grid(images, adversarial, ["a", "b"], ["c", "none found"]).axes
    assert [place.get_title() for place in axes] == ["a", "b", "c", "none found", "difference", "difference"]
    assert [len(place.images) for place in axes] == [1, 1, 1, 0, 1, 0]
    shown = np.asarray(axes[0].images[0].get_array()).reshape(4, 5, channels)
    assert np.allclose(shown, images[0].permute(1, 2, 0))


def test_files_of_several_runs(runs, tmp_path):
    written = draw(runs, tmp_path, images=3)
    stems = [run.path.name for run in runs]
    names = {"accuracy.png", *(f"{stem}-{kind}.png" for stem in stems for kind in ("singular-values", "images"))}
    assert {path.name for path in written} == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    first = {path: path.read_bytes() for path in written}
    assert {path: path.read_bytes() for path in draw(runs, tmp_path, images=3)} == first


def test_examples_are_those_of_the_run(runs):
    found = read_examples(runs[0], "run")
    assert len(found.correct) == 40
    assert found.attacks() == ["pgd@0.1", "ddn"]
    assert found.certified(0.1) <= found.attacked("pgd@0.1", 0.1) <= found.correct.mean()


def test_examples_of_an_older_evaluation_give_no_reasons(runs, tmp_path):
    """Files from before that column are read as before."""
    own, older = pyarrow.parquet.read_table(runs[0].examples), RunFolder(tmp_path)
    pyarrow.parquet.write_table(own.drop_columns(["reason"]), older.examples)
    found, known = read_examples(older, "older"), read_examples(runs[0], "run")
    assert found.certified(0.1) == known.certified(0.1) and found.attacks() == known.attacks()


def test_a_run_without_evaluation_is_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match=r"was not evaluated \(no examples.parquet\): lconvnet evaluate"):
        draw([RunFolder(tmp_path)], tmp_path / "out", images=0)
