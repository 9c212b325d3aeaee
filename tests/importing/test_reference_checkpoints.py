"""Checkpoints of the original code, with the logits, accuracies and constants that it measured itself.

Logits: 1e-4 relative to the largest, as promised; what float32 leaves is 1e-6, and exchanging the channels of MaxMin or
the padding side changes the first digit.
"""

import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from lconvnet import load, saving
from lconvnet.cli import app, invoke
from lconvnet.experiments.loading import read
from lconvnet.importing import import_run

METHODS = ("BCOP-Bjorck", "RKO", "OSSN", "SVCM", "L2Nonexpansive")


@pytest.fixture(params=METHODS)
def old(request, reference_dir):
    return reference_dir / f"mnist-small-{request.param}"


@pytest.fixture(scope="module")
def images(data_dir):
    """The first 200 test images, read without the 70,000 others."""
    table = parquet.read_table(data_dir / "mnist" / "test-00000-of-00001.parquet", columns=["image"]).slice(0, 200)
    pixels = [np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["image"].to_pylist()]
    return torch.from_numpy(np.stack(pixels)).unsqueeze(1).float() / 255


def writable(old, folder):
    """A copy of an old run, for its files are read-only."""
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("cfg.yaml", "checkpoints/SmallConvNet.pth"):
        shutil.copyfile(old / name, folder / name)
    return folder


def test_logits_of_an_import(old, images, tmp_path):
    network = load(import_run(old, tmp_path / "new").path)
    expected = torch.from_numpy(np.load(old / "expected.npz")["logits"])
    assert (network(images) - expected).abs().max() < 1e-4 * expected.abs().max()


def test_the_bound_is_the_originals_constant(old, tmp_path):
    """Ours is never below the exact constant and within 1e-5 of it; the original's is in float32."""
    upper = import_run(old, tmp_path / "new").bound.upper
    constant = float(np.load(old / "expected.npz")["l_constant"])
    assert constant * (1 - 2e-6) < upper < constant * (1 + 1e-5)
    assert saving.describe(tmp_path / "new" / "model.safetensors").bound.upper == upper


@pytest.mark.slow
@pytest.mark.parametrize("command", ["import", "run"])
def test_counts(old, data_dir, tmp_path, command):
    """All 10,000 test images through both commands: the counts of correct and of certified images, exactly."""
    place = ["--no-attacks", "--data-dir", str(data_dir), "--quiet"]
    if command == "import":
        folder = tmp_path / "new"
        assert invoke(app, ["import", str(old), str(folder)]) == 0
        assert invoke(app, ["evaluate", str(folder), *place]) == 0
    else:
        from lconvnet.run import app as run

        folder = writable(old, tmp_path / "old")
        assert invoke(run, ["--cfg", str(folder / "cfg.yaml"), "--resume", "--test", *place]) == 0
    results, expected = read(folder / "results.yaml"), np.load(old / "expected.npz")
    assert round(results["accuracy"] * 10000) == round(float(expected["accuracy"]) * 10000)
    certified = results["adv_robustness"][1.58]["lb"]
    assert round(certified * 10000) == round(float(expected["certified_1_58"]) * 10000)
