"""Reading: what a run is, and what is refused with which reason."""

import os

import pytest

from lconvnet.report import find_runs

MISLEADING = "adv-rob-cifar10/large/RKO/multi-trial-B"


def only_reason(runs) -> str:
    """The reason of the one bad file; a good run beside it is used."""
    good = runs.named("adv-rob-mnist/small/BCOP-Bjorck/multi-trial-Z")
    found = find_runs(runs.root)
    assert [runs.root / run.path for run in found.runs] == [good], "the rest is used"
    (skipped,) = found.skipped
    assert skipped.path.endswith("results.yaml")
    return skipped.reason


def test_a_specification_is_believed_and_the_folder_is_not(runs):
    runs.recorded(MISLEADING, ["seed=7", "model.conv=svcm"])
    (run,) = find_runs(runs.root).runs
    facts = run.facts
    assert (facts.data, facts.architecture, facts.method, facts.activation) == ("mnist", "Small", "SVCM", "MaxMin")
    assert (facts.trial, facts.specified, run.path) == ("7", True, MISLEADING)


def test_a_cfg_alone_is_a_specification(runs):
    folder = runs.recorded(MISLEADING)
    (folder / "record.json").unlink()
    assert find_runs(runs.root).runs[0].facts.method == "BCOP"


def test_the_record_is_believed_before_the_cfg(runs):
    folder = runs.recorded("a", ["training.epochs=3"])
    cfg = (folder / "cfg.yaml").read_text()
    (folder / "cfg.yaml").write_text(cfg.replace("epochs: 3", "epochs: 9"))
    assert dict(find_runs(runs.root).runs[0].facts.recipe)["training.epochs"] == 3


def test_dense_networks_are_named_by_their_widths(runs):
    for folder, widths in (("a", "[1024,1024,1024]"), ("b", "[64,32]")):
        runs.recorded(folder, ["model.architecture=mlp", f"model.widths={widths}"])
    assert [run.facts.architecture for run in find_runs(runs.root).runs] == ["FC-3", "FC 64-32"]


@pytest.mark.parametrize(
    ("path", "facts"),
    [
        ("adv-rob-cifar10/fc/3-layers/multi-trial-A", "robustness cifar10 FC-3 Orthogonal MaxMin A None"),
        ("adv-rob-mnist/large/L2Nonexpansive/multi-trial-E", "robustness mnist Large RK-L2NE MaxMin E None"),
        ("wde_stl10/lr-0.1/conv/BCOP/relu/multi-trial-B", "wasserstein stl10 Critic BCOP ReLU B 0.1"),
        ("wde_cifar10/lr-1/conv/OSSN/n_iters-10/maxmin/multi-trial-C", "wasserstein cifar10 Critic OSSN MaxMin C 1.0"),
        ("baselines/qian-mnist/model-3", "robustness mnist Model-3 QW ReLU  None"),
    ],
)
def test_folder_names_of_the_original(runs, path, facts):
    runs.named(path)
    found = find_runs(runs.root).runs[0].facts
    assert " ".join(map(str, list(vars(found).values())[:7])) == facts
    assert not found.specified


def test_a_folder_deep_in_the_tree_may_be_read_alone(runs):
    folder = runs.named("adv-rob-mnist/small/RKO/multi-trial-A")
    assert find_runs(folder).runs[0].facts.method == "RKO"


def test_the_originals_cfg_is_no_specification(runs):
    folder = runs.named("adv-rob-mnist/small/RKO/multi-trial-A")
    (folder / "cfg.yaml").write_text("<type>: Experiment\nseed: 0\n")
    assert not find_runs(runs.root).runs[0].facts.specified


def test_older_evaluations_are_not_read(runs):
    folder = runs.named("adv-rob-mnist/small/RKO/multi-trial-A")
    (folder / "results-1.yaml").write_text("loss: [broken")
    found = find_runs(runs.root)
    assert (len(found.runs), found.skipped) == (1, ())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("loss: [1, 2", "not valid YAML"),
        ("- 1\n", "mapping"),
        ("a: &x [1]\nb: *x\n", "alias"),
        ("x: " + "[" * 50 + "]" * 50, "nested deeper"),
        ("accuracy: 0.5\n", "no loss"),
        ("loss: .nan\n", "loss is nan; it should be a finite number"),
        ("loss: -.inf\n", "loss is -inf"),
        ("loss: true\n", "loss is True"),
        ("loss: !!python/object/apply:os.system ['true']\n", "uses a YAML tag"),
        ("loss: 1\naccuracy: 1.5\n", "accuracy is 1.5; it should lie between 0 and 1"),
        ("loss: 1\naccuracy: 97.5\n", "accuracy is 97.5"),
        ("loss: 1\naccuracy: '0.5'\n", "accuracy is '0.5'"),
        ("loss: 1\n", "no accuracy"),
        ("loss: 1\naccuracy: 1\nadv_robustness: 3\n", "adv_robustness is 3; it should map"),
        ("loss: 1\naccuracy: 1\nadv_robustness: {a: {lb: 0}}\n", "an eps of adv_robustness is 'a'"),
        ("loss: 1\naccuracy: 1\nadv_robustness: {0.3: 1}\n", "adv_robustness 0.3 is 1"),
        ("loss: 1\naccuracy: 1\nadv_robustness: {0.3: {lb: 2}}\n", "0.3: lb is 2"),
        ("loss: 1\naccuracy: 1\nadv_robustness: {0.3: {lb: .nan}}\n", "0.3: lb is nan"),
        ("loss: 1\naccuracy: 1\nadv_robustness: {0.3: {lb: 1, pgd-ub: 0.5}}\n", "contradict"),
        ("loss: 1\naccuracy: 1\nadv_robustness: {0.3: {natural: 0.4, pgd-ub: 0.5}}\n", "contradict"),
        ("loss: 1\naccuracy: 1\nadv_robustness: {0.3: {lb: 1}, 0.3000001: {lb: 1}}\n", "same eps twice"),
        ("loss: 1\naccuracy: 1\nsanity_check/layer-l-constant: 0\n", "layer-l-constant is 0"),
    ],
)
def test_a_corrupt_file_is_named_and_the_rest_is_used(runs, text, reason):
    folder = runs.named("adv-rob-mnist/small/RKO/multi-trial-A")
    (folder / "results.yaml").write_text(text)
    assert reason in only_reason(runs)


