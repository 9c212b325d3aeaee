"""Runs of every architecture and method of the original, against a forward pass from the formulas.

Logits: 1e-5 of the largest, for weights are rounded to float32 once; a wrong channel, side or factor changes the first
digit.
"""

import pytest
import torch

from lconvnet import bake, load, saving
from lconvnet.experiments import build
from lconvnet.experiments.loading import load as load_config
from lconvnet.importing import import_run
from lconvnet.training import load_best, load_record
from tests.importing.originals import OPTIONS, RELU, SHAPES, Original, classifier, convnet, critic, mlp, write

METHODS = tuple(OPTIONS)


def agrees(network, oracle, shape, *, images=3):
    x = torch.rand(images, *shape, generator=torch.Generator().manual_seed(1))
    expected = oracle(x.double())
    return (network(x).double() - expected).abs().max() < 1e-5 * expected.abs().max()


def check_run(config, shape, tmp_path, monkeypatch, **options):
    oracle = Original(config["trainer"]["net"])
    old = write(tmp_path / "old", config, oracle.weights, monkeypatch, **options)
    found = import_run(old, tmp_path / "new")
    assert agrees(load(found.path), oracle, shape)
    assert saving.describe(found.path).input_shape == shape
    return found


@pytest.mark.parametrize("method", METHODS)
def test_small(method, tmp_path, monkeypatch):
    config = classifier(convnet("SmallConvNet", method, SHAPES["cifar10"], 10), "cifar10")
    check_run(config, SHAPES["cifar10"], tmp_path, monkeypatch)


@pytest.mark.parametrize("method", [m if m == "BCOP" else pytest.param(m, marks=pytest.mark.slow) for m in METHODS])
def test_large(method, tmp_path, monkeypatch):
    config = classifier(convnet("LargeConvNet", method, SHAPES["mnist"], 10))
    check_run(config, SHAPES["mnist"], tmp_path, monkeypatch)


@pytest.mark.parametrize("legacy", [False, True])
def test_dense(legacy, tmp_path, monkeypatch):
    config = classifier(mlp([784, 64, 32, 10]))
    found = check_run(config, SHAPES["mnist"], tmp_path, monkeypatch, legacy=legacy)
    assert found.epoch == 7


@pytest.mark.slow
@pytest.mark.parametrize("activation", [None, RELU], ids=["maxmin", "relu"])
@pytest.mark.parametrize("method", ["BCOP", "RKO", "OSSN"])
def test_critic(method, activation, tmp_path, monkeypatch):
    """A critic takes the images that its configuration names, of 64 pixels where CIFAR-10's are upsampled."""
    shape = (3, 64, 64)
    net = convnet("DCGANDiscriminator", method, shape, 1, *([activation] if activation else []))
    check_run(critic(net), shape, tmp_path, monkeypatch)


def test_the_run_folder_is_one_of_ours(tmp_path, monkeypatch):
    """Configuration, weights before baking and record: together they are the baked network again."""
    config = classifier(mlp([784, 64, 10]))
    oracle = Original(config["trainer"]["net"])
    old = write(tmp_path / "old", config, oracle.weights, monkeypatch)
    import_run(old, tmp_path / "new")
    experiment, record = load_config(tmp_path / "new" / "cfg.yaml"), load_record(tmp_path / "new")
    model = build.build_model(experiment.model, SHAPES["mnist"], 10, seed=3)
    assert load_best(model, tmp_path / "new") == record.kept_epoch == 7
    assert agrees(bake(model), oracle, SHAPES["mnist"])
    assert record.finished and record.settings["imported"]["file"] == "Sequential.pth"
