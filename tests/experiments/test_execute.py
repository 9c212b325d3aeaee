"""Training and evaluation through the run folder: what is written, what is refused, the laws between numbers."""

import dataclasses
import json
import logging
import re
import shutil
from functools import wraps

import numpy as np
import pyarrow.parquet
import pytest
import safetensors
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import lconvnet.experiments.robustness as robustness
from lconvnet import atomic, saving
from lconvnet.bounds import lipschitz_bound
from lconvnet.experiments import execute
from lconvnet.experiments.loading import dump, parse
from lconvnet.experiments.robustness import ContradictionError
from lconvnet.experiments.run_folder import RunFolder, find_run
from lconvnet.experiments.trained_on import trained_experiment
from lconvnet.training import CheckpointError, load_record

VALUES = {
    "seed": 3,
    "data": {"name": "digits", "limit": 300, "test": 60},
    "model": {"architecture": "mlp", "widths": [16]},
    "loss": {"name": "offset-cross-entropy", "eps": 0.3},
    "optimizer": {"name": "adam", "lr": 0.01},
    "training": {"epochs": 2},
    "evaluation": {
        "eps": [0.1, 0.3],
        "attacks": [{"name": "pgd", "eps": [0.3], "steps": 5, "step_size": 0.1}, {"name": "fgsm", "mini": True}],
        "mini_test_size": 20,
    },
}