def test_a_huge_file_and_bytes_that_are_no_text(runs):
    folder = runs.named("adv-rob-mnist/small/RKO/multi-trial-A")
    (folder / "results.yaml").write_text("loss: 1\n" + "#" * 1_000_001)
    assert "more than 1000000" in only_reason(runs)
    (folder / "results.yaml").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in only_reason(runs)


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("record.json", "{", "not a readable training record"),
        ("record.json", "[" * 100_000, "not a readable training record"),
        ("record.json", '{"format": 99}', "not a readable training record"),
        ("cfg.yaml", "model: {architecture: smal}", "did you mean 'small'"),
    ],
)
def test_a_broken_specification_is_not_replaced_by_the_folders_name(runs, file, text, reason):
    folder = runs.named("adv-rob-mnist/small/RKO/multi-trial-A")
    (folder / file).write_text(text)
    assert reason in only_reason(runs)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("somewhere/else", "no specification"),
        ("adv-rob-mnist/small/AOL/multi-trial-A", "method 'AOL' is unknown; known: BCOP-Bjorck"),
        ("wde_stl10/lr-fast/conv/BCOP/relu/multi-trial-A", "learning rate 'fast'"),
    ],
)
def test_a_folder_that_says_nothing(runs, path, reason):
    runs.named(path)
    assert reason in only_reason(runs)


def test_the_same_experiment_twice_is_counted_once(runs):
    runs.recorded("a", ["seed=1"])
    runs.recorded("b", ["seed=1"])
    found = find_runs(runs.root)
    assert [run.path for run in found.runs] == ["a"]
    assert found.skipped[0].reason == "the same experiment and seed as a, which is used"


def test_reported_through_the_logger(runs, caplog):
    folder = runs.named("adv-rob-mnist/small/RKO/multi-trial-A")
    runs.named("adv-rob-mnist/small/RKO/multi-trial-B")
    (folder / "results.yaml").write_text("loss: .nan")
    find_runs(runs.root).report_skipped()
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("lconvnet", "WARNING")
    assert record.getMessage().startswith(f"not used: {folder / 'results.yaml'}: loss is nan")


def test_a_link_in_a_circle_is_not_followed(runs):
    folder = runs.named("adv-rob-mnist/small/RKO/multi-trial-A")
    (folder / "again").symlink_to(runs.root)
    assert len(find_runs(runs.root).runs) == 1


def test_a_name_that_is_no_text(runs):
    runs.named("adv-rob-mnist/small/RKO/multi-trial-A")
    bad = os.fsdecode(b"\xff")
    runs.named(bad)
    (skipped,) = find_runs(runs.root).skipped
    assert skipped.path.encode() == "�/results.yaml".encode()


@pytest.mark.parametrize("empty", [True, False])
def test_nothing_to_read(runs, empty):
    if empty:
        runs.root.mkdir()
    with pytest.raises(ValueError, match="holds no usable results.yaml; evaluate" if empty else "is not a folder"):
        find_runs(runs.root)


def test_nothing_usable(runs):
    (runs.named("a") / "results.yaml").write_text("loss: .nan")
    with pytest.raises(ValueError, match="no usable results.yaml: a/results.yaml: loss is nan"):
        find_runs(runs.root)


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", ".git", ".Trash-0", "__MACOSX"])
def test_hidden_folders_hold_no_runs(runs, hidden):
    runs.named("adv-rob-mnist/small/RKO/multi-trial-A")
    runs.named(f"adv-rob-mnist/small/RKO/{hidden}/multi-trial-B")
    runs.named(f"{hidden}/adv-rob-mnist/small/RKO/multi-trial-C")
    found = find_runs(runs.root)
    assert [run.path for run in found.runs] == ["adv-rob-mnist/small/RKO/multi-trial-A"]
    assert not found.skipped
