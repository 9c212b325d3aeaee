"""Generating the runs of a family, again and again: what is written, kept, reported, and that nothing is lost."""

import json
from pathlib import Path

import pytest
import yaml

from lconvnet import atomic, cli
from lconvnet.experiments.family import generate, run_folders
from lconvnet.experiments.loading import load
from lconvnet.experiments.run_folder import RunFolder
from lconvnet.experiments.session import session
from lconvnet.losses import Hinge

RUNS = Path(__file__).parents[2] / "runs"
TEMPLATE = """
data: {name: digits, limit: 100}
model: {architecture: mlp, widths|narrow: [8], widths|wide: [16]}
training: {epochs: 1}
seed|a: 0
seed|b: 1
"""
RELATIVE = ["narrow/a", "narrow/b", "wide/a", "wide/b"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "template.yaml").write_text(TEMPLATE)
    return tmp_path


def names(paths, folder):
    return [path.relative_to(folder).as_posix() for path in paths]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_combination_becomes_a_valid_configuration(folder):
    generated = generate(folder)
    assert names(generated.added, folder) == RELATIVE
    experiment = load(folder / "wide/b/cfg.yaml")
    assert (experiment.model.widths, experiment.seed, experiment.data.limit) == ((16,), 1, 100)


def test_again_changes_nothing(folder):
    generate(folder)
    before = contents(folder)
    generated = generate(folder)
    assert names(generated.unchanged, folder) == RELATIVE
    assert not (generated.added or generated.changed or generated.kept or generated.orphaned)
    assert contents(folder) == before


def test_a_changed_template_reaches_untouched_runs_that_have_not_started(folder):
    generate(folder)
    (folder / "narrow/a/checkpoints").mkdir()
    (folder / "narrow/a/checkpoints/last.ckpt").touch()
    (folder / "wide/b/logs").mkdir()  # it failed before anything was computed
    edited = folder / "narrow/b/cfg.yaml"
    edited.write_text(edited.read_text() + "# mine\n")
    before = contents(folder)
    (folder / "template.yaml").write_text(TEMPLATE.replace("epochs: 1", "epochs: 2"))
    generated = generate(folder)
    assert names(generated.changed, folder) == ["wide/a", "wide/b"]
    assert names(generated.kept, folder) == ["narrow/a", "narrow/b"]
    assert "has started" in generated.kept[folder / "narrow/a"]
    assert "edited by hand" in generated.kept[folder / "narrow/b"]
    assert load(folder / "wide/a/cfg.yaml").training.epochs == 2
    for path in (folder / "narrow/a/cfg.yaml", edited):
        assert path.read_bytes() == before[path]


def test_what_no_template_expands_to_is_reported_and_left(folder):
    generate(folder)
    (folder / "template.yaml").write_text(TEMPLATE.replace("wide", "broad"))
    before = contents(folder)
    generated = generate(folder)
    assert names(generated.added, folder) == ["broad/a", "broad/b"]
    assert names(generated.orphaned, folder) == ["wide/a", "wide/b"]
    assert all(contents(folder)[path] == data for path, data in before.items())


def test_an_invalid_combination_is_named_and_the_others_are_written(folder):
    (folder / "template.yaml").write_text(TEMPLATE + "seed|c: -1\n")
    generated = generate(folder)
    assert names(generated.added, folder) == RELATIVE
    assert names(generated.invalid, folder) == ["narrow/c", "wide/c"]
    assert "seed" in generated.invalid[folder / "wide/c"]


def test_overrides_are_written_into_the_runs(folder):
    generate(folder, ["optimizer.lr=0.001", "training.epochs=7"])
    stated = yaml.safe_load((folder / "wide/a/cfg.yaml").read_text())
    assert stated["optimizer"] == {"name": "adam", "lr": 0.001, "betas": [0.9, 0.999], "weight_decay": 0.0}
    assert load(folder / "wide/a/cfg.yaml").training.epochs == 7


