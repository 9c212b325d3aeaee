"""The commands: what they print, their exit codes, and one clear line for whatever a user can put right."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import lconvnet
import lconvnet.experiments.execute as execute
from lconvnet import atomic, cli, saving
from lconvnet import run as original
from lconvnet.experiments.robustness import ContradictionError

CONFIG = {
    "data": {"name": "digits", "limit": 300, "test": 60},
    "model": {"architecture": "mlp", "widths": [16]},
    "loss": {"name": "offset-cross-entropy", "eps": 0.3},
    "optimizer": {"name": "adam", "lr": 0.01},
    "training": {"epochs": 1},
    "evaluation": {"eps": [0.1, 0.3], "attacks": [{"name": "fgsm"}]},
}


class Command:
    """Runs commands in this process and keeps what they print."""

    def __init__(self, capsys):
        self.capsys = capsys

    def __call__(self, *arguments, application=cli.app) -> tuple[int, str, str]:
        code = cli.invoke(application, [str(argument) for argument in arguments])
        captured = self.capsys.readouterr()
        return code, captured.out, captured.err

    def refused(self, *arguments, application=cli.app) -> str:
        """The one line of an error of the user's."""
        code, out, err = self(*arguments, application=application)
        assert (code, out) == (2, ""), err
        assert err.startswith("error: ")
        assert err.count("\n") == 1, f"one line, not {err!r}"
        return err


@pytest.fixture
def command(capsys) -> Command:
    return Command(capsys)


def write(path: Path, **changes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(CONFIG | changes))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("run")
    assert cli.invoke(cli.app, ["train", str(write(path / "cfg.yaml")), "--quiet"]) == 0
    return path


def test_train_prints_a_sentence_or_one_line_of_json(command, tmp_path):
    cfg = write(tmp_path / "cfg.yaml")
    code, out, err = command("train", cfg, "--json", "--out", tmp_path / "out", "--set", "seed=2")
    assert code == 0, err
    (line,) = out.splitlines()
    found = json.loads(line)
    assert set(found) == {"epoch", "chosen_by", "validation", "bound", "level", "model", "run"}
    assert set(found["validation"]["certified"]) == {"0.1", "0.3"}
    assert "epoch 1/1" in err
    resolved = yaml.safe_load((tmp_path / "out" / "cfg.yaml").read_text())
    assert (resolved["seed"], resolved["training"]["batch_size"]) == (2, 128)
    assert not (tmp_path / "checkpoints").exists(), "with --out, the folder of the configuration is left alone"
    assert Path(found["model"]).is_file()


def test_quiet_prints_the_result_only(command, tmp_path):
    code, out, err = command("train", write(tmp_path / "cfg.yaml"), "--quiet")
    assert (code, err) == (0, "")
    assert "kept epoch 1 of 1 by certified accuracy at eps 0.3 on the validation images (clean" in out
    assert re.search(r"certified@0.3 .*\); Lipschitz bound 1\.0", out)


def test_evaluate(command, run):
    code, out, err = command("evaluate", run, "--json")
    assert code == 0, err
    found = json.loads(out)
    results = yaml.safe_load((run / "results.yaml").read_text())
    assert found["clean"] == results["accuracy"]
    assert found["certified"] == {
        "0.1": results["adv_robustness"][0.1]["lb"],
        "0.3": results["adv_robustness"][0.3]["lb"],
    }
    assert found["bound"] == results["sanity_check/layer-l-constant"]
    assert set(found["attacks"]["0.3"]) == {"fgsm-ub", "fgsm-ub-dist", "fgsm-ub-success-rate", "fgsm-ub-zero-gradient"}
    code, out, _ = command("evaluate", run / "cfg.yaml", "--no-attacks", "--set", "evaluation.eps=[0.2]")
    assert code == 0
    assert re.search(r"0\.2 .*%", out)
    assert "under" not in out
    found = json.loads(command("evaluate", run, "--no-attacks", "--json", "--quiet")[1])
    assert found["attacks"] == {}