def train(path, *overrides, resume=False) -> execute.Trained:
    return execute.train(parse(VALUES, overrides), RunFolder(path), resume=resume, progress=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    path = tmp_path_factory.mktemp("run")
    train(path)
    return RunFolder(path)


@pytest.fixture(scope="module")
def evaluated(run) -> execute.Evaluated:
    return execute.evaluate(run)


def test_results_have_the_originals_keys_and_obey_the_laws(run, evaluated, reference_dir):
    results = yaml.safe_load(run.results.read_text())
    assert results == yaml.safe_load(yaml.safe_dump(dict(evaluated.results))), "the file is what is returned"
    folder = reference_dir / "runs" / "adv-rob-mnist" / "fc" / "3-layers" / "multi-trial-A"
    original = yaml.safe_load((folder / "results.yaml").read_text())
    assert {"accuracy", "loss", "sanity_check/layer-l-constant", "adv_robustness"} <= set(original) & set(results)
    row, theirs = results["adv_robustness"][0.3], original["adv_robustness"][1.58]
    assert set(row) == {key for key in theirs if not key.startswith("fgsm")} | {"pgd-ub-zero-gradient"}
    assert {"fgsm-ub", "fgsm-ub-dist", "fgsm-ub-success-rate"} <= set(results["adv_robustness_mini_eval"][0.1])
    for eps, row in results["adv_robustness"].items():
        assert row["lb"] <= row.get("pgd-ub", row["natural"]) <= row["natural"] == results["accuracy"], eps
    assert results["adv_robustness"][0.3]["lb"] <= results["adv_robustness"][0.1]["lb"]
    assert row["pgd-ub"] + row["pgd-ub-success-rate"] == pytest.approx(1, abs=1e-12)
    assert 0 < row["pgd-ub-dist"] <= 0.3
    norms = [value for key, value in results.items() if key.endswith("-l2-norm")]
    assert len(norms) == 2, "one for each linear layer, none for activations"
    # The product of upper bounds, up to the outward rounding of each step and the activation's factor of 1.
    assert results["sanity_check/layer-l-constant"] == pytest.approx(norms[0] * norms[1], rel=1e-12)
    assert results["epoch"] == load_record(run.path).best_epoch


def test_numbers_follow_from_the_certificates(run, evaluated):
    """An independent oracle: the parquet rows alone give clean and certified accuracy and the mean distances."""
    rows = pyarrow.parquet.read_table(run.examples).to_pandas()
    assert list(rows.columns)[:5] == ["index", "label", "prediction", "margin", "radius"]
    assert rows["reason"].tolist() == evaluated.certificates.reason.tolist()
    assert ((rows.radius > 0) == (rows.reason == "certified")).all()
    assert [name for name in rows if name.endswith("norm")] == ["pgd@0.3 norm", "fgsm@0.1 norm", "fgsm@0.3 norm"]
    assert rows["fgsm@0.1 success"].isna().tolist() == [False] * 20 + [True] * 40
    assert len(rows) == 60
    correct = rows[rows.label == rows.prediction]
    assert evaluated.results["accuracy"] == len(correct) / 60
    for eps, row in evaluated.results["adv_robustness"].items():
        assert row["lb"] == pytest.approx((correct.radius > eps).sum() / 60, abs=1e-12)
        assert row["lb_dist"] == pytest.approx(correct.radius.sum() / 60, rel=1e-12), "wrong answers have distance 0"
    row, fooled = evaluated.results["adv_robustness"][0.3], rows[rows["pgd@0.3 success"]]
    assert row["pgd-ub-dist"] == pytest.approx(fooled["pgd@0.3 norm"].mean(), rel=1e-12)
    assert len(correct) < 60, "some of these were wrong before, at norm 0"
    assert row["pgd-ub-success-rate"] == pytest.approx(len(fooled) / 60, abs=1e-12)
    mini = evaluated.results["adv_robustness_mini_eval"][0.3]
    assert mini["natural"] == pytest.approx((rows.label == rows.prediction)[:20].mean(), abs=1e-12)


def test_saved_network_is_the_evaluated_one(run, evaluated):
    description, network = saving.describe(run.model), saving.load(run.model)
    splits = parse(VALUES).data.load(seed=3)
    predictions = network(splits.test.images.float() / 255).argmax(1)
    assert torch.equal(predictions, evaluated.certificates.label)
    assert description.bound.upper == evaluated.bound.upper
    assert description.class_names == tuple("0123456789")
    assert description.notes["epoch"] == evaluated.results["epoch"]


def test_without_attacks(run, evaluated, tmp_path):
    found = execute.evaluate(run, ["evaluation.eps=[0.2]"], attacks=False)
    assert set(found.results["adv_robustness"]) == {0.2}
    assert set(found.results["adv_robustness"][0.2]) == {"natural", "lb", "lb_dist"}
    kept = yaml.safe_load((run.path / "results-1.yaml").read_text())
    assert kept == yaml.safe_load(yaml.safe_dump(dict(evaluated.results))), "the older results are kept"


def test_a_second_evaluation_keeps_results_with_their_certificates_and_leaves_the_model(run, tmp_path):
    copy = RunFolder(shutil.copytree(run.path, tmp_path / "copy"))
    for path in [*copy.path.glob("results*"), *copy.path.glob("examples*")]:
        path.unlink()
    written = copy.model.stat().st_mtime_ns
    execute.evaluate(copy, ["evaluation.eps=[0.2]"], attacks=False)
    first = {path.stem: path.read_bytes() for path in (copy.results, copy.examples)}
    execute.evaluate(copy, ["evaluation.eps=[0.2]"], attacks=False)
    assert not list(copy.path.glob("*-1.*")), "the same evaluation again has nothing to keep"
    execute.evaluate(copy, ["evaluation.eps=[0.1]"], attacks=False)
    assert {path.stem.removesuffix("-1"): path.read_bytes() for path in copy.path.glob("*-1.*")} == first
    assert copy.model.stat().st_mtime_ns == written, "the same network is not written again"
    model = copy.model.read_bytes()
    copy.model.unlink()
    execute.evaluate(copy, ["evaluation.eps=[0.1]"], attacks=False)
    assert copy.model.read_bytes() == model


def test_certificates_alone_that_differ_are_kept_with_their_results(tmp_path, caplog):
    folder = RunFolder(tmp_path)
    caplog.set_level(logging.INFO, "lconvnet")
    folder.write_evaluation({"accuracy": 0.5}, {"radius": [1.0]})
    older = folder.examples.read_bytes()
    assert not caplog.text
    folder.write_evaluation({"accuracy": 0.5}, {"radius": [2.0]})
    assert f"former evaluation is in {tmp_path / 'results-1.yaml'} and {tmp_path / 'examples-1.parquet'}" in caplog.text
    assert (tmp_path / "examples-1.parquet").read_bytes() == older
    assert (tmp_path / "results-1.yaml").read_bytes() == folder.results.read_bytes()


def test_weights_of_another_epoch_than_the_record_are_refused(run, tmp_path):
    """Killed between the two writes, best.safetensors is an epoch ahead of record.json."""
    copy = RunFolder(shutil.copytree(run.path, tmp_path / "copy"))
    best = copy.path / "checkpoints" / "best.safetensors"
    epoch = load_record(run.path).best_epoch
    atomic.write_safetensors(best, load_file(best), metadata=json.dumps({"epoch": epoch + 1}))
    with pytest.raises(CheckpointError, match=rf"holds epoch {epoch + 1}, record\.json names {epoch} .*--resume"):
        execute.evaluate(copy, attacks=False)


def test_an_unfinished_run_says_so(run, tmp_path, caplog, evaluated):
    assert evaluated.results["finished"] is True
    copy = RunFolder(shutil.copytree(run.path, tmp_path / "copy"))
    record = json.loads((copy.path / "record.json").read_text())
    atomic.write_json(copy.path / "record.json", record | {"finished": False})
    with caplog.at_level(logging.WARNING, "lconvnet"):
        found = execute.evaluate(copy, attacks=False)
    assert found.results["finished"] is False
    assert f"is not finished (2 epochs done): this is its best so far, epoch {record['best_epoch']}" in caplog.text


def test_images_that_changed_since_the_training_are_refused(tmp_path):
    """One more file in a folder that test images are carved from draws all parts anew."""
    generator = np.random.default_rng(0)
    for index in range(40):
        path = tmp_path / "images" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    values = VALUES | {"data": {"name": str(tmp_path / "images"), "test": 10, "validation": 10}}
    folder = RunFolder(tmp_path / "run")
    execute.train(parse(values), folder, progress=False)
    assert execute.evaluate(folder, attacks=False).results["finished"]
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "images" / "a" / "new.png")
    before = folder.results.read_bytes()
    with pytest.raises(ValueError, match=r"was trained on other images \(train: 20 images, now 21.*restore the images"):
        execute.evaluate(folder, attacks=False)
    assert folder.results.read_bytes() == before


