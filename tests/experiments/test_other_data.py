"""A run whose images have moved, and a run on images of other folders: the same images, its own classes, apart."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import yaml
from PIL import Image

from lconvnet import cli, saving
from lconvnet.certify import certified_accuracy, certify
from lconvnet.data import DataError, batch, load, load_labelled
from lconvnet.experiments import execute, robustness
from lconvnet.experiments.run_folder import RunFolder
from lconvnet.report import find_runs
from lconvnet.training import load_record

CLASSES = ("ant", "bee", "cow")


def pictures(folder: Path, *, seed: int, per_class: int = 20, classes=CLASSES, side: int = 8) -> Path:
    """Noise around a brightness for each class, in three channels."""
    generator = np.random.default_rng(seed)
    for level, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = (60 * level + generator.integers(0, 120, (side, side, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A run on 8x8 grey images of 60 coloured ones of 10x10, evaluated."""
    root = tmp_path_factory.mktemp("world")
    values = {
        "data": {"name": str(pictures(root / "insects", seed=0, side=10)), "image_size": 8, "channels": 1},
        "model": {"architecture": "mlp", "widths": [8]},
        "loss": {"name": "offset-cross-entropy", "eps": 0.1},
        "optimizer": {"name": "adam", "lr": 0.05},
        "training": {"epochs": 2, "batch_size": 4},
        "evaluation": {"eps": [0.05], "attacks": [{"name": "fgsm"}]},
    }
    (root / "run").mkdir()
    (root / "run" / "cfg.yaml").write_text(yaml.safe_dump(values))
    assert cli.invoke(cli.app, ["train", str(root / "run" / "cfg.yaml"), "--quiet", "--test"]) == 0
    return root


@pytest.fixture
def copy(world, tmp_path) -> Path:
    shutil.copytree(world, tmp_path / "copy")
    return tmp_path / "copy"


def command(*arguments) -> int:
    quiet = ["--quiet"] if arguments[0] in ("train", "evaluate") else []
    return cli.invoke(cli.app, [*map(str, arguments), *quiet])


def refusal(capsys, *arguments) -> str:
    capsys.readouterr()
    assert command(*arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


def test_moved_images_are_accepted_and_others_are_not(world, copy, capsys, tmp_path):
    run, config = copy / "run", copy / "run" / "cfg.yaml"
    (tmp_path / "elsewhere").mkdir()
    moved = (copy / "insects").rename(tmp_path / "elsewhere" / "insects")
    renamed = shutil.copytree(moved, tmp_path / "flies")
    (renamed / "README").write_text("a remark, which changes the note")
    original = str(world / "insects")
    config.write_text(config.read_text().replace(original, str(copy / "insects")))
    expected = (run / "results.yaml").read_bytes()
    places = [["--set", f"data.name={moved}"], ["--data-dir", moved.parent], ["--set", f"data.name={renamed}"]]
    assert "neither a data set nor an existing path" in refusal(capsys, "evaluate", run)
    for place in places:
        assert command("evaluate", run, *place) == 0
        assert command("train", config, "--resume", *place) == 0
    accuracy = yaml.safe_load(expected)["adv_robustness"]
    assert yaml.safe_load((run / "results.yaml").read_text())["adv_robustness"] == accuracy
    config.write_text(config.read_text().replace(str(copy / "insects"), str(moved)))
    for arguments in (["evaluate", run], ["train", config, "--resume"], ["certify", run, "--data", moved]):
        assert command(*arguments) == 0
    assert find_runs(run).runs[0].facts.data == "insects"
    assert command("plot", run, "--out", tmp_path / "pictures", "--images", "1") == 0
    others = pictures(tmp_path / "others", seed=1, side=10)
    for arguments, said in (
        (["evaluate", run], "other images (train: "),
        (["train", config, "--resume"], "data.train.sha256"),
    ):
        assert said in refusal(capsys, *arguments, "--set", f"data.name={others}")
    test_only = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump(test_only | {"data": test_only["data"] | {"name": str(others)}}))
    assert "was trained on other images" in refusal(capsys, "plot", run, "--out", tmp_path / "p", "--images", "1")