def test_the_originals_command(command, tmp_path):
    cfg = write(tmp_path / "cfg.yaml")
    line = command.refused("--cfg", cfg, "--test", application=original.app)
    assert "holds no trained run" in line
    code, out, _ = command("--cfg", cfg, "--json", application=original.app)
    assert code == 0
    assert json.loads(out)["run"] == str(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    for flags in (["--test", "--no-attacks"], ["--resume", "--test"]):
        code, out, _ = command("--cfg", cfg, *flags, "--json", application=original.app)
        assert code == 0
        assert set(json.loads(out)["certified"]) == {"0.1", "0.3"}
        assert (tmp_path / "results.yaml").is_file()
    assert (tmp_path / "model.safetensors").read_bytes() == weights, "--test never trains and never deletes"
    assert "already holds a run" in command.refused("--cfg", cfg, application=original.app)
    assert command("--cfg", cfg, "--resume", application=original.app)[0] == 0
    assert "Missing option '--cfg'" in command.refused("--test", application=original.app)


def test_certify(command, run, tmp_path):
    pixels = np.zeros((28, 28), dtype=np.uint8)
    pixels[4:24, 12:15] = 255
    Image.fromarray(pixels).save(tmp_path / "one.png")
    Image.fromarray(np.stack([pixels] * 3, -1)).save(tmp_path / "colour.png")
    np.save(tmp_path / "one.npy", pixels[None].astype(np.float32) / 255)
    files = [tmp_path / name for name in ("one.png", "colour.png", "one.npy")]
    code, out, err = command("certify", run, *files, "--eps", "1e-9", "--eps", "100", "--json")
    assert code == 0, err
    rows = json.loads(out)["certificates"]
    assert [row["image"] for row in rows] == [str(file) for file in files]
    # The same pixels three times: grey, colour and floats must give the same certificate to the last digit.
    assert len({(row["label"], row["margin"], row["radius"]) for row in rows}) == 1
    assert rows[0]["certified"] == {"1e-09": True, "100.0": False}
    code, out, _ = command("certify", run / "model.safetensors", files[0])
    assert code == 0
    assert re.search(r"one\.png: label \d, margin .*, radius", out)
    assert "level analytic" in out


@pytest.fixture(scope="module")
def pets(tmp_path_factory) -> tuple[Path, Path]:
    """A folder of two classes, and a run on it with a division, a seed and a size of its own."""
    top, draw = tmp_path_factory.mktemp("pets"), np.random.default_rng(0)
    for name, light in (("cat", 0), ("dog", 60)):
        (top / "pets" / name).mkdir(parents=True)
        for i in range(30):
            pixels = draw.integers(light, light + 196, (9, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(top / "pets" / name / f"{i}.png")
    data = {"name": str(top / "pets"), "test": 0.4, "validation": 6, "image_size": 6}
    config = write(top / "run/cfg.yaml", data=data, seed=3, loss={"name": "hinge", "eps": 0.05})
    assert cli.invoke(cli.app, ["train", str(config), "--quiet"]) == 0
    return top / "pets", top / "run"


def test_certify_divides_a_set_as_the_run_did(command, pets, tmp_path, monkeypatch):
    """Else most of what it calls test images were trained on."""
    folder, run = pets
    splits = lconvnet.data.load(folder, test=0.4, validation=6, image_size=6, seed=3)
    network = lconvnet.load(run / "model.safetensors")
    monkeypatch.chdir(folder.parent)
    for split, part in (("test", splits.test), ("validation", splits.validation), ("train", splits.train)):
        images, labels = lconvnet.data.batch(part, range(len(part)))
        found = lconvnet.certify(network, images)
        for model, name in ((run, folder), (run / "model.safetensors", "pets")):
            code, out, err = command("certify", model, "--data", name, "--split", split, "--eps", "0.05", "--json")
            assert code == 0, err
            said = json.loads(out)
            rows = said["certificates"]
            assert [row["radius"] for row in rows] == found.radius.tolist()
            assert [row["correct"] for row in rows] == (found.label == labels).tolist()
            assert [row["true_class"] for row in rows] == [splits.class_names[label] for label in labels]
            assert [row["image"] for row in rows] == list(part.files)
            assert all((folder / row["image"]).parent.name == row["true_class"] for row in rows)
            assert said["accuracy"] == (found.label == labels).double().mean().item()
            assert said["certified_accuracy"] == {"0.05": lconvnet.certified_accuracy(found, labels, 0.05)}
            assert "note" not in said
    assert len(splits.test) == 24


def test_the_radius_of_the_loss_chooses_the_epoch_whatever_radii_are_reported(command, pets, tmp_path):
    _, run = pets
    record = json.loads((run / "record.json").read_text())
    assert record["settings"]["eps"] == [0.05, 0.3, 0.1]
    assert record["chosen_by"] == "certified accuracy at eps 0.05 on the validation images"
    code, out, err = command("evaluate", run, "--no-attacks")
    assert code == 0, err
    assert "epoch chosen on 6 others (certified accuracy at eps 0.05 on the validation images)" in out
    cfg = write(tmp_path / "cfg.yaml", loss={"name": "hinge", "eps": 0.05})
    code, out, err = command("train", cfg, "--quiet", "--set", "training.select_eps=0.1", "--out", tmp_path / "out")
    assert code == 0, err
    assert "by certified accuracy at eps 0.1 on the validation images" in out


def test_certify_shows_what_is_true(command, pets):
    folder, run = pets
    code, out, err = command("certify", run, "--data", folder, "--eps", "0.05")
    assert code == 0, err
    assert set(re.findall(r"label \d \((?:cat|dog)\) \((right|wrong)", out)) <= {"right", "wrong"}
    assert out.count("(right)") + out.count("(wrong, true label ") == 24
    right = out.count("(right)")
    assert f"24 images: accuracy {right / 24:.2%}, certified " in out


def test_certify_refuses_or_tells_what_no_run_divided(command, pets, tmp_path):
    folder, run = pets
    copy = tmp_path / "again"
    shutil.copytree(run, copy)
    changed = tmp_path / "pets"
    shutil.copytree(folder, changed)
    code, out, err = command("certify", copy, "--data", changed, "--json")  # the same images elsewhere: the same parts
    assert code == 0, err
    assert len(json.loads(out)["certificates"]) == 24
    assert "note" not in json.loads(out)
    Image.new("L", (8, 9)).save(folder / "cat/extra.png")
    try:
        assert re.search(r"was trained on other images", command.refused("certify", run, "--data", folder))
    finally:
        (folder / "cat/extra.png").unlink()
    Image.new("L", (8, 9)).save(changed / "cat/extra.png")
    code, out, err = command("certify", run, "--data", changed, "--first", 2, "--json")
    assert code == 0, err
    assert "is not the set that" in json.loads(out)["note"]
    (changed / "dog").rename(changed / "horse")
    assert re.search(
        r"has the classes cat, horse, the network knows cat, dog", command.refused("certify", run, "--data", changed)
    )
    shutil.copy(run / "model.safetensors", tmp_path / "alone.safetensors")
    line = command.refused("certify", tmp_path / "alone.safetensors", "--data", folder)
    assert re.search(r"has images of shape \(1, 9, 8\), the network takes \(1, 6, 6\)", line)


def test_certify_says_where_no_run_tells_how_images_were_divided(command, run, tmp_path):
    shutil.copy(run / "model.safetensors", tmp_path / "alone.safetensors")
    code, out, err = command("certify", tmp_path / "alone.safetensors", "--data", "digits", "--first", 5, "--json")
    assert code == 0, err
    assert json.loads(out)["note"].startswith("no run says how the images were divided")


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("missing.png", None, "does not exist"),
        ("text.png", b"hello", "text.png"),
        ("empty.png", b"", "empty.png"),
        ("small.png", np.zeros((8, 8), np.uint8), "small.png"),
        ("nan.npy", np.full((1, 28, 28), np.nan, np.float32), "has NaN or values outside"),
        ("large.npy", np.full((1, 28, 28), 255.0), "has NaN or values outside"),
        ("shape.npy", np.zeros((28, 28)), r"of shape \(28, 28\); the network takes floats"),
        ("bytes.npy", np.zeros((1, 28, 28), np.uint8), "is uint8 of shape"),
        ("text.npy", b"hello", "is not a readable .npy file"),
        ("pickle.npy", np.array([{}], dtype=object), "is not a readable .npy file"),
    ],
)
def test_certify_refuses_bad_images(command, run, tmp_path, name, content, line):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None and path.suffix == ".npy":
        np.save(path, content)
    elif content is not None:
        Image.fromarray(content).save(path)
    assert re.search(line, command.refused("certify", run, path))


def test_certify_refuses_bad_models(command, tmp_path):
    image = tmp_path / "image.png"
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(image)
    model = tmp_path / "model.safetensors"
    assert "is not a file" in command.refused("certify", model, image)
    torch.save({"weight": torch.zeros(1)}, model)
    assert "holds pickled code, which is never loaded" in command.refused("certify", model, image)
    model.write_bytes(b"\x00" * 10)
    assert "is truncated" in command.refused("certify", model, image)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10)).eval()
    saving.save(network, model, input_shape=(1, 28, 28), class_names=tuple("abcdefghij"))
    forged = saving.describe(model).model_copy(update={"class_names": ("cat", "dog")}).model_dump_json()
    model.write_bytes(atomic.encode_safetensors(network.state_dict(), metadata=forged))
    assert "has 2 class_names for 10 outputs" in command.refused("certify", model, image)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "Missing command"),
        (["trian"], "No such command 'trian'. Did you mean 'train'"),
        (["train"], "Missing argument"),
        (["train", "cfg.yaml", "--epochs", "3"], "No such option: --epochs"),
        (["train", "nothing/cfg.yaml"], "nothing/cfg.yaml does not exist"),
        (["evaluate", "nothing"], "nothing does not exist; name a run folder"),
        (["evaluate", "."], "holds no trained run"),
        (["certify", "model", "image.png", "--eps", "x"], "Invalid value for '--eps'"),
    ],
)
def test_usage_errors(command, tmp_path, monkeypatch, arguments, line):
    monkeypatch.chdir(tmp_path)
    assert line in command.refused(*arguments)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model.architecture=mlpp", "model.architecture is 'mlpp'; did you mean 'mlp'?"),
        ("training.epoch=3", "training.epoch = 3 is not a known key; did you mean 'epochs'?"),
        ("training.epochs=many", "training.epochs is 'many'; it should be a whole number"),
        ("epochs", "write key=value"),
        ("data.name=mnits", "did you mean 'mnist'"),
        ("data.directory=nowhere", "nowhere"),
    ],
)
def test_bad_configurations_and_data(command, tmp_path, override, line):
    cfg = write(tmp_path / "cfg.yaml", data={"name": "mnist"} if "directory" in override else CONFIG["data"])
    assert line in command.refused("train", cfg, "--quiet", "--out", tmp_path / "out", "--set", override)
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("flags", [[], ["--resume"]])
def test_set_needs_a_folder_of_its_own(command, tmp_path, flags):
    cfg = write(tmp_path / "cfg.yaml")
    assert "--out FOLDER" in command.refused("train", cfg, "--set", "seed=7", *flags)
    assert "--out FOLDER" in command.refused("--cfg", cfg, "--set", "seed=7", *flags, application=original.app)
    assert [path.name for path in tmp_path.iterdir()] == ["cfg.yaml"]


