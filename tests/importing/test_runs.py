"""Runs of every architecture and method of the original, against a forward pass from the formulas.

Logits: 1e-5 of the largest, for weights are rounded to float32 once; a wrong channel, side or factor changes the first
digit.
"""

import io
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from torch import nn

from lconvnet import Bound, atomic, bake, layers, load, models, saving
from lconvnet.bounds import fingerprint
from lconvnet.cli import app, invoke
from lconvnet.experiments.execute import evaluate
from lconvnet.experiments.loading import load as load_config
from lconvnet.experiments.loading import read
from lconvnet.experiments.run_folder import RunFolder
from lconvnet.importing import adopt, import_run, original
from lconvnet.run import app as run
from lconvnet.training import CheckpointError, load_best, load_record
from tests.importing.originals import (
    LINEAR,
    MAXMIN,
    OPTIONS,
    RELU,
    SHAPES,
    Original,
    bcop,
    bjorck,
    classifier,
    convnet,
    critic,
    mlp,
    power_iterated,
    write,
)

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


GROUPS = {"pairs": {**MAXMIN, "new_impl": False}, "fours": {**MAXMIN, "group_size": 4}}


@pytest.mark.parametrize("activation", [RELU, *GROUPS.values()], ids=["relu", *GROUPS])
def test_small_with_other_activations(activation, tmp_path, monkeypatch):
    config = classifier(convnet("SmallConvNet", "RKO", SHAPES["mnist"], 10, activation))
    check_run(config, SHAPES["mnist"], tmp_path, monkeypatch)


def test_frozen_factors(tmp_path, monkeypatch):
    """BCOP-Fixed keeps what BCOP does."""
    net = convnet("SmallConvNet", "BCOP", SHAPES["mnist"], 10)
    net["[submodules]"]["conv_module"]["conv_module"]["frozen"] = True
    check_run(classifier(net), SHAPES["mnist"], tmp_path, monkeypatch)
    assert "bcop-fixed" in (tmp_path / "new" / "cfg.yaml").read_text()


def nearly_orthogonal(count, side):
    """Matrices that twenty steps make orthogonal, so that the limit and the iteration agree."""
    matrices = torch.randn(count, side, side, dtype=torch.float64)
    return torch.linalg.qr(matrices).Q + 0.05 * matrices


