"""A run that starts from the weights of another: its bytes, what it records, what is refused, and what says so."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lconvnet import cli, gan
from lconvnet.experiments import execute
from lconvnet.experiments.loading import load_any, parse
from lconvnet.experiments.run_folder import RunFolder, recorded
from lconvnet.report.facts import facts_of
from lconvnet.tasks.classification import Classification
from lconvnet.training import CheckpointError, Interrupted, fit, load_best, load_record

VALUES = {
    "data": {"name": "digits", "limit": 200, "test": 40},
    "model": {"architecture": "mlp", "widths": [8]},
    "loss": {"name": "offset-cross-entropy", "eps": 0.3},
    "training": {"epochs": 1, "checkpoint_every": 1},
    "evaluation": {"eps": [0.3], "attacks": []},
}


def write(folder, values=VALUES) -> RunFolder:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.yaml").write_text(yaml.safe_dump(values))
    return RunFolder(folder)


def command(*arguments) -> int:
    return cli.invoke(cli.app, [*map(str, arguments), "--quiet"])


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> RunFolder:
    folder = write(tmp_path_factory.mktemp("old"))
    assert command("train", folder.config) == 0
    return folder


def refusal(capsys, *arguments) -> str:
    assert command(*arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


def test_more_epochs_are_asked_for_in_a_new_run(old, capsys, tmp_path):
    """Overrides, --resume, an edited cfg.yaml, from Python: the key and the way."""
    edited = tmp_path / "edited"
    shutil.copytree(old.path, edited)
    write(edited, VALUES | {"training": {"epochs": 3}})
    longer = ["--set", "training.epochs=3"]
    for arguments in (
        [old.config, *longer],
        [old.config, *longer, "--resume"],
        [old.config, *longer, "--resume", "--out", old.path],
        [old.config, *longer, "--out", edited],
        [edited / "cfg.yaml", "--resume"],
        [edited / "cfg.yaml"],
    ):
        err = refusal(capsys, "train", *arguments)
        what = "epochs: 1, now 3" if "--resume" in arguments else "training.epochs is 3, but"
        assert what in err and "--from" in err and "--out NEW" in err
    experiment = parse(VALUES, ["training.epochs=3"])
    splits = experiment.data.load(seed=0)
    model = experiment.model.build(splits.image_shape, splits.classes, seed=0)
    options = {"optimizer": experiment.optimizer, "loss": experiment.loss}
    with pytest.raises(CheckpointError, match=r"epochs: 1, now 3.*load_best\(model, RUN\).*--from RUN --out NEW"):
        fit(model, splits, epochs=3, directory=old.path, resume=True, **options)


def test_from_is_training_from_those_weights(old, tmp_path):
    """The oracle is `fit` on a model with the weights of the old run's best epoch."""
    new, own = RunFolder(tmp_path / "new"), tmp_path / "own"
    arguments = ["train", old.config, "--from", old.path, "--out", new.path, "--set", "training.epochs=2"]
    assert command(*arguments) == 0
    experiment = parse(VALUES, ["training.epochs=2"])
    splits = experiment.data.load(seed=0)
    model = experiment.model.build(splits.image_shape, splits.classes, seed=5)
    load_best(model, old.path)
    options = {"loss": experiment.loss, "optimizer": experiment.optimizer, "schedule": experiment.schedule}
    fit(model, splits, seed=experiment.seed, eps=experiment.evaluation.eps, directory=own, progress=False,
        **options, **dict(experiment.training))  # fmt: skip
    best = "checkpoints/best.safetensors"
    assert (new.path / best).read_bytes() == (own / best).read_bytes()
    record = load_record(new.path)
    assert record.epochs == load_record(own).epochs and record.finished
    expected = hashlib.sha256((old.path / best).read_bytes()).hexdigest()
    origin = {"run": str(old.path), "file": "best.safetensors", "epoch": 1, "sha256": expected, "note": ""}
    assert record.settings["from"] == origin
    assert dict(facts_of(new.path)[0].recipe)["from"] == str(old.path), "no repetition of a run from scratch"
    assert "from" not in dict(facts_of(old.path)[0].recipe)