def test_evaluating_an_unfinished_run_says_so(command, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    record = json.loads((copy / "record.json").read_text())
    atomic.write_json(copy / "record.json", record | {"finished": False})
    _, out, err = command("evaluate", copy, "--no-attacks", "--json", "--quiet")
    assert json.loads(out)["finished"] is False
    assert "is not finished (1 epochs done)" in err
    _, out, err = command("evaluate", run, "--no-attacks", "--json", "--quiet")
    assert json.loads(out)["finished"] is True
    assert "is not finished" not in err


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ({"conv": "svcm", "padding_mode": "zeros"}, "padding_mode='zeros' is not sound with SVCM"),
        ({"activation": "groupsort", "group_size": 3}, "group_size=3|3"),
    ],
)
def test_unsound_networks(command, tmp_path, model, line):
    cfg = write(tmp_path / "cfg.yaml", model={"architecture": "small"} | model)
    assert re.search(line, command.refused("train", cfg, "--quiet"))


def test_corrupt_data(command, tmp_path):
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    (folder / "train-0.parquet").write_bytes(b"PAR1 no")
    cfg = write(tmp_path / "cfg.yaml", data={"name": "mnist"})
    assert "train-0.parquet" in command.refused("train", cfg, "--data-dir", tmp_path / "data", "--quiet")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04K\x01.", b"\x00" * 64])