def test_a_configuration_in_place_states_what_is_trained(tmp_path):
    folder = RunFolder(tmp_path)
    folder.config.write_text(dump(parse(VALUES)))
    for change in ("seed=4", "evaluation.eps=[0.2]"):
        for resume in (False, True):
            with pytest.raises(ValueError, match=r"states another experiment .*--out FOLDER"):
                execute.train(parse(VALUES, [change]), folder, source=folder.config, resume=resume, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["cfg.yaml"]
    elsewhere = parse(VALUES, ["training.accelerator=cpu", "training.checkpoint_every=7"])
    execute.train(elsewhere, folder, source=folder.config, progress=False)
    assert folder.config.read_text() == dump(parse(VALUES))


def test_a_used_folder_is_refused_and_left_as_it_is(run):
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"already holds a run, which is never overwritten; continue it with --resume"):
        train(run.path)
    assert before == {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


def test_another_config_is_never_overwritten(tmp_path):
    folder = RunFolder(tmp_path)
    folder.keep_config(parse(VALUES))
    folder.keep_config(parse(VALUES, ["data.directory=elsewhere", "evaluation.eps=[1.0]"]))
    with pytest.raises(ValueError, match=r"describes another experiment"):
        folder.keep_config(parse(VALUES, ["seed=4"]))
    assert folder.config.read_text() == dump(parse(VALUES))


def test_data_that_is_missing_leaves_the_folder_free_for_another_try(tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        train(tmp_path / "run", "data.name=nowhere")
    assert not (tmp_path / "run" / "cfg.yaml").exists()
    train(tmp_path / "run", "training.epochs=1")


def test_resuming_a_finished_run_changes_nothing_and_other_settings_are_refused(run, tmp_path):
    record, model = (run.path / "record.json").read_bytes(), run.model.read_bytes()
    execute.train(parse(VALUES), run, resume=True, progress=False)
    assert ((run.path / "record.json").read_bytes(), run.model.read_bytes()) == (record, model)
    other = parse(VALUES, ["optimizer.lr=0.02"])
    with pytest.raises(ValueError, match=r"describes another experiment \(.*now.*\), which is never overwritten"):
        execute.train(other, run, resume=True, progress=False)
    with pytest.raises(ValueError, match=r"cfg\.yaml states another experiment .*optimizer\.lr: 0\.01, now 0\.02"):
        execute.train(other, run, source=run.config, resume=True, progress=False)
    copy = RunFolder(shutil.copytree(run.path, tmp_path / "copy"))
    copy.config.write_text(dump(other))
    with pytest.raises(CheckpointError, match=r"lr"):
        execute.train(other, copy, source=copy.config, resume=True, progress=False)


def test_same_seed_same_record_another_seed_another(run, tmp_path):
    train(tmp_path / "again")
    train(tmp_path / "other", "seed=4")
    record = (run.path / "record.json").read_bytes()
    assert (tmp_path / "again" / "record.json").read_bytes() == record
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == run.model.read_bytes()
    assert (tmp_path / "other" / "record.json").read_bytes() != record


def test_the_seed_alone_decides_the_initial_weights():
    experiment = parse(VALUES)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = experiment.model.build((1, 28, 28), 10, seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before), "the global random state is left as it was"
    torch.manual_seed(12)
    second = experiment.model.build((1, 28, 28), 10, seed=5).state_dict()
    other = experiment.model.build((1, 28, 28), 10, seed=6).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_what_was_trained_cannot_be_changed_afterwards(run):
    with pytest.raises(ValueError, match=r"--set seed=... was fixed when the run"):
        execute.evaluate(run, ["seed=4"])
    with pytest.raises(ValueError, match=r"--set data.limit=... was fixed"):
        execute.evaluate(run, ["data.limit=4"])
    assert trained_experiment(run, ["data.directory=x", "evaluation.batch_size=7"]).data.directory == "x"


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"\x80\x04.", b"{}"])
def test_damaged_weights_are_refused(run, tmp_path, damage):
    copy = tmp_path / "run"
    (copy / "checkpoints").mkdir(parents=True)
    for name in ("cfg.yaml", "record.json"):
        (copy / name).write_bytes((run.path / name).read_bytes())
    (copy / "checkpoints" / "best.safetensors").write_bytes(damage)
    with pytest.raises(CheckpointError, match=r"best\.safetensors"):
        execute.evaluate(RunFolder(copy))