def test_references_are_resolved_for_each_run(folder):
    (folder / "template.yaml").write_text(
        TEMPLATE + "loss: {name: hinge, eps: 0.5}\nevaluation: {eps: ['${loss.eps}']}\n"
    )
    generate(folder)
    assert load(folder / "wide/a/cfg.yaml").evaluation.eps == (0.5,)


@pytest.mark.parametrize(
    ("text", "match"),
    [("a|: 1", r"template\.yaml: a\|: '' cannot"), ("a: [", r"not valid YAML"), ("a: &b 1\nc: *b", "alias")],
)
def test_a_template_that_cannot_be_used_is_named(tmp_path, text, match):
    (tmp_path / "template.yaml").write_text(text)
    with pytest.raises(ValueError, match=match):
        generate(tmp_path)


def test_folders_without_a_template_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no template\.yaml"):
        generate(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        generate(tmp_path / "absent")


def test_the_command(folder, capsys):
    assert cli.invoke(cli.app, ["generate", str(folder), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["added"]) == 4
    (folder / "template.yaml").write_text(TEMPLATE + "seed|c: -1\n")
    assert cli.invoke(cli.app, ["generate", str(folder)]) == 2
    assert "invalid: " in capsys.readouterr().out


@pytest.mark.parametrize("family", ["adv-rob-mnist", "adv-rob-cifar10"])
def test_the_configurations_in_the_repository_are_what_their_template_says(family, tmp_path):
    (tmp_path / "template.yaml").write_bytes((RUNS / family / "template.yaml").read_bytes())
    assert len(generate(tmp_path).added) == 65
    kept = sorted((RUNS / family).rglob("multi-trial-A/cfg.yaml"))
    assert len(kept) == 13
    for path in kept:
        assert path.read_bytes() == (tmp_path / path.relative_to(RUNS / family)).read_bytes()


def test_many_templates_below_one_folder(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "template.yaml").write_text(TEMPLATE)
    assert len(generate(tmp_path).added) == 8


def test_a_run_that_is_about_to_start_keeps_what_it_has_read(folder):
    generate(folder)
    path = folder / "wide/a/cfg.yaml"
    before = path.read_text()
    (folder / "template.yaml").write_text(TEMPLATE.replace("epochs: 1", "epochs: 2"))
    with session(RunFolder(path.parent), "train"):
        generated = generate(folder)
    assert names(generated.kept, folder) == ["wide/a"] and "a process works on it" in generated.kept[path.parent]
    assert path.read_text() == before
    assert names(generate(folder).changed, folder) == ["wide/a"]


def test_overrides_stay_with_a_run_until_others_are_given(folder):
    generate(folder, ["training.epochs=2", "data.limit=50"])
    again = generate(folder)
    assert names(again.unchanged, folder) == RELATIVE and set(again.overridden.values()) == {
        "training.epochs=2 data.limit=50"
    }
    (folder / "template.yaml").write_text(TEMPLATE.replace("seed|b: 1", "seed|b: 1\nloss: {name: hinge, eps: 0.5}"))
    generate(folder)
    experiment = load(folder / "wide/b/cfg.yaml")
    assert (experiment.training.epochs, experiment.data.limit, experiment.loss) == (2, 50, Hinge(eps=0.5))
    generate(folder, ["training.epochs=3"])
    experiment = load(folder / "wide/b/cfg.yaml")
    assert (experiment.training.epochs, experiment.data.limit) == (3, 100)


@pytest.mark.parametrize("override", ["seed=5", "model.widths=[8]", "model={architecture: mlp}"])
def test_an_override_of_a_choice_is_refused(folder, override):
    with pytest.raises(
        ValueError, match=r"makes narrow/a and (narrow/b|wide/a) the same experiment; change the template"
    ):
        generate(folder, [override])
    assert not list(folder.rglob("cfg.yaml"))


def test_one_wrong_override_is_one_error(folder):
    with pytest.raises(ValueError, match=r"--set is 'epochs'; write key=value"):
        generate(folder, ["epochs"])


def test_two_templates_may_not_share_a_run(folder):
    (folder / "narrow").mkdir()
    (folder / "narrow/template.yaml").write_text("model: {architecture: mlp}\nseed|a: 0\n")
    with pytest.raises(ValueError, match=r"narrow/a is a run of .*template.yaml and of .*narrow/template.yaml"):
        generate(folder)


def test_a_started_run_without_its_configuration_gets_no_other(folder):
    generate(folder)
    (folder / "wide/a/record.json").write_text("{}")
    (folder / "wide/a/cfg.yaml").unlink()
    generated = generate(folder)
    assert "its cfg.yaml is gone" in generated.invalid[folder / "wide/a"]
    assert not (folder / "wide/a/cfg.yaml").exists()


def test_hidden_folders_hold_neither_templates_nor_runs(folder):
    """A notebook's copies, version control and the desktop's bin are not the user's runs."""
    generate(folder)
    for name in (".ipynb_checkpoints", ".git/x", ".Trash-0", "__MACOSX"):
        for hidden in (folder / name, folder / "wide" / name):
            hidden.mkdir(parents=True)
            (hidden / "template.yaml").write_text(TEMPLATE)
            (hidden / "cfg.yaml").write_bytes((folder / "wide/a/cfg.yaml").read_bytes())
    generated = generate(folder)
    assert names(generated.runs, folder) == RELATIVE
    assert not generated.orphaned
    assert names(run_folders(folder), folder) == RELATIVE
    hidden = folder / "wide" / ".ipynb_checkpoints"  # unless it is what was named
    assert run_folders(hidden) == [hidden]


@pytest.mark.parametrize("link", ["narrow", "narrow/a", "narrow/a/cfg.yaml", "narrow/a/logs", "narrow/a/checkpoints"])
def test_nothing_is_written_through_a_link_of_the_folder(folder, link, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    target = outside / "cfg.yaml" if link.endswith(".yaml") else outside
    if target != outside:
        target.write_text("seed: 7\n")
    before = contents(outside)
    (folder / link).parent.mkdir(parents=True, exist_ok=True)
    (folder / link).symlink_to(target)
    generated = generate(folder)
    assert all("is a symbolic link" in reason for reason in generated.invalid.values())
    assert names(generated.invalid, folder) == (["narrow/a", "narrow/b"] if link == "narrow" else ["narrow/a"])
    assert contents(outside) == before
    assert (folder / link).is_symlink()


def test_a_link_to_the_folder_itself_is_its_users(folder, tmp_path_factory):
    link = tmp_path_factory.mktemp("elsewhere") / "family"
    link.symlink_to(folder)
    assert names(generate(link).added, link) == RELATIVE


LINKS = ["checkpoints", "logs", "samples", "other-data", "other-data/x-1", "logs/tensorboard/1", "logs/sessions.jsonl"]


@pytest.mark.parametrize("name", LINKS)
def test_no_session_writes_through_a_link_of_its_folder(tmp_path, name, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    target = outside / "file" if name.endswith("jsonl") else outside
    (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / name).symlink_to(target)
    with pytest.raises(ValueError, match="is a symbolic link"), session(RunFolder(tmp_path), "train"):
        pass
    assert not contents(outside)


@pytest.mark.parametrize("write", [atomic.write_text, atomic.append_text])
def test_what_a_session_writes_stays_below_its_folder_wherever_links_come_from(write, tmp_path, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    with session(RunFolder(tmp_path), "train"):
        (tmp_path / "any").symlink_to(outside)
        with pytest.raises(ValueError, match=r"any is a symbolic link, and nothing is written through it"):
            write(tmp_path / "any" / "file", "text")
        assert not contents(outside)
    write(tmp_path / "any" / "file", "text")  # by others the link may be meant
    assert contents(outside)


@pytest.mark.parametrize("labels", [("A", "a"), ("caf\u00e9", "cafe\u0301")], ids=ascii)
def test_labels_that_are_one_folder_elsewhere_are_refused(labels, tmp_path):
    text = "".join(f"seed|{label}: {i}\n" for i, label in enumerate(labels))
    (tmp_path / "template.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"differ in case or coding alone, and are one folder on some systems"):
        generate(tmp_path)
    assert contents(tmp_path).keys() == {tmp_path / "template.yaml"}