def test_damaged_checkpoints(command, tmp_path, content):
    cfg = write(tmp_path / "cfg.yaml")
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(content)
    assert "last.ckpt" in command.refused("train", cfg, "--resume", "--quiet")
    assert checkpoint.read_bytes() == content, "nothing is overwritten"


def test_unwritable_folder_and_full_disk(command, tmp_path, monkeypatch):
    cfg = write(tmp_path / "cfg.yaml")
    (tmp_path / "file").write_text("")
    assert "file" in command.refused("train", cfg, "--out", tmp_path / "file" / "run", "--quiet")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic.os, "fsync", full)
    line = command.refused("train", cfg, "--out", tmp_path / "run", "--quiet")
    assert "No space left on device" in line
    assert not (tmp_path / "run" / "cfg.yaml").exists()


def fails_with(error: BaseException):
    def fail(*arguments, **options):
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 3, "error: interrupted; the same command goes on (training: with --resume)\n"),
        (ContradictionError("a certificate\nis contradicted"), 1, "error: a certificate is contradicted\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "error: /x: Permission denied\n"),
    ],
)
def test_exit_codes(command, tmp_path, monkeypatch, error, code, line):
    monkeypatch.setattr(execute, "train", fails_with(error))
    assert command("train", write(tmp_path / "cfg.yaml"), "--quiet") == (code, "", line)