def test_find_run_explains(tmp_path, run):
    assert find_run(run.config).path == find_run(run.path).path == run.path
    with pytest.raises(ValueError, match=r"does not exist; name a run folder"):
        find_run(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"holds no trained run"):
        find_run(tmp_path)


def test_a_planted_fault_is_caught_and_keeps_the_evidence(run, tmp_path, monkeypatch):
    """A bound that is 1.5 times too small certifies what an attack that looks for the shortest way breaks."""

    def too_small(network, **options):
        bound = lipschitz_bound(network, **options)
        return dataclasses.replace(bound, upper=bound.upper / 1.5)

    copy = RunFolder(shutil.copytree(run.path, tmp_path / "copy"))
    overrides = ["evaluation.attacks=[{name: ddn, steps: 50}]"]
    assert "ddn-ub" in execute.evaluate(copy, overrides).results["adv_robustness"][0.1], "the true bound holds"
    written = copy.results.read_bytes()
    monkeypatch.setattr(execute, "lipschitz_bound", too_small)
    with pytest.raises(ContradictionError, match=r"ddn changed the label of test image \d+ .* evidence: "):
        execute.evaluate(copy, overrides)
    (evidence,) = copy.evidence.iterdir()
    with safetensors.safe_open(evidence, framework="pt") as file:
        facts = json.loads(file.metadata()["lconvnet"])
        moved = file.get_tensor("adversarial") - file.get_tensor("image")
    assert facts["norm"] == pytest.approx(float(moved.norm()), rel=1e-5)
    assert facts["norm"] < facts["radius"] < 1.51 * facts["norm"]
    assert copy.results.read_bytes() == written, "no results of a broken evaluation"


