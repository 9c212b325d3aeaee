"""The committed runs on real MNIST: what they must reach, and one epoch of every method."""

import json
import math
from pathlib import Path

import pytest

from lconvnet.experiments import execute
from lconvnet.experiments.loading import load
from lconvnet.experiments.run_folder import RunFolder

RUNS = Path(__file__).resolve().parents[2] / "runs"
METHODS = ("BCOP-Fixed", "RKO", "OSSN", "SVCM", "L2Nonexpansive")
PAPER = [f"small/{method}" for method in METHODS] + ["fc/3-layers"]


def train(cfg: Path, folder: RunFolder, data_dir: Path, *changes: str) -> execute.Trained:
    experiment = load(cfg, [f"data.directory={json.dumps(str(data_dir))}", *changes])
    return execute.train(experiment, folder, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "clean", "certified"), [("offset-cross-entropy", 0.963, 0.52), ("hinge", 0.965, 0.42)]
)
def test_six_epochs_reach_what_is_promised(
    loss: str, clean: float, certified: float, tmp_path: Path, data_dir: Path
) -> None:
    folder = RunFolder(tmp_path)
    train(RUNS / "mnist-six-epochs" / loss / "cfg.yaml", folder, data_dir)
    results = execute.evaluate(folder, attacks=False).results
    assert results["finished"]
    assert results["accuracy"] >= clean
    assert results["adv_robustness"][1.58]["lb"] >= certified


@pytest.mark.slow
@pytest.mark.parametrize("path", PAPER)
def test_one_epoch_of_every_other_method(path: str, tmp_path: Path, data_dir: Path) -> None:
    cfg = RUNS / "adv-rob-mnist" / path / "multi-trial-A" / "cfg.yaml"
    bound = train(cfg, RunFolder(tmp_path), data_dir, "training.epochs=1").bound
    assert math.isfinite(bound.upper)
    assert bound.upper >= (bound.lower or 0.0)
    for layer in bound.layers:
        assert layer.upper >= (layer.lower or 0.0), layer.name