@pytest.mark.parametrize(("channels", "k"), [((3, 8, 5), 3), ((4, 4, 7), 1), ((6, 2, 9), 4)])
def test_bcop_of_any_size(channels, k):
    """Wide and tall kernels of every side, by themselves."""
    first, second, third = channels
    model = nn.Sequential(layers.BCOPConv2d(first, second, k), layers.BCOPConv2d(second, third, k)).double()
    n = [max(first, second), max(second, third)]
    weights = {}
    for name, width, out in zip(("conv9", "conv10"), n, (second, third), strict=True):
        weights[f"{name}.param_matrices"] = nearly_orthogonal(2 * k - 1, width)
        weights[f"{name}.mask"] = (torch.arange(width) < width // 2).double().repeat(2 * (k - 1), 1, 1)
        weights[f"{name}.bias"] = torch.zeros(out, dtype=torch.float64)
    original.load(model, weights)
    network = original.baked(model, weights)
    for index, name in enumerate(("conv9", "conv10")):
        expected = bcop(weights[f"{name}.param_matrices"], channels[index], channels[index + 1])
        assert torch.allclose(network.get_parameter(f"{index}.weight"), expected, rtol=0, atol=1e-10)
        assert torch.allclose(torch.as_tensor(model[index].weight), expected, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
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
    model = experiment.model.build(SHAPES["mnist"], 10, seed=3)
    assert load_best(model, tmp_path / "new") == record.kept_epoch == 7
    assert agrees(bake(model), oracle, SHAPES["mnist"])
    assert record.finished and record.settings["imported"]["file"] == "Sequential.pth"


@pytest.fixture
def old(tmp_path, monkeypatch):
    config = classifier(mlp([784, 16, 10]))
    return write(tmp_path / "old", config, Original(config["trainer"]["net"]).weights, monkeypatch)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_import_may_be_repeated_but_replaces_nothing(old, tmp_path):
    import_run(old, tmp_path / "new")
    first = files(tmp_path / "new")
    (tmp_path / "new" / "model.safetensors").unlink()  # as if killed before the last file
    import_run(old / "cfg.yaml", tmp_path / "new")
    assert files(tmp_path / "new") == first
    (tmp_path / "new" / "record.json").write_text("{}")
    with pytest.raises(ValueError, match="already holds a run, which is never overwritten"):
        import_run(old, tmp_path / "new")
    with pytest.raises(ValueError, match="is the folder to import from"):
        import_run(old, old)


def test_another_configuration_is_not_replaced(old, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "cfg.yaml").write_text("model: {architecture: mlp}\n")
    with pytest.raises(ValueError, match=r"describes another experiment \(.*\), which is never overwritten"):
        import_run(old, tmp_path / "new")


def test_an_evaluation_in_place_keeps_every_file(old, tmp_path):
    """The original's files stay, its results under a number; the second time nothing is imported."""
    (old / "results.yaml").write_text("accuracy: 0.5\n")
    before = files(old)
    arguments = ["--cfg", str(old / "cfg.yaml"), "--resume", "--test", "--no-attacks", "--quiet"]
    assert main_run(arguments, images=tmp_path) == 0
    after = files(old)
    assert after.pop(Path("results-1.yaml")) == before.pop(Path("results.yaml"))
    assert all(after[path] == data for path, data in before.items())
    assert main_run(arguments, images=tmp_path) == 0
    assert read(old / "results.yaml")["epoch"] == 7


def test_an_interrupted_import_in_place_goes_on(old):
    adopt(old)
    first = files(old)
    (old / "model.safetensors").unlink()
    adopt(old / "cfg.yaml")
    assert files(old) == first


def test_the_network_of_an_import_must_be_there(old, tmp_path):
    import_run(old, tmp_path / "new")
    (tmp_path / "new" / "model.safetensors").unlink()
    assert main_run(["--cfg", str(old / "cfg.yaml"), "--test", "--no-attacks"], images=tmp_path) == 0
    with pytest.raises(CheckpointError, match="the network of this run, is missing; import it again"):
        evaluate(RunFolder(tmp_path / "new"), [f"data.directory={tmp_path}"], attacks=False)


def test_a_folder_that_cannot_be_written_is_imported_elsewhere(old, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lconvnet.importing.runs.save_best", refusing)
    assert main_run(["--cfg", str(old / "cfg.yaml"), "--test", "--no-attacks"], images=tmp_path) == 2
    assert f"read-only; or evaluate a copy: lconvnet import {old} NEW" in capsys.readouterr().err


def refusing(*_):
    raise atomic.WriteError("read-only")


def main_run(arguments, *, images):
    """The original's command on twenty images instead of MNIST."""
    table = {"image": [encoded(i) for i in range(40)], "label": [i % 10 for i in range(40)]}
    for part in ("train", "test"):
        path = images / "mnist" / f"{part}-00000-of-00001.parquet"
        path.parent.mkdir(exist_ok=True)
        parquet.write_table(pa.table(table), path)
        table = {name: column[:20] for name, column in table.items()}
    return invoke(run, [*arguments, "--data-dir", str(images)])


def encoded(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (28, 28), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": f"{seed}.png"}


BAD_CHANGES = {"data.limit=5": "was fixed when the run", "evaluation.eps=[-1]": "evaluation.eps"}


@pytest.mark.parametrize("change", BAD_CHANGES)
@pytest.mark.parametrize("command", ["evaluate", "run"])
def test_what_an_evaluation_cannot_have_is_refused_before_anything_is_added(command, change, old, capsys):
    before = files(old)
    place = ["evaluate", str(old)] if command == "evaluate" else ["--cfg", str(old / "cfg.yaml"), "--test"]
    assert invoke(app if command == "evaluate" else run, [*place, "--set", change]) == 2
    assert BAD_CHANGES[change] in capsys.readouterr().err
    assert files(old) == before


@pytest.mark.parametrize("name", ["other-run", "cfg.yml"])
def test_a_mistyped_folder_is_not_another_run(name, old, tmp_path, capsys):
    """Though the folder around it holds one."""
    mistyped, before = old / name, files(old)
    with pytest.raises(ValueError, match=rf"{name} does not exist; name the folder of a run"):
        import_run(mistyped, tmp_path / "new")
    for arguments in (["evaluate", str(mistyped)], ["import", str(mistyped), str(tmp_path / "new")]):
        assert invoke(app, arguments) == 2
        assert f"{mistyped} does not exist" in capsys.readouterr().err
    assert files(old) == before and not (tmp_path / "new").exists()


def test_imported_weights_are_not_trained_further(old, tmp_path, capsys):
    """Neither in place, where the original would have gone on, nor in the folder of the import."""
    import_run(old, tmp_path / "new")
    for folder in (old, tmp_path / "new"):
        assert invoke(run, ["--cfg", str(folder / "cfg.yaml"), "--resume"]) == 2
        assert "holds weights imported from Sequential.pth, which cannot be trained" in capsys.readouterr().err


def test_an_imported_critic_is_not_estimated_with(tmp_path, monkeypatch, capsys):
    net = convnet("DCGANDiscriminator", "NonexpansiveConv2d", (3, 32, 32), 1)
    config = critic(net)
    folder = write(tmp_path / "old", config, {}, monkeypatch)
    monkeypatch.setattr("lconvnet.importing.original.load", lambda model, weights: None)
    monkeypatch.setattr("lconvnet.importing.original.baked", lambda model, weights: bake(model))
    monkeypatch.setattr("lconvnet.importing.original.unfinished", lambda model, weights: 0.0)
    monkeypatch.setattr("lconvnet.importing.pickles.state_dict", lambda content, path: content)
    bound_of = lambda network, **_: Bound(1.0, None, (), fingerprint=fingerprint(network))  # noqa: E731
    monkeypatch.setattr("lconvnet.importing.runs.lipschitz_bound", bound_of)
    before = sorted(folder.rglob("*"))
    for command in (["--resume", "--test"], ["--test"], ["--resume"]):
        assert invoke(run, ["--cfg", str(folder / "cfg.yaml"), *command]) == 2
        error = capsys.readouterr().err
        assert "use its model.safetensors" in error and "cannot be evaluated without the samples" in error
    assert sorted(folder.rglob("*")) == before
    import_run(folder, tmp_path / "new")
    before = sorted((tmp_path / "new").rglob("*"))
    assert invoke(app, ["evaluate", str(tmp_path / "new")]) == 2
    assert "DCGANDiscriminator.pth, which are a critic's, and cannot be evaluated" in capsys.readouterr().err
    assert sorted((tmp_path / "new").rglob("*")) == before


def test_the_command_says_what_it_made(old, tmp_path, capsys):
    assert invoke(app, ["import", str(old), str(tmp_path / "new"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["epoch"], shown["model"]) == (7, str(tmp_path / "new" / "model.safetensors"))
    assert 0.999 < shown["bound"] < 1.0001 and shown["unfinished"] < 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("1.linear1.weight"), r"1\.linear1 has bias; Orthogonal keeps weight, bias"),
        (lambda w: w.update({"1.linear0.mask": torch.ones(2)}), r"1\.linear0 has weight, bias, mask; Orthogonal keeps"),
        (
            lambda w: w.update({"extra.weight": torch.ones(2, 2)}),
            r"1 convolutions \(extra\).* another architecture",
        ),
        (lambda w: w.update({"1.linear1.weight": torch.ones(10, 15)}), r"kernel\.V has shape \(10, 15\), expected"),
        (lambda w: w.update({"1.linear1.bias": torch.full((10,), torch.inf)}), r"holds NaN or infinite values"),
    ],
)
def test_weights_of_another_network_are_refused(change, message, tmp_path, monkeypatch):
    config = classifier(mlp([784, 16, 10]))
    weights = Original(config["trainer"]["net"]).weights
    change(weights)
    folder = write(tmp_path / "old", config, weights, monkeypatch)
    with pytest.raises(ValueError, match=rf"Sequential\.pth: .*{message}"):
        import_run(folder, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("named", "theirs"),
    [
        # SVCM's network is projected when it is built
        pytest.param(*pair, marks=[pytest.mark.slow] * (pair[0] == "SVCM" and pair[1] != "BCOP"))
        for pair in itertools.permutations(METHODS, 2)
    ],
)
def test_weights_of_another_method_are_refused(named, theirs, tmp_path, monkeypatch):
    """What a method keeps tells it from every other one: no configuration gives weights another meaning."""
    weights = Original(convnet("SmallConvNet", theirs, SHAPES["mnist"], 10)).weights
    config = classifier(convnet("SmallConvNet", named, SHAPES["mnist"], 10))
    folder = write(tmp_path / "old", config, weights, monkeypatch)
    with pytest.raises(ValueError, match=r"conv1\.conv(:| has)"):
        import_run(folder, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("reason", ["a matrix of zeros", "no bound"])
def test_an_import_that_fails_leaves_nothing(reason, tmp_path, monkeypatch):
    config = classifier(mlp([784, 16, 10]))
    weights = Original(config["trainer"]["net"]).weights
    if reason == "no bound":
        monkeypatch.setattr("lconvnet.importing.runs.lipschitz_bound", unbounded)
    else:
        weights["1.linear1.weight"] *= 0
    folder = write(tmp_path / "old", config, weights, monkeypatch)
    with pytest.raises(ValueError, match=reason):
        import_run(folder, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def unbounded(*_, **__):
    raise ValueError("linear1 has no bound")


def test_dense_layers_may_come_first():
    """Only the order within convolutions, and within dense layers, tells layers apart."""
    net = convnet("SmallConvNet", "RKO", SHAPES["mnist"], 10)
    oracle = Original(net)
    weights = dict(sorted(oracle.weights.items(), key=lambda item: not item[0].startswith("linear")))
    assert next(iter(weights)).startswith("linear1")
    model = models.small_convnet(1, 28, 10, conv=layers.RKOConv2d, linear=layers.OrthogonalLinear)
    original.load(model, weights)
    assert agrees(original.baked(model, weights), oracle, SHAPES["mnist"])


@pytest.mark.parametrize("place", ["1.layers.{}", "module.1.{}", "{}"])
def test_layers_of_a_dense_network_may_have_any_name(place):
    """In a network without convolutions only the order tells; what is called a convolution is one all the same."""
    net = mlp([784, 16, 12, 10])
    oracle = Original(net)
    weights = {}
    for index, name in enumerate(oracle.dense):
        weights |= {f"{place.format(index)}.{key}": oracle.weights[f"{name}.{key}"] for key in ("weight", "bias")}
    model = models.mlp(784, 10, widths=(16, 12))
    original.load(model, weights)
    assert agrees(original.baked(model, weights), oracle, SHAPES["mnist"])
    with pytest.raises(ValueError, match=r"weights of 1 convolutions \(conv\)"):
        original.load(model, weights | {"conv.weight": torch.ones(1, 1)})


def test_a_configuration_of_another_name(old, tmp_path, capsys):
    """It is imported; in place its folder would hold none that a run can be told by."""
    config = old / "cfg.yaml"
    config = config.rename(config.with_name("old.yaml"))
    assert load_record(import_run(config, tmp_path / "new").path.parent).kept_epoch == 7
    before = files(old)
    assert invoke(run, ["--cfg", str(config), "--resume", "--test"]) == 2
    assert "old.yaml is not named cfg.yaml, as it must be in place; or lconvnet import" in capsys.readouterr().err
    assert files(old) == before


@pytest.mark.parametrize("command", ["import", "evaluate", "run"])
def test_an_unknown_type_is_named_with_the_file_that_has_it(command, old, tmp_path, capsys):
    config = old / "cfg.yaml"
    config.write_text(config.read_text().replace("BjorckLinear", "CayleyLinear"))
    before = files(old)
    places = {"import": [str(old), str(tmp_path / "new")], "evaluate": [str(old)]}
    if command == "run":
        assert invoke(run, ["--cfg", str(config), "--resume", "--test", "--no-attacks"]) == 2
    else:
        assert invoke(app, [command, *places[command]]) == 2
    place = "trainer.net.<list>[1].linear_module.<type> is 'CayleyLinear'; did you mean 'BjorckLinear'? Allowed:"
    assert capsys.readouterr().err.startswith(f"error: {config}: {place}")
    assert files(old) == before and not (tmp_path / "new").exists()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_as_they_were_saved_elsewhere(dtype, prefix, legacy, tmp_path, monkeypatch):
    """From a GPU that this machine has not, of a network in parallel, in either precision and format."""
    config = classifier(mlp([784, 16, 10]))
    oracle = Original(config["trainer"]["net"])
    weights = {f"{prefix}{name}": value.to(dtype) for name, value in oracle.weights.items()}
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:1")
    old = write(tmp_path / "old", config, weights, monkeypatch, legacy=legacy)
    assert b"cuda:1" in (old / "checkpoints" / "Sequential.pth").read_bytes()
    assert agrees(load(import_run(old, tmp_path / "new").path), oracle, SHAPES["mnist"])


def test_a_mask_of_another_rank_is_refused():
    """Only projectors of half rank are ours; others would load silently as another network."""
    net = convnet("SmallConvNet", "BCOP", SHAPES["mnist"], 10)
    weights = Original(net).weights
    weights["conv2.conv.mask"][0, 0, 3] = 0
    model = models.small_convnet(1, 28, 10, linear=layers.OrthogonalLinear)
    with pytest.raises(ValueError, match=r"mask does not keep the first 32 of 64 columns"):
        original.load(model, weights)


def test_checkpoints_are_told_apart_by_the_name_of_the_network(old, tmp_path):
    path = old / "checkpoints" / "Sequential.pth"
    path.with_name("backup.pth").write_bytes(b"")
    import_run(old, tmp_path / "new")
    path.rename(path.with_name("other.pth"))
    with pytest.raises(ValueError, match=r"holds backup\.pth, other\.pth; the weights are expected in Sequential\.pth"):
        import_run(old, tmp_path / "third")


def test_what_the_originals_iteration_left_is_left(tmp_path, monkeypatch, capsys):
    """Singular values far below the largest one, which twenty steps do not take to 1: the network is as it was, and
    certified as it is; our own kernels do not tell such a direction from a vanishing one, and lose more of it."""
    config = classifier(mlp([784, 16, 10]))
    oracle = Original(config["trainer"]["net"])
    weight = oracle.weights["1.linear0.weight"]
    weight[3] *= 1e-5
    found = import_run(write(tmp_path / "old", config, oracle.weights, monkeypatch), tmp_path / "new")
    assert invoke(app, ["import", str(tmp_path / "old"), str(tmp_path / "new")]) == 0
    assert "Björck steps left singular values up to 1.0 from 1" in capsys.readouterr().err
    values = torch.linalg.svdvals(found.network.get_parameter("linear1.weight").double())
    assert values[0] < 1 + 1e-6 and values[-1] < 0.1
    assert agrees(load(found.path), oracle, SHAPES["mnist"])
    model = load_config(tmp_path / "new" / "cfg.yaml").model.build(SHAPES["mnist"], 10, seed=0)
    load_best(model, tmp_path / "new")
    own = torch.linalg.svdvals(bake(model).get_parameter("linear1.weight"))
    assert own[-1] < values[-1] and own[-2] > 1 - 1e-4


@pytest.mark.parametrize("steps", [0, 3, 50])
def test_another_number_of_steps_is_refused(steps, tmp_path, monkeypatch):
    """An import cuts the iteration off after twenty: other networks would come out than the configuration's."""
    config = classifier(mlp([784, 16, 10]))
    config["trainer"]["net"]["<list>"][1]["linear_module"] = {**LINEAR, "bjorck_iters": steps}
    folder = write(tmp_path / "old", config, Original(config["trainer"]["net"]).weights, monkeypatch)
    with pytest.raises(ValueError, match=rf"linear_module\.bjorck_iters is {steps}; of BjorckLinear only 20 can be"):
        import_run(folder, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def scaled_by_power_iteration(weights, x, seed):
    """The dense network as the original computes it, from one random start of the power iteration in every layer."""
    generator = torch.Generator().manual_seed(seed)
    x = x.double().flatten(1)
    for index in range(3):
        W = weights[f"1.linear{index}.weight"].double()
        x = x @ bjorck(W, power_iterated(W, generator)).mT + weights[f"1.linear{index}.bias"].double()
        a, b = x.chunk(2, 1)
        x = torch.cat([torch.maximum(a, b), torch.minimum(a, b)], 1) if index < 2 else x
    return x


@pytest.mark.parametrize("short", [False, True])
def test_outputs_with_the_originals_power_iteration(short, tmp_path, monkeypatch):
    """The same to float32 where the iteration has converged; where it has not, up to the random start: another one
    changes the original's own outputs by as much again. An import tells the two apart."""
    config = classifier(mlp([784, 64, 64, 10]))
    weights = Original(config["trainer"]["net"]).weights
    if short:
        weights["1.linear1.weight"][::2] *= 1e-3
    found = import_run(write(tmp_path / "old", config, weights, monkeypatch), tmp_path / "new")
    x = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    outputs = [scaled_by_power_iteration(weights, x, seed) for seed in (0, 1)]
    largest = outputs[0].abs().max()
    apart = float((outputs[0] - outputs[1]).abs().max() / largest)
    difference = float((found.network(x).double() - outputs[0]).abs().max() / largest)
    assert difference < (0.02 if short else 1e-5)
    assert (found.unfinished > 1e-3) == short
    assert (apart > 1e-5) == short


def test_an_old_family_is_generated_in_our_grammar(reference_dir, tmp_path, capsys):
    """Its template gives the published paths, each with a configuration of ours."""
    shutil.copyfile(reference_dir / "runs" / "wde_stl10" / "template.yaml", tmp_path / "template.yaml")
    assert invoke(app, ["generate", str(tmp_path)]) == 0
    found = sorted(path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("cfg.yaml"))
    paths = (reference_dir / "run_paths.txt").read_text().split()
    assert found == sorted(p.removeprefix("runs/wde_stl10/") for p in paths if p.startswith("runs/wde_stl10/"))
    assert read(tmp_path / found[0] / "cfg.yaml")["task"] == "wasserstein"