@pytest.mark.parametrize("bug", [lambda: int("x"), lambda: {}["x"], lambda: 1 / 0])
def test_a_bug_stays_visible(command, tmp_path, monkeypatch, bug):
    """A library's ValueError is not blamed on the user: the traceback is shown and Python exits with 1."""
    monkeypatch.setattr(execute, "train", lambda *arguments, **options: bug())
    with pytest.raises((ValueError, KeyError, ZeroDivisionError)):
        command("train", write(tmp_path / "cfg.yaml"), "--quiet")


def test_interrupted_process_exits_with_3_and_resumes(command, tmp_path):
    """One true process: SIGTERM while it trains, exit code 3 with one line, then --resume ends as if never stopped."""
    cfg = write(tmp_path / "a" / "cfg.yaml", training={"epochs": 20})
    arguments = [sys.executable, "-m", "lconvnet", "train", str(cfg), "--json"]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for _ in range(3000):
        if (tmp_path / "a" / "record.json").exists() or process.poll() is not None:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (3, ""), err
    assert "Traceback" not in err
    code, out, err = command(*arguments[3:], "--resume")
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["run"] == str(cfg.parent)
    write(tmp_path / "b" / "cfg.yaml", training={"epochs": 20})
    assert cli.invoke(cli.app, ["train", str(tmp_path / "b" / "cfg.yaml"), "--quiet"]) == 0
    settings = {name: json.loads((tmp_path / name / "record.json").read_text()) for name in ("a", "b")}
    assert settings["a"]["epochs"] == settings["b"]["epochs"]


def test_the_original_module_runs_as_a_process(tmp_path):
    arguments = [sys.executable, "-m", "lconvnet.run", "--cfg", str(tmp_path / "cfg.yaml")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: .*cfg\.yaml does not exist; .*\n", done.stderr)


def test_the_command_starts_without_the_training_library():
    """Its import takes as long as that of torch, and only a training needs it."""
    script = "import lconvnet.cli, sys; sys.exit('lightning_fabric' in sys.modules or 'torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
