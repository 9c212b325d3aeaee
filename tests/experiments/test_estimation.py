"""Wasserstein estimates as runs: trained from a configuration, certified, reported, told again, never mixed up."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from lconvnet import cli, saving
from lconvnet import run as original
from lconvnet.bounds import lipschitz_bound
from lconvnet.experiments import estimation
from lconvnet.experiments.loading import load, load_any, parse_any
from lconvnet.experiments.robustness import ContradictionError
from lconvnet.experiments.run_folder import RunFolder
from lconvnet.experiments.sweep import is_finished, status
from lconvnet.report import find_runs, measurements
from lconvnet.training import Interrupted
from tests.training.test_resume import stop_at

pytestmark = pytest.mark.slow


image = pytest.importorskip("PIL.Image", reason="images come with the extra: pip install 'lconvnet[data]'")

COUNT, SIDE = 24, 32
CONFIG = """
task: wasserstein
data: {name: IMAGES}
generated: GENERATED
critic: {conv: rkl2ne, linear: spectral-norm}
optimizer: {name: rmsprop, lr: 0.001}
training: {steps: 4, batch_size: 4}
evaluation: {samples: 8, transport: 6}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A critic between dark and bright images after four steps, the arguments of its second call, its output."""
    folder = tmp_path_factory.mktemp("estimate")
    generator = np.random.default_rng(0)
    for label in ("a", "b"):
        (folder / "images" / label).mkdir(parents=True)
        for i in range(COUNT // 2):
            pixels = generator.integers(0, 100, (SIDE, SIDE, 3), dtype=np.uint8)
            image.fromarray(pixels).save(folder / "images" / label / f"{i}.png")
    np.save(folder / "bright.npy", generator.integers(150, 255, (COUNT, 3, SIDE, SIDE), dtype=np.uint8))
    text = CONFIG.replace("IMAGES", str(folder / "images")).replace("GENERATED", str(folder / "bright.npy"))
    run = folder / "runs" / "BCOP"
    run.mkdir(parents=True)
    (run / "cfg.yaml").write_text(text)
    assert cli.invoke(original.app, ["--cfg", str(run / "cfg.yaml"), "--quiet"]) == 0
    return RunFolder(run)


def test_what_is_reported_is_the_critic_that_is_saved_divided_by_its_bound(trained):
    results = yaml.safe_load(trained.results.read_text())
    network, description = saving.load(trained.model), saving.describe(trained.model)
    bound = lipschitz_bound(network, input_shape=description.input_shape)
    assert results["sanity_check/layer-l-constant"] == pytest.approx(bound.upper, rel=1e-9)
    assert results["distance"] == pytest.approx(-results["loss"] / bound.upper, rel=1e-9)
    low, high = results["distance_interval"]
    assert low <= results["distance"] <= high
    assert results["units"] == "l2 over 3x32x32 pixels in [0, 1]"
    # Both sides are uniform pixels of different brightness; no transport is longer than the whole of the difference.
    assert 0 <= results["distance"] < (3 * SIDE * SIDE) ** 0.5


def test_exact_transport_of_the_same_samples_is_beside_it(trained):
    told = yaml.safe_load(trained.results.read_text())["transport"]
    found = estimation.run(load_any(trained.config), trained, resume=True, progress=False)
    cost = cdist(*(side[:6].flatten(1).double() for side in found.samples))
    assert told["samples"] == 6
    assert told["exact"] == pytest.approx(cost[linear_sum_assignment(cost)].mean(), rel=1e-9)  # float64
    assert 0 < told["certified"] < told["exact"]
    assert found.values[0][:6].mean() - found.values[1][:6].mean() == told["certified"]
    wrong = replace(found, values=(found.values[0] + told["exact"], found.values[1]))
    with pytest.raises(ContradictionError, match="Lipschitz bound .* is wrong"):
        estimation.compare(wrong, 6)


def test_a_second_call_tells_the_same_and_changes_nothing(trained, capsys):
    before = {path: path.read_bytes() for path in (trained.results, trained.model, trained.path / "record.json")}
    arguments = ["--cfg", str(trained.config), "--resume", "--test", "--json", "--quiet"]
    assert cli.invoke(original.app, arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["lower_bound"] == yaml.safe_load(before[trained.results])["distance"]
    assert set(told) >= {"lower_bound", "interval", "units"}
    assert all(path.read_bytes() == data for path, data in before.items())


def test_an_interrupted_critic_is_not_evaluated_before_it_is_trained(trained, tmp_path, monkeypatch, capsys):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.config.write_bytes(trained.config.read_bytes())
    stop_at(monkeypatch, update=1)
    with pytest.raises(Interrupted):
        estimation.run(load_any(folder.config), folder, progress=False)
    monkeypatch.undo()
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    for app, command in (
        (cli.app, ["evaluate", str(folder.path)]),
        (original.app, ["--cfg", str(folder.config), "--test"]),
        (original.app, ["--cfg", str(folder.config), "--resume", "--test"]),
    ):
        assert cli.invoke(app, [*command, "--quiet"]) == 2
        assert f"lconvnet train {folder.config} --resume" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before
    assert cli.invoke(cli.app, ["train", str(folder.config), "--resume", "--quiet"]) == 0
    assert cli.invoke(cli.app, ["evaluate", str(folder.path), "--quiet"]) == 0
    assert folder.results.read_bytes() == trained.results.read_bytes()


def test_it_counts_as_finished_and_is_never_overwritten(trained, capsys):
    assert is_finished(trained)
    row = status(trained.path)
    assert row.state == "finished" and row.detail.startswith("distance ")
    assert cli.invoke(original.app, ["--cfg", str(trained.config)]) == 2
    assert "never overwritten" in capsys.readouterr().err


def test_other_settings_need_another_folder(trained, capsys):
    assert cli.invoke(cli.app, ["train", str(trained.config), "--resume", "--set", "optimizer.lr=0.1"]) == 2
    assert "optimizer.lr: 0.001, now 0.1" in capsys.readouterr().err


def test_the_tables_read_it(trained):
    (run,) = find_runs(trained.path.parent).runs
    assert (run.facts.task, run.facts.method, run.facts.activation) == ("wasserstein", "RK-L2NE", "MaxMin")
    assert run.facts.learning_rate == 0.001 and run.facts.trial == "0"
    results = yaml.safe_load(trained.results.read_text())
    measured = measurements([run]).set_index("measure")["value"]
    assert measured["W1/L"] == pytest.approx(results["distance"], rel=1e-9)


def test_a_classifiers_command_refuses_it(trained):
    with pytest.raises(ValueError, match="task is 'wasserstein'; a classifier, which has no task, is needed here"):
        load(trained.config)
    assert load_any(trained.config).critic.conv == "rkl2ne"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"task": "gna"}, "task is 'gna'; did you mean 'gan'"),
        ({"task": ["gan"]}, "task is .*Allowed: wasserstein, gan"),
        ({"generated": ""}, "generated"),
        ({"critic": {"conv": "bcp"}}, "did you mean 'bcop'"),
        ({"evaluation": {"samples": 1}}, "evaluation.samples"),
        ({"evaluation": {"samples": 8, "transport": 9}}, "evaluation: transport is 9, of 8 samples"),
        ({"model": {}}, "model"),
    ],
)
def test_bad_configurations_are_named(change, match):
    values = {"task": "wasserstein", "data": {"name": "x"}, "generated": "g.npy"}
    with pytest.raises(ValueError, match=match):
        parse_any({**values, **change})


def test_a_longer_estimate_starts_from_the_critic_of_a_shorter_one(trained, tmp_path, capsys):
    longer, new = ["--set", "training.steps=5"], tmp_path / "new"
    for more, said in (
        ([], ("training.steps is 5", "a run of 4", f"--from {trained.path} --out NEW")),
        (["--resume"], ("steps: 4, now 5", "--from RUN --out NEW")),
    ):
        assert cli.invoke(cli.app, ["train", str(trained.config), *longer, *more]) == 2
        err = capsys.readouterr().err
        assert all(part in err for part in said), err
    start = ["train", str(trained.config), *longer, "--out", str(new), "--quiet"]
    begun, first = {}, estimation.wasserstein.estimate

    def heard(*arguments, critic, **options):
        begun.update({name: value.clone() for name, value in critic.state_dict().items()})
        return first(*arguments, critic=critic, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimation.wasserstein, "estimate", heard)
        assert cli.invoke(cli.app, [*start, "--from", str(trained.path)]) == 0
    saved = torch.load(trained.path / "checkpoints" / "last.ckpt", weights_only=True)["modules"]["critic"]
    assert all(torch.equal(value, saved[name]) for name, value in begun.items()) and begun
    settings = json.loads((new / "record.json").read_text())["settings"]
    assert (settings["from"]["run"], settings["steps"]) == (str(trained.path), 5)
    before = (new / "record.json").read_bytes()
    assert cli.invoke(cli.app, [*start, "--resume"]) == 0, "without --from it is told again"
    assert (new / "record.json").read_bytes() == before


def test_samples_that_moved_are_accepted(trained, tmp_path):
    values = yaml.safe_load(trained.config.read_text())
    images, bright = (shutil.copytree(values["data"]["name"], tmp_path / "i"), tmp_path / "b.npy")
    shutil.copy(values["generated"], bright)
    before = trained.results.read_bytes()
    place = ["--set", f"data.name={images}", "--set", f"generated={bright}"]
    assert cli.invoke(cli.app, ["evaluate", str(trained.path), *place, "--quiet"]) == 0
    assert trained.results.read_bytes() == before


def test_a_longer_length_is_trained_by_train_alone(trained, tmp_path):
    folder = RunFolder(shutil.copytree(trained.path, tmp_path / "longer"))
    folder.config.write_text(folder.config.read_text().replace("steps: 4", "steps: 6"))
    assert not is_finished(folder)
    before = folder.record.read_bytes()
    assert cli.invoke(cli.app, ["evaluate", str(folder.path)]) == 2
    assert folder.record.read_bytes() == before