def test_a_killed_run_goes_on_without_the_other(old, tmp_path, monkeypatch):
    """The bytes of the run that was not killed, with the old run gone, and with or without saying --from again."""
    source, step = tmp_path / "source", Classification.step
    for name in ("whole", "stopped", "again"):
        shutil.copytree(old.path, source, dirs_exist_ok=True)
        arguments = ["train", old.config, "--out", tmp_path / name, "--set", "training.epochs=2"]
        with monkeypatch.context() as patch:
            if name != "whole":

                def stopping(task, at, engine):
                    if at.step == 1:
                        raise Interrupted("stopped")
                    return step(task, at, engine)

                patch.setattr(Classification, "step", stopping)
            assert command(*arguments, "--from", source) == (0 if name == "whole" else 3)
        shutil.rmtree(source)
        again = ["--from", source] if name == "again" else []
        assert command(*arguments, "--resume", *again) == 0
    record = "record.json"
    expected = (tmp_path / "whole" / record).read_bytes()
    assert json.loads(expected)["settings"]["from"]["run"] == str(source)
    assert (tmp_path / "stopped" / record).read_bytes() == (tmp_path / "again" / record).read_bytes() == expected


def test_a_run_killed_before_its_first_checkpoint_does_not_begin_from_elsewhere(old, capsys, tmp_path, monkeypatch):
    new = tmp_path / "new"
    train = ["train", old.config, "--out", new]
    with monkeypatch.context() as patch:
        patch.setattr(execute, "fit", lambda *arguments, **options: (_ for _ in ()).throw(Interrupted("killed")))
        assert command(*train, "--from", old.path) == 3
    capsys.readouterr()
    assert "was to start from the weights of another run; name it again with --from" in refusal(
        capsys, *train, "--resume"
    )
    assert command(*train, "--resume", "--from", old.path) == 0
    monkeypatch.chdir(old.path.parent)
    assert command(*train, "--resume", "--from", f"./{old.path.name}") == 0, "the same run, spelled otherwise"
    assert load_record(new).settings["from"]["run"] == str(old.path)


def test_what_from_refuses(old, capsys, tmp_path):
    train = ["train", old.config, "--out", tmp_path / "new"]
    assert "does not exist; name a run folder" in refusal(capsys, *train, "--from", tmp_path / "absent")
    assert "holds no trained run" in refusal(capsys, *train, "--from", write(tmp_path / "fresh").path)
    assert not (tmp_path / "new").exists(), "nothing is written before the run is found"
    other = [*train, "--from", old.path, "--set"]
    assert "model.widths: [8], now [9]" in refusal(capsys, *other, "model.widths=[9]")
    assert "model.activation: 'maxmin', now 'relu'" in refusal(capsys, *other, "model.activation=relu")
    assert "already holds a run" in refusal(capsys, "train", old.config, "--from", old.path)
    assert not list((tmp_path / "new").rglob("*.ckpt"))


@pytest.fixture
def pictures(tmp_path):
    generator = np.random.default_rng(0)
    for number in range(8):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


def test_a_generator_starts_from_both_networks_of_another(pictures, tmp_path, capsys):
    sizes = {"generator": {"latent": 4, "width": 2}, "critic": {"name": "weight-clipping", "width": 2}}
    training = {"epochs": 1, "steps_per_epoch": 2, "batch_size": 4}
    values = {"task": "gan", "data": {"name": str(pictures)}, **sizes, "training": training}
    folder = write(tmp_path / "run", values)
    assert command("train", folder.config) == 0
    err = refusal(capsys, "train", folder.config, "--set", "training.epochs=2")
    assert "training.epochs is 2" in err and "--resume" in err and "--from" in err
    begun, first = [], gan.train_gan

    def heard(generator, critic, *arguments, **options):
        begun.extend([generator.state_dict(), critic.state_dict()])
        begun[:] = [{name: value.clone() for name, value in state.items()} for state in begun]
        return first(generator, critic, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gan, "train_gan", heard)
        assert command("train", folder.config, "--from", folder.path, "--out", tmp_path / "new") == 0
    saved = torch.load(folder.path / "checkpoints" / "last.ckpt", weights_only=True)
    for state, part in zip(begun, ("generator", "critic"), strict=True):
        assert all(torch.equal(value, saved["modules"][part][name]) for name, value in state.items())
    assert recorded(RunFolder(tmp_path / "new")).settings["from"]["run"] == str(folder.path)
    assert command("train", folder.config, "--resume", "--out", tmp_path / "new") == 0, "the run is told again"
    err = refusal(
        capsys, "train", folder.config, "--from", folder.path, "--out", tmp_path / "c", "--set", "critic.width=4"
    )
    assert "critic.width: 2, now 4" in err
    classifier = write(tmp_path / "classifier")
    err = refusal(capsys, "train", classifier.config, "--from", folder.path, "--out", tmp_path / "d")
    assert "is a run of a generator, not of a classifier" in err
    moved = pictures.rename(tmp_path / "elsewhere")
    place = ["--set", f"data.name={moved}"]
    assert command("train", folder.config, "--resume", *place, "--set", "training.epochs=2") == 0
    assert len(recorded(folder).epochs) == 2, "the same images go on where they lie now"
    assert load_any(folder.config).data.name == str(pictures)
