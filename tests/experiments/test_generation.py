"""Generators as runs: trained from a configuration against each kind of critic, stopped, resumed, told again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from lconvnet import cli, data, gan
from lconvnet import run as original
from lconvnet.experiments import estimation, tasks
from lconvnet.experiments.loading import load_any, parse_any
from lconvnet.experiments.run_folder import RunFolder, recorded
from lconvnet.experiments.sweep import is_finished, status
from lconvnet.report import find_runs
from lconvnet.training import Interrupted
from tests.gan.test_training import assert_same_run
from tests.training.test_resume import stop_at

image = pytest.importorskip("PIL.Image", reason="images come with the extra: pip install 'lconvnet[data]'")

SHAPE = (3, 16, 16)
SIZES = {"generator": {"latent": 4, "width": 2}, "training": {"epochs": 2, "steps_per_epoch": 3, "batch_size": 4}}
CRITICS = {
    "gradient-penalty": {"width": 2},
    "weight-clipping": {"width": 2, "bound": 0.02},
    "lipschitz": {"width": 2, "conv": "rkl2ne", "linear": "spectral-norm"},
}


def values(name: str = "weight-clipping", **changes) -> dict:
    images = {"name": "images"}
    critic = {"name": name, **CRITICS[name]}
    return {"task": "gan", "data": images, "critic": critic, **SIZES, **changes}


@pytest.fixture(scope="module", autouse=True)
def images(tmp_path_factory):
    """The current folder has two classes of six coloured images of 16x16 in `images`, the first one in `flat`."""
    folder, generator = tmp_path_factory.mktemp("gan"), np.random.default_rng(0)
    for place in (folder / "images" / name / f"{number}.png" for name in "ab" for number in range(6)):
        place.parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(generator.integers(0, 255, (*SHAPE[1:], 3), dtype=np.uint8)).save(place)
    shutil.copytree(folder / "images" / "a", folder / "flat")
    shutil.copytree(folder / "flat", folder / "one" / "class")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


def unlabelled(name: str) -> data.Images:
    pixels = data.read_samples(name)
    return data.Images(pixels, torch.zeros(len(pixels), dtype=torch.int64), 1, name)


def write(folder: Path, **changes) -> RunFolder:
    folder.mkdir(parents=True)
    (folder / "cfg.yaml").write_text(json.dumps(values(**changes)))  # JSON is YAML
    return RunFolder(folder)


def results(folder: RunFolder) -> dict[str, bytes]:
    """What a run leaves behind, but for wall times and sessions."""
    paths = [path for path in folder.path.rglob("*") if path.is_file() and path.suffix not in (".jsonl", ".yaml")]
    return {str(path.relative_to(folder.path)): path.read_bytes() for path in sorted(paths)}


@pytest.mark.parametrize("name", CRITICS)
def test_a_run_is_the_training_that_its_configuration_describes(name, tmp_path):
    folder = write(tmp_path / "run", name=name)
    assert cli.invoke(original.app, ["--cfg", str(folder.config), "--quiet"]) == 0
    experiment = load_any(folder.config)
    images = unlabelled("images")
    generator = experiment.generator.build(SHAPE, seed=0)
    critic = experiment.critic.build(SHAPE, seed=0)
    objective = experiment.critic.objective()
    assert type(objective) is {"gradient": gan.GradientPenalty, "weight": gan.WeightClipping}.get(
        name.partition("-")[0], gan.LipschitzCritic
    )
    gan.train_gan(
        generator, critic, images, objective=objective, epochs=2, steps_per_epoch=3, batch_size=4,
        directory=tmp_path / "own", checkpoint_every=50,
    )  # fmt: skip
    assert results(folder) == results(RunFolder(tmp_path / "own"))
    assert {"generator.safetensors", "samples/epoch-0001.png", "samples/epoch-0002.png"} <= set(results(folder))


@pytest.mark.parametrize(("name", "count"), [("flat", 6), ("one", 6), ("images", 12)])
def test_images_need_no_classes(name, count):
    """Also in a Wasserstein estimate, whose `data` is the same section."""
    experiment = parse_any(values(data={"name": name}))
    found = experiment.data.load().images
    assert torch.equal(found, data.read_samples(name)) and len(found) == count
    small = parse_any(values(data={"name": name, "limit": 4, "image_size": 8, "channels": 1}))
    assert small.data.load().images.shape == (4, 1, 8, 8)


def test_a_flat_folder_is_trained_on(tmp_path):
    folder = write(tmp_path / "run", data={"name": "flat"})
    assert cli.invoke(cli.app, ["train", str(folder.config), "--quiet"]) == 0
    settings = recorded(folder).settings
    assert settings["data"]["images"] == 6


def test_options_reach_what_they_are_named_for():
    experiment = parse_any(values(optimizer={"name": "adam", "lr": 0.5, "betas": [0.25, 0.75]}))
    made = experiment.optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert (made.defaults["lr"], made.defaults["betas"]) == (0.5, (0.25, 0.75))
    assert experiment.critic.objective() == gan.WeightClipping(bound=0.02)
    penalty = parse_any(values("gradient-penalty", critic={"name": "gradient-penalty", "weight": 3.0}))
    assert penalty.critic.objective() == gan.GradientPenalty(weight=3.0)
    weights = [experiment.generator.build(SHAPE, seed=seed).state_dict() for seed in (0, 0, 1)]
    same = [all(torch.equal(value, weights[0][name]) for name, value in other.items()) for other in weights[1:]]
    assert same == [True, False]


def test_a_stopped_run_goes_on_to_the_same_bytes_once_asked_to(tmp_path, monkeypatch, capsys):
    whole, stopped = write(tmp_path / "whole"), write(tmp_path / "stopped")
    assert cli.invoke(cli.app, ["train", str(whole.config), "--quiet"]) == 0
    stop_at(monkeypatch, update=20)  # in the second epoch: there are six in a step, three steps in an epoch
    with pytest.raises(Interrupted):
        tasks.train_generator(load_any(stopped.config), stopped, progress=False)
    assert status(stopped.path).state == "interrupted" and not is_finished(stopped)
    monkeypatch.undo()
    before = {path: path.read_bytes() for path in stopped.path.rglob("*") if path.is_file()}
    for app, command in (
        (cli.app, ["evaluate", str(stopped.path)]),
        (original.app, ["--cfg", str(stopped.config), "--test"]),
        (original.app, ["--cfg", str(stopped.config), "--resume", "--test"]),
    ):
        assert cli.invoke(app, [*command, "--quiet"]) == 2
        error = capsys.readouterr().err
        assert "(1 of 2 epochs)" in error and f"lconvnet train {stopped.config} --resume" in error
    assert {path: path.read_bytes() for path in stopped.path.rglob("*") if path.is_file()} == before
    assert cli.invoke(cli.app, ["train", str(stopped.config), "--resume", "--quiet"]) == 0
    assert_same_run(stopped.path, whole.path)


def test_a_finished_run_is_told_again_and_never_overwritten(tmp_path, capsys):
    folder = write(tmp_path / "run")
    assert cli.invoke(cli.app, ["train", str(folder.config), "--test", "--json", "--quiet"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    before = results(folder)
    row = status(folder.path)
    assert (row.state, row.epoch, row.epochs) == ("finished", 2, 2) and is_finished(folder)
    assert cli.invoke(original.app, ["--cfg", str(folder.config), "--resume", "--test", "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == told
    assert told["epochs"] == 2 and told["steps"] == 6 and told["bound"] is None
    assert gan.load_generator(told["generator"]).image_shape == SHAPE
    assert cli.invoke(original.app, ["--cfg", str(folder.config)]) == 2
    assert "never overwritten" in capsys.readouterr().err
    assert results(folder) == before


def test_its_generator_is_a_distribution(tmp_path):
    folder = write(tmp_path / "run")
    tasks.train_generator(load_any(folder.config), folder, progress=False)
    sampler = estimation.distribution(str(folder.path / "generator.safetensors"))
    draws = [sampler.sample(3, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    latents = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    expected = gan.load_generator(folder.path / "generator.safetensors")(latents)
    assert torch.equal(draws[0], expected) and torch.equal(draws[1], expected) and not torch.equal(draws[2], expected)
    assert estimation.distribution("images") == "images"


def test_more_epochs_go_on_and_other_settings_need_another_folder(tmp_path, capsys):
    folder = write(tmp_path / "run", training={**SIZES["training"], "epochs": 1})
    assert cli.invoke(cli.app, ["train", str(folder.config), "--quiet"]) == 0
    more = ["train", str(folder.config), "--resume", "--quiet", "--set"]
    assert cli.invoke(cli.app, [*more, "training.epochs=2"]) == 0
    assert len(recorded(folder).epochs) == 2
    row, before = status(folder.path), results(folder)
    assert (row.state, row.epoch, row.epochs) == ("finished", 2, 2) and is_finished(folder)
    for app, command in (
        (cli.app, ["evaluate", str(folder.path)]),
        (cli.app, ["train", str(folder.config), "--resume"]),
        (original.app, ["--cfg", str(folder.config), "--resume", "--test"]),
    ):
        capsys.readouterr()
        assert cli.invoke(app, [*command, "--json", "--quiet"]) == 0
        assert json.loads(capsys.readouterr().out)["epochs"] == 2
    assert results(folder) == before
    assert cli.invoke(cli.app, ["evaluate", str(folder.path), "--set", "critic.bound=0.5"]) == 2
    assert cli.invoke(cli.app, [*more, "critic.bound=0.5"]) == 2
    assert "critic.bound: 0.02, now 0.5" in capsys.readouterr().err


def test_a_table_says_that_a_generator_is_none_of_its_runs(tmp_path):
    folder = write(tmp_path / "run")
    folder.results.write_text("loss: 1.0\n")
    with pytest.raises(ValueError, match="trains a generator"):
        find_runs(tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"critic": {"name": "penalty"}}, r"critic.name is 'penalty'; did you mean 'gradient-penalty'"),
        ({"critic": {"name": "weight-clipping", "weight": 1.0}}, "critic.weight = 1.0 is not a known key"),
        ({"critic": {"name": "weight-clipping", "bound": 0.0}}, "critic.bound is 0.0"),
        ({"generator": {"width": 0}}, "generator.width is 0"),
        ({"optimizer": {"lr": 0.1}}, "optimizer.name is missing; Allowed: adam, sgd, rmsprop"),
        ({"training": {"epoch": 3}}, r"training.epoch = 3 .* did you mean 'epochs'"),
        ({"model": {}}, "model"),
    ],
)
def test_bad_configurations_are_named(change, match):
    with pytest.raises(ValueError, match=match):
        parse_any(values(**change))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ({"name": "digits", "limit": 100}, "image_size=28: must be a power of two"),
        ({"name": "images", "image_size": 4}, "image_size=4: must be a power of two"),
    ],
)
def test_images_that_no_generator_makes(data, match, tmp_path):
    folder = RunFolder(tmp_path)
    with pytest.raises(ValueError, match=match):
        tasks.train_generator(parse_any(values(data=data)), folder, progress=False)
    with pytest.raises(ValueError, match=r"images are 8x16.*data\.image_size"):
        parse_any(values()).generator.build((3, 8, 16), seed=0)