def test_an_interrupted_evaluation_goes_on_where_it_was(run, tmp_path, monkeypatch, caplog):
    """Stopped after any batch, with a torn or a foreign line, it ends with the results of one that was not."""
    overrides = [
        "evaluation.batch_size=16",
        "evaluation.attacks=[{name: pgd, eps: [0.3], steps: 3}, {name: ddn, steps: 5}]",
    ]
    whole = RunFolder(shutil.copytree(run.path, tmp_path / "whole"))
    execute.evaluate(whole, overrides)
    copy = RunFolder(shutil.copytree(run.path, tmp_path / "copy"))
    shutil.rmtree(copy.evaluation, ignore_errors=True)
    attacked: list[int] = []
    real = robustness.derive_seed

    def counted(seed, purpose, epoch, start):
        attacked.append(start)
        return real(seed, purpose, epoch, start)

    def stop(what, done, count):
        if what == "ddn" and done >= 32:
            raise KeyboardInterrupt

    monkeypatch.setattr(robustness, "derive_seed", counted)
    with pytest.raises(KeyboardInterrupt):
        execute.evaluate(copy, overrides, report=stop)
    assert attacked == [0, 16, 32, 48, 0, 16]
    (journal,) = copy.evaluation.glob("pgd*")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:5], b'{"index": 4, "success": tru\n', *lines[6:]]))
    (torn,) = copy.evaluation.glob("ddn*")
    torn.write_bytes(torn.read_bytes() + b'{"index": 3')
    attacked.clear()
    execute.evaluate(copy, overrides)
    assert attacked == [0, 32, 48], "the batch of the corrupt line, and what was left"
    assert re.search(rf"{journal.name}:6: not a record", caplog.text)
    assert re.search(rf"{torn.name}:34: not a record", caplog.text)
    for name in ("results.yaml", "examples.parquet"):
        assert (copy.path / name).read_bytes() == (whole.path / name).read_bytes()
    attacked.clear()
    execute.evaluate(copy, overrides)
    assert attacked == []


def test_minimum_norm_attacks_run_once_for_every_eps(run, tmp_path):
    copy = RunFolder(shutil.copytree(run.path, tmp_path / "copy"))
    overrides = [
        "evaluation.attacks=[{name: deepfool, steps: 20}, {name: deepfool, steps: 20, norm: linf, eps: [0.01]}]"
    ]
    found = execute.evaluate(copy, overrides)
    rows = pyarrow.parquet.read_table(copy.examples).to_pandas()
    correct = rows.label == rows.prediction
    for eps, row in found.results["adv_robustness"].items():
        left = correct & ~(rows["deepfool norm"] <= eps)
        assert row["deepfool-ub"] == pytest.approx(left.mean(), abs=1e-12)
        assert row["lb"] <= row["deepfool-ub"] <= row["natural"]
    (linf,) = found.results["adv_robustness_linf"].values()
    assert linf["lb"] == pytest.approx((correct & (rows.radius > 0.01 * 28)).mean(), abs=1e-12)
    assert linf["lb"] <= linf["deepfool-ub"] <= linf["natural"]
    assert rows["deepfool success"][~correct].all()
    assert (rows["deepfool norm"][~correct] == 0).all()


SIBLINGS = """evaluation.attacks=[
    {name: deepfool, steps: 3, eps: [0.1]}, {name: deepfool, steps: 20, eps: [0.3]},
    {name: ddn, steps: 2, eps: [0.1]}, {name: ddn, steps: 2, eps: [0.3]},
    {name: fgsm, eps: [0.3]}, {name: fgsm, eps: [0.3], loss: cross-entropy}, {name: fgsm, eps: [0.3], mini: true},
    {name: fgsm, eps: [0.02], norm: linf}, {name: pgd, steps: 2, eps: [0.1]}, {name: pgd, steps: 2, eps: [0.3]}]"""


