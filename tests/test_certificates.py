"""The commands `lconvnet certify | verify` on images of a data set."""

import json
import time
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lconvnet import bake, certified_accuracy, certify, cli, data, lipschitz_bound, models, save
from lconvnet import load as load_network
from lconvnet.experiments import execute
from lconvnet.experiments.loading import load
from lconvnet.experiments.run_folder import RunFolder

RUNS = Path(__file__).resolve().parents[1] / "runs"


@pytest.fixture
def command(capsys):
    def run(*arguments):
        code = cli.invoke(cli.app, [str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An untrained network for the embedded digits."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    torch.manual_seed(0)
    save(bake(models.mlp(784, 10, widths=(16,))), path, input_shape=(1, 28, 28))
    return path


@pytest.mark.parametrize(("level", "first"), [("estimate", "estimated"), ("sound", "certified")])
def test_the_command_says_why_a_radius_is_0(command, tmp_path, level, first):
    """Logits (x, 0): the black image is a tie."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False)).requires_grad_(False).eval()
    network[1].weight.copy_(torch.tensor([[1.0], [0.0]]))
    save(network, tmp_path / "model.safetensors", input_shape=(1, 1, 1))
    images = [tmp_path / f"{name}.npy" for name in ("white", "black")]
    for value, path in zip((1.0, 0.0), images, strict=True):
        np.save(path, np.full((1, 1, 1), value, dtype=np.float32))
    asked = ("certify", tmp_path / "model.safetensors", *images, "--level", level)
    code, text, err = command(*asked, "--json")
    assert code == 0, err
    assert [row["reason"] for row in json.loads(text)["certificates"]] == [first, "tie"]
    shown = command(*asked)[1].splitlines()
    assert "radius 0.0000 (tie)" in shown[1] and "(" not in shown[0]
    if level == "sound":
        command(*asked, "--out", tmp_path / "out")
        (written,) = (tmp_path / "out").iterdir()
        assert "reason" not in json.loads(written.read_text()), "the file's format is fixed"


def test_certificates_of_a_split_are_written_and_verified(command, model, tmp_path):
    pytest.importorskip("flint", reason="needs python-flint: pip install 'lconvnet[verify]'")
    out = tmp_path / "certificates"
    asked = ("certify", model, "--data", "digits", "--split", "test", "--first", 5, "--level", "sound", "--out", out)
    code, text, err = command(*asked, "--eps", 1e-6, "--json")
    assert code == 0, err
    shown = json.loads(text)
    assert shown["level"] == "sound" and len(shown["certificates"]) == 5
    files = sorted(out.glob("*.json"))
    assert len(files) == shown["certificates_written"] == sum(row["radius"] > 0 for row in shown["certificates"])
    written = json.loads(files[0].read_text())
    assert written["source"] == {"image": "digits/test/0", "true_label": data.load("digits").test.labels[0].item()}
    assert float.fromhex(written["radius"]) == shown["certificates"][0]["radius"]
    code, text, _ = command("verify", out, model)
    assert code == 0 and text.count("proved: label") == len(files) and text.count("(sound)") == len(files)
    written["radius"] = (float.fromhex(written["radius"]) * 1.5).hex()
    files[0].write_text(json.dumps(written))
    code, text, _ = command("verify", files[0], model)
    assert code == 4 and "NOT PROVED: the margin to class" in text
    code, text, err = command("verify", files[0], tmp_path / "nothing.safetensors")
    assert code == 2 and err.startswith("error: ") and not text
    before = {file: file.read_bytes() for file in files[1:]}
    assert command(*asked)[0] == 0
    assert all(file.read_bytes() == content for file, content in before.items())


def test_certificates_of_something_else_are_kept(command, model, tmp_path):
    out, other = tmp_path / "certificates", tmp_path / "other.safetensors"
    save(bake(models.mlp(784, 10, widths=(8,))), other, input_shape=(1, 28, 28))
    asked = ("--data", "digits", "--out", out)
    assert command("certify", model, *asked, "--first", 3)[0] == 0
    before = {file: file.read_bytes() for file in out.iterdir()}
    for changed in (
        (other, *asked, "--first", 3),
        (other, *asked, "--first", 1),
        (model, *asked, "--first", 3, "--level", "sound"),
        (model, *asked, "--first", 3, "--split", "train"),
    ):
        code, _, err = command("certify", *changed)
        assert code == 2 and "is of another network, level or image; name another folder" in err
    assert {file: file.read_bytes() for file in out.iterdir()} == before
    for count in (2, 4):
        assert command("certify", model, *asked, "--first", count)[0] == 0
    (out / "00000.json").write_text("{")
    assert command("certify", model, *asked, "--first", 1)[0] == 2


def test_a_folder_is_no_image(command, model, tmp_path):
    code, _, err = command("certify", model, tmp_path)
    assert code == 2 and "is a folder; name its files, or the folder with --data" in err


def test_levels_are_named(command, model):
    radii = []
    for level in ("estimate", "analytic", "sound"):
        code, text, _ = command("certify", model, "--data", "digits", "--first", 3, "--level", level, "--eps", 0.0)
        assert code == 0 and f"level {level}," in text
        assert ("not certified at 0.0" in text) is (level == "estimate")
        assert ("nothing is certified (but the Lipschitz bound" in text) is (level == "estimate")
        radii.append(text)
    assert len(set(radii)) == 3


@pytest.mark.parametrize("level", ["estimate", "analytic", "sound"])
def test_the_radius_of_a_constant_network_is_shown_as_it_is_written(command, tmp_path, level):
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).eval().requires_grad_(False)
    network[1].weight.zero_()
    save(network, tmp_path / "model.safetensors", input_shape=(1, 28, 28))
    out = () if level == "estimate" else ("--out", tmp_path / "out")
    asked = ("certify", tmp_path / "model.safetensors", "--data", "digits", "--first", 1, "--level", level, "--json")
    code, text, err = command(*asked, *out)
    assert code == 0, err
    radius = json.loads(text)["certificates"][0]["radius"]
    assert radius >= 56.0  # twice the diagonal of [0, 1]^784
    if out:
        assert float.fromhex(json.loads((tmp_path / "out" / "00000.json").read_text())["radius"]) == radius


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "name image files, or a data set with --data"),
        (("image.png", "--data", "digits"), "and not both"),
        (("--data", "digits", "--split", "all"), "--split=all is none of train, validation, test"),
        (("--data", "digits", "--level", "certain"), "Invalid value for '--level'"),
        (("--data", "digits", "--first", 0), "Invalid value for '--first'"),
        (("--data", "digits", "--eps", -1), "eps=-1.0 must be a finite l2 radius"),
        (("--data", "digits", "--eps", "nan"), "'nan' is not a finite number"),
        (("--data", "digits", "--level", "estimate", "--out", "out"), "level='estimate' certifies nothing"),
    ],
)
def test_certify_refuses(command, model, arguments, line):
    code, text, err = command("certify", model, *arguments)
    assert code == 2 and not text
    assert line in err


def test_a_network_of_another_size_of_image(command, tmp_path):
    path = tmp_path / "model.safetensors"
    save(bake(models.mlp(16, 2, widths=(4,))), path, input_shape=(1, 4, 4))
    code, _, err = command("certify", path, "--data", "digits")
    assert code == 2 and "images of shape (1, 28, 28), the network takes (1, 4, 4)" in err


@pytest.mark.slow
def test_sound_certified_accuracy_on_mnist(tmp_path, data_dir):
    """Small, six epochs: in float64 rounding costs one example of 10,000 at most, in float32 about one in a hundred."""
    cfg = RUNS / "mnist-six-epochs" / "offset-cross-entropy" / "cfg.yaml"
    experiment = load(cfg, [f"data.directory={json.dumps(str(data_dir))}"])
    single = load_network(execute.train(experiment, RunFolder(tmp_path), progress=False).path)
    double = deepcopy(single).double()
    test = data.load("mnist", directory=data_dir).test
    images, labels = data.batch(test, range(len(test)))
    for network, most in ((double, 1), (single, 200)):
        bound = lipschitz_bound(network, input_shape=(1, 28, 28), diagnose=False)
        analytic = certify(network, images, bound=bound)
        start = time.process_time()
        sound = certify(network, images, bound=bound, level="sound")
        assert time.process_time() - start < 10
        for eps in np.linspace(0.1, 2.0, 20):
            lost = [round(len(test) * certified_accuracy(one, labels, float(eps))) for one in (analytic, sound)]
            assert 0 <= lost[0] - lost[1] <= most
            quick = certify(network, images, bound=bound, level="sound", eps=(float(eps),))
            assert round(len(test) * certified_accuracy(quick, labels, float(eps))) == lost[1]


@pytest.mark.parametrize("name", ["o[/x]", "o[bold]y", ":smile:", "\x1b[31mred\x07", "\u202eback", "a\nb"])
def test_a_name_is_shown_as_it_is(command, model, tmp_path, name):
    """No markup, no emoji, and nothing that a terminal would obey."""
    np.save(tmp_path / "x.npy", np.zeros((1, 28, 28), np.float32))
    image = (tmp_path / "x.npy").rename(tmp_path / f"{name.replace('/', '')}.npy")
    code, text, err = command("certify", model, image, "--out", tmp_path / name)
    assert (code, err) == (0, "")
    shown = name.encode("unicode_escape").decode()
    assert text.splitlines()[-1].endswith(shown)
    assert all(line.isprintable() for line in text.splitlines())
    code, text, err = command("certify", tmp_path / name / "nothing.safetensors", image)
    assert (code, text) == (2, "") and err.count("\n") == 1 and err.strip().isprintable()


def test_a_radius_may_be_a_fraction(command, model, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((1, 28, 28), np.float32))
    code, text, _ = command("certify", model, tmp_path / "x.npy", "--eps", "36/255", "--json")
    assert code == 0 and list(json.loads(text)["certificates"][0]["certified"]) == [str(36 / 255)]
    for given in ("nan", "1_0", "1/0", "x", "", "1e999"):
        code, text, err = command("certify", model, tmp_path / "x.npy", "--eps", given)
        assert (code, text) == (2, "") and err.count("\n") == 1 and ("finite number" in err or "by zero" in err)