def test_other_test_images_are_noticed(tmp_path, capsys):
    """Where the set has parts, the training images may be the same and the test images not."""
    for seed, part in enumerate(("train", "test")):
        pictures(tmp_path / "set" / part, seed=seed, per_class=8)
    values = {"data": {"name": str(tmp_path / "set")}, "model": {"architecture": "mlp", "widths": [4]}}
    values |= {"training": {"epochs": 1}, "evaluation": {"eps": [0.1], "attacks": []}}
    (tmp_path / "run").mkdir()
    config = tmp_path / "run" / "cfg.yaml"
    config.write_text(yaml.safe_dump(values))
    assert command("train", config) == 0
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "set" / "test" / "ant" / "0.png")
    err = refusal(capsys, "evaluate", tmp_path / "run")
    assert "(test: other pixels, labels or order)" in err


def everything(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and "other-data" not in p.parts}


def test_images_of_another_folder_are_measured_apart(world, capsys, tmp_path):
    """The oracle reads the folder itself and certifies the saved network on its images."""
    run = world / "run"
    folder = pictures(tmp_path / "new bees", seed=7, per_class=5, side=10)
    before = everything(run)
    capsys.readouterr()
    assert command("evaluate", run, "--data", folder, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert everything(run) == before, "the run's own results stay as they are"
    splits = load(folder, image_size=8, channels=1, validation=0)
    images = [batch(part, range(len(part))) for part in (splits.train, splits.test)]
    network, right, certified = saving.load(run / "model.safetensors"), 0.0, 0.0
    for pixels, labels in images:
        certificates = certify(network, pixels, bound=execute.lipschitz_bound(network, input_shape=(1, 8, 8)))
        right += float((certificates.label == labels).sum()) / 15
        certified += certified_accuracy(certificates, labels, 0.05) * len(labels) / 15
    assert found["clean"] == pytest.approx(right, abs=1e-12), "both are fifteenths"
    assert found["certified"]["0.05"] == pytest.approx(certified, abs=1e-12)
    assert set(found["attacks"]["0.05"]) >= {"fgsm-ub"}
    place = Path(found["results"]).parent
    assert place.parent == run / "other-data" and place.name.startswith("new-bees-")
    assert sorted(p.name for p in place.iterdir()) == ["accuracy.yaml", "evaluation", "examples.parquet", "logs"]
    assert pyarrow.parquet.read_table(place / "examples.parquet").num_rows == 15
    assert "note" not in found and found["data"] == f"15 images of new bees ({folder})"
    assert [found.path for found in find_runs(world).runs] == ["run"], "no table takes it for a run's"
    assert command("evaluate", run, "--data", folder, "--no-attacks") == 0
    assert command("evaluate", run) == 0
    assert everything(run).keys() == before.keys()


def test_it_goes_on_where_it_was_interrupted(world, tmp_path, monkeypatch):
    folder = pictures(tmp_path / "later", seed=8, per_class=4, side=10)
    arguments = ["evaluate", world / "run", "--data", folder, "--no-attacks", "--set", "evaluation.batch_size=4"]
    assert command(*arguments) == 0
    monkeypatch.setattr(robustness, "certify", None)
    assert command(*arguments) == 0, "nothing is certified a second time"


def test_classes_are_matched_by_name(world, capsys, tmp_path):
    run, evaluate = world / "run", ["evaluate", world / "run", "--no-attacks", "--data"]
    folder = pictures(tmp_path / "renamed", seed=9, per_class=4, classes=("ant", "bee", "zebra"), side=10)
    err = refusal(capsys, *evaluate, folder)
    assert "has other classes than the network: also zebra, and not cow" in err
    shutil.rmtree(folder / "zebra")
    assert "divided by a run's own options" in refusal(capsys, *evaluate, "digits")
    assert "neither a data set nor an existing path" in refusal(capsys, *evaluate, tmp_path / "absent")
    assert not list((run / "other-data").glob("renamed*"))
    assert command(*evaluate, folder, "--json") == 0
    assert json.loads(capsys.readouterr().out)["note"] == "no image of class 'cow'"
    table = pyarrow.table(
        {
            "image": [{"bytes": p.read_bytes()} for p in sorted((world / "insects").rglob("*.png"))],
            "label": ["ant"] * 20 + ["bee"] * 20 + ["cow"] * 20,
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "named.parquet")
    shape, names = (1, 8, 8), ("cow", "ant", "bee")
    rows, _ = load_labelled(tmp_path / "named.parquet", class_names=names, image_shape=shape, image_size=8)
    assert rows.class_names == names and rows.labels.bincount().tolist() == [20, 20, 20]
    bright = rows.images.float().mean(dim=(1, 2, 3))
    assert bright[rows.labels == 0].mean() > bright[rows.labels == 2].mean() > bright[rows.labels == 1].mean()
    with pytest.raises(DataError, match="10x10"):
        load_labelled(tmp_path / "named.parquet", class_names=names, image_shape=shape)


def test_a_new_test_set_needs_no_images_to_train_on(world, capsys, tmp_path):
    """It is used whole: nothing is to be divided."""
    for name, place in (("above", "test"), ("alone", "")):
        folder = tmp_path / name
        pictures(folder / place, seed=9, per_class=4, side=10)
        assert command("evaluate", world / "run", "--no-attacks", "--data", folder, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert found["data"] == f"12 images of {name} ({folder})" and "note" not in found


def test_parts_that_are_left_out_are_counted(world, capsys, tmp_path):
    for part, per_class in (("train", 5), ("val", 1), ("test", 4)):
        pictures(tmp_path / "parts" / part, seed=9, per_class=per_class, side=10)
    assert command("evaluate", world / "run", "--no-attacks", "--data", tmp_path / "parts", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["data"].startswith("12 images of parts")
    assert found["note"] == "18 images of its other parts are left out"


def test_images_that_were_trained_on_are_noted(world, copy, capsys):
    assert command("evaluate", world / "run", "--data", world / "insects", "--no-attacks", "--json") == 0
    note = json.loads(capsys.readouterr().out)["note"]
    assert "48 of them are among the images that the run was trained on or chosen by" in note
    config = copy / "run" / "cfg.yaml"
    config.write_text(config.read_text().replace(str(world / "insects"), str(copy / "gone")))
    assert command("evaluate", copy / "run", "--data", copy / "insects", "--no-attacks", "--json") == 0
    assert "is not known" in json.loads(capsys.readouterr().out)["note"]


def test_the_network_is_that_of_the_record(copy, capsys):
    run = RunFolder(copy / "run")
    record = json.loads((run.path / "record.json").read_text())
    record["best_epoch"] = 3 - record["best_epoch"]
    (run.path / "record.json").write_text(json.dumps(record))
    assert "lconvnet evaluate" in refusal(capsys, "evaluate", run.path, "--data", copy / "insects")
    run.model.unlink()
    assert "is missing" in refusal(capsys, "evaluate", run.path, "--data", copy / "insects")


def test_a_renamed_class_is_named(copy, capsys):
    """The same pictures under another name of a class, which changes the order of the classes."""
    (copy / "insects" / "ant").rename(copy / "insects" / "moth")
    err = refusal(capsys, "evaluate", copy / "run", "--set", f"data.name={copy / 'insects'}")
    assert "trained on other images (classes: ant, bee, cow, now bee, cow, moth;" in err


def test_certify_says_how_many_of_all_images_it_takes_of_a_new_folder(copy, capsys, tmp_path):
    fresh = pictures(tmp_path / "fresh", seed=5, per_class=10, side=10)
    assert command("certify", copy / "run", "--data", fresh) == 0
    said = capsys.readouterr().out
    assert "6 of its 30 images are test images" in said
    assert f"for all of them lconvnet evaluate {copy / 'run'} --data {fresh}" in said


def test_certify_of_a_run_without_its_network_says_how_to_get_it(copy, capsys):
    (copy / "run" / "model.safetensors").unlink()
    err = refusal(capsys, "certify", copy / "run", copy / "insects" / "ant" / "0.png")
    assert f"lconvnet train {copy / 'run' / 'cfg.yaml'} --resume goes on, lconvnet evaluate {copy / 'run'}" in err


def pixels(*parts) -> list[bytes]:
    return [image.numpy().tobytes() for part in parts for image in part.images]


def test_images_that_the_first_weights_were_trained_on_are_counted(world, capsys, tmp_path):
    """A folder that divides the same images otherwise, and a run that goes on from the one on it."""
    first, divided = RunFolder(world / "run"), tmp_path / "divided"
    for part, digits in (("train", "02468"), ("test", "13579")):
        for picture in (world / "insects").glob(f"*/*[{digits}].png"):
            (divided / part / picture.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(picture, divided / part / picture.parent.name)
    train = ["train", first.config, "--set", f"data.name={divided}", "--set", "training.epochs=1"]
    assert command(*train, "--from", first.path, "--out", tmp_path / "next") == 0
    capsys.readouterr()
    assert command(*train, "--from", tmp_path / "next", "--out", tmp_path / "third", "--json") == 0
    old, new = (load(name, image_size=8, channels=1) for name in (world / "insects", divided))
    known = set(pixels(old.train, old.validation))
    held, tested = (sum(image in known for image in pixels(part)) for part in (new.validation, new.test))
    assert 0 < tested < len(new.test) and held
    said = f"{held} of {len(new.validation)} validation images and {tested} of {len(new.test)} test images were trained"
    said += " on or chosen by in the runs that the first weights came from"
    assert json.loads(capsys.readouterr().out)["note"] == said
    for name in ("next", "third"):
        assert load_record(tmp_path / name).settings["from"]["note"] == said
        assert command("evaluate", tmp_path / name, "--no-attacks", "--json") == 0
        assert json.loads(capsys.readouterr().out)["note"] == said
        assert command("certify", tmp_path / name, "--data", divided) == 0
        assert said in " ".join(capsys.readouterr().out.split())
    assert command("evaluate", tmp_path / "third", "--data", world / "insects", "--no-attacks", "--json") == 0
    expected = len(known | set(pixels(new.train, new.validation)))
    note = json.loads(capsys.readouterr().out)["note"]
    assert f"{expected} of them are among the images that the run, or one that it started from, was trained" in note


def test_the_same_division_is_not_noted(world, capsys, tmp_path):
    first = RunFolder(world / "run")
    assert command("train", first.config, "--from", first.path, "--out", tmp_path / "next") == 0
    assert load_record(tmp_path / "next").settings["from"]["note"] == ""
    capsys.readouterr()
    assert command("evaluate", tmp_path / "next", "--no-attacks", "--json") == 0
    assert "note" not in json.loads(capsys.readouterr().out)


def test_first_weights_of_which_nothing_is_known_are_noted(copy, tmp_path):
    first, others = RunFolder(copy / "run"), pictures(tmp_path / "others", seed=3, side=10)
    config = shutil.copy(first.config, tmp_path / "cfg.yaml")
    values = yaml.safe_load(first.config.read_text())
    values["data"]["name"] = str(tmp_path / "gone")
    first.config.write_text(yaml.safe_dump(values))
    train = ["train", config, "--set", f"data.name={others}", "--from", first.path]
    assert command(*train, "--out", tmp_path / "new") == 0
    assert "is not known: " in load_record(tmp_path / "new").settings["from"]["note"]