def test_attacks_of_one_name_keep_their_own_columns_and_keys(run, tmp_path):
    copy = RunFolder(shutil.copytree(run.path, tmp_path / "copy"))
    found = execute.evaluate(copy, [SIBLINGS])
    rows = pyarrow.parquet.read_table(copy.examples).to_pandas()
    columns = [name.removesuffix(" norm") for name in rows if name.endswith(" norm")]
    assert columns == [
        "deepfool(eps=0.1, steps=3)",
        "deepfool(eps=0.3, steps=20)",
        "ddn(eps=0.1)",
        "ddn(eps=0.3)",
        "fgsm(mini=False, loss=margin)@0.3",
        "fgsm(mini=False, loss=cross-entropy)@0.3",
        "fgsm(mini=True, loss=margin)@0.3",
        "fgsm-linf@0.02",
        "pgd@0.1",
        "pgd@0.3",
    ]
    sections = ("adv_robustness", "adv_robustness_mini_eval", "adv_robustness_linf")
    full, mini, linf = (found.results[section] for section in sections)
    keys = [{key for key in section[0.3] if key.endswith("-ub")} for section in (full, mini)]
    assert keys[0] == {
        "deepfool(steps=20)-ub",
        "ddn-ub",
        "fgsm(loss=margin)-ub",
        "fgsm(loss=cross-entropy)-ub",
        "pgd-ub",
    }
    assert keys[1] == {"fgsm-ub"}
    assert {key for key in full[0.1] if key.endswith("-ub")} == {"deepfool(steps=3)-ub", "ddn-ub", "pgd-ub"}
    assert "fgsm-ub" in linf[0.02]
    for key, column in {
        "deepfool(steps=20)-ub": "deepfool(eps=0.3, steps=20)",
        "fgsm(loss=cross-entropy)-ub": "fgsm(mini=False, loss=cross-entropy)@0.3",
    }.items():
        assert full[0.3][key] == pytest.approx(1 - (rows[f"{column} norm"] <= 0.3).mean(), abs=1e-12)


def test_the_same_attack_twice_at_one_eps_is_refused():
    for twice in (
        [{"name": "pgd", "eps": [0.3]}, {"name": "pgd"}],
        [{"name": "deepfool", "eps": [0.1, 0.3]}, {"name": "deepfool", "eps": [0.3, 0.5]}],
    ):
        with pytest.raises(ValueError, match=rf"attacks has {twice[0]['name']} at eps 0\.3 twice"):
            parse({**VALUES, "evaluation": {"eps": [0.3], "attacks": twice}})
    with pytest.raises(ValueError, match=r"fgsm has norm linf but no eps"):
        parse({**VALUES, "evaluation": {"attacks": [{"name": "fgsm", "norm": "linf"}]}})


def test_images_without_a_gradient_are_counted_and_told(run, tmp_path, monkeypatch, caplog):
    copy = RunFolder(shutil.copytree(run.path, tmp_path / "copy"))
    for attack in parse({**VALUES, "evaluation": {"attacks": [{"name": "fgsm"}, {"name": "ddn"}]}}).evaluation.attacks:
        monkeypatch.setattr(type(attack), "call", staticmethod(on_rounded_images(attack.call)))
    attacks = "[{name: fgsm, eps: [0.3]}, {name: ddn, steps: 2, eps: [0.3], mini: true}, {name: pointwise, eps: [0.1]}]"
    results = execute.evaluate(copy, [f"evaluation.attacks={attacks}"]).results
    right = round(results["accuracy"] * 60)
    assert results["adv_robustness"][0.3]["fgsm-ub-zero-gradient"] == right > 0
    assert 0 < results["adv_robustness_mini_eval"][0.3]["ddn-ub-zero-gradient"] <= min(right, 20)
    assert not any("zero" in key for key in results["adv_robustness"][0.1]), "pointwise needs no gradient"
    assert f"fgsm@0.3 found no gradient at {right} of 60 images" in caplog.text


def on_rounded_images(attack):
    @wraps(attack)
    def run(network, *rest, **options):
        return attack(torch.nn.Sequential(Rounded(), network).eval(), *rest, **options)

    return run


class Rounded(torch.nn.Module):
    """Colours of eight bits, as a camera would see them: flat almost everywhere."""

    def forward(self, images):
        return (images * 255).round() / 255
