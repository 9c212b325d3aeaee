"""What is averaged with what, how other recipes are called, and what fills a missing cell."""

from pathlib import Path

import pytest

from lconvnet.experiments.family import expand
from lconvnet.experiments.loading import load, parse_any, read
from lconvnet.report import find_runs, measurements, tables
from lconvnet.report.facts import describe, differences, facts_of_experiment

CONFIGS = Path(__file__).parents[2] / "runs"
SMALL = "MNIST (ε = 1.58), Small"


@pytest.fixture
def cells(runs, table_of):
    return lambda number: table_of(tables(find_runs(runs.root).runs, "runs"), number)


def columns(cells, number: str) -> list[str]:
    return list(dict.fromkeys(column for _, _, column in cells(number)))


def test_without_runs_there_is_an_empty_frame_and_no_table():
    assert len(measurements([])) == 0 and "attack" in measurements([]) and tables([]) == ()


def test_seeds_are_averaged(runs, cells):
    for seed, accuracy in enumerate((0.8, 0.9)):
        runs.recorded(f"run-{seed}", [f"seed={seed}"], accuracy=accuracy)
    cell = cells("1")[SMALL, "Clean", "BCOP"]
    assert (round(cell.mean, 9), round(cell.std, 9), cell.n, cell.text) == (85.0, 5.0, 2, "85.00 ± 5.00")


@pytest.mark.parametrize(
    ("overrides", "column"),
    [
        (["loss.name=offset-cross-entropy", "training.epochs=10"], "BCOP (offset-cross-entropy, 10 epochs)"),
        (["training.epochs=1"], "BCOP (1 epoch)"),
        (["optimizer.lr=0.03"], "BCOP (optimizer.lr=0.03)"),
        (["model.activation=relu"], "BCOP (model.activation=relu)"),
        (["model.padding_mode=zeros"], "BCOP (model.padding_mode=zeros)"),
        (["training.batch_size=64"], "BCOP (training.batch_size=64)"),
        (["data.validation=0"], "BCOP (data.validation=0)"),
    ],
)
def test_another_recipe_is_another_column(runs, cells, overrides, column):
    runs.recorded("paper", accuracy=0.9)
    runs.recorded("other", overrides, accuracy=0.8)
    assert cells("1")[SMALL, "Clean", "BCOP"].text == "90.00"
    assert cells("1")[SMALL, "Clean", column].text == "80.00"
    assert columns(cells, "1") == ["OSSN", "RKO", "SVCM", "BCOP", column]


def test_another_recipe_alone_is_not_called_by_the_plain_name(runs, cells):
    runs.recorded("other", ["optimizer.lr=0.03"])
    assert cells("1")[SMALL, "Clean", "BCOP"].text == "—"
    assert cells("1")[SMALL, "Clean", "BCOP (optimizer.lr=0.03)"].text == "75.00"


def test_labels_show_what_tells_experiments_apart_and_a_note_shows_the_rest(runs, cells):
    common = ["training.epochs=2", "training.batch_size=64"]
    runs.recorded("a", [*common, "optimizer.lr=0.01"])
    runs.recorded("b", [*common, "optimizer.lr=0.02"])
    assert columns(cells, "1")[-2:] == ["BCOP (2 epochs, optimizer.lr=0.01)", "BCOP (2 epochs, optimizer.lr=0.02)"]
    table = tables(find_runs(runs.root).runs)[0]
    assert "training.batch_size=64" in table.notes[0]


def test_an_unfinished_run_is_another_experiment(runs, cells):
    runs.recorded("a", top={"finished": False})
    assert cells("1")[SMALL, "Clean", "BCOP (unfinished)"].text == "75.00"


def test_with_and_without_a_specification_are_not_averaged(runs, cells):
    runs.recorded("a", accuracy=0.9)
    runs.named("adv-rob-mnist/small/BCOP-Bjorck/multi-trial-A", accuracy=0.8)
    assert cells("1")[SMALL, "Clean", "BCOP"].text == "90.00"
    assert cells("1")[SMALL, "Clean", "BCOP (no specification)"].text == "80.00"


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.glob("adv-rob-*/*/*/*/cfg.yaml")), ids=lambda p: "/".join(p.parts[-5:-2])
)
def test_the_plain_name_stands_for_the_configurations_in_runs(path):
    assert differences(facts_of_experiment(load(path))) == ()


def test_where_the_recipe_comes_from_does_not_matter(runs, cells):
    folder = runs.recorded("a", ["seed=0"])
    (folder / "record.json").unlink()
    runs.recorded("b", ["seed=1"])
    assert cells("1")[SMALL, "Clean", "BCOP"].n == 2


def test_ties_at_the_printed_decimals_are_all_best(runs, cells):
    for conv, accuracy in (("bcop", 0.80001), ("rko", 0.80002), ("ossn", 0.79)):
        runs.recorded(conv, [f"model.conv={conv}"], accuracy=accuracy)
    row = {column: cells("1")[SMALL, "Clean", column].best for column in ("OSSN", "RKO", "SVCM", "BCOP")}
    assert row == {"OSSN": False, "RKO": True, "SVCM": False, "BCOP": True}


def test_an_attack_that_was_set_differently_is_not_averaged(runs, cells):
    for seed, steps in enumerate((10, 20)):
        runs.recorded(f"{seed}", [f"seed={seed}", f"evaluation.attacks=[{{name: pgd, steps: {steps}}}]"])
    cell = cells("9")[SMALL, "BCOP", "PGD"]
    assert (cell.mean, cells("9")[SMALL, "BCOP", "Provable"].n) == (None, 2)
    assert "pgd was set differently in these runs" in cell.fill


def test_results_from_before_the_loss_was_a_key_are_not_averaged_with_later_ones(runs, cells):
    """They climbed cross-entropy, and say so by silence."""
    pgd = {"name": "pgd", "steps": 20}
    for seed, attack in enumerate((pgd, pgd | {"loss": "margin"})):
        runs.recorded(f"{seed}", [f"seed={seed}"], top={"evaluation": {"eps": [1.58], "attacks": [attack]}})
    assert "pgd was set differently in these runs" in cells("9")[SMALL, "BCOP", "PGD"].fill


def test_attacks_of_one_name_have_a_column_each(runs, cells):
    twice = "evaluation.attacks=[{name: pgd, steps: 20}, {name: pgd, steps: 40}]"
    runs.recorded("a", [twice], **{"pgd(steps=20)_ub": 0.5, "pgd(steps=40)_ub": 0.45}, drop=["pgd-ub"])
    runs.recorded("b", [twice, "seed=1"], **{"pgd(steps=20)_ub": 0.6, "pgd(steps=40)_ub": 0.55}, drop=["pgd-ub"])
    found = cells("9")
    assert found[SMALL, "BCOP", "PGD (steps=20)"].mean == pytest.approx(55)
    assert found[SMALL, "BCOP", "PGD (steps=40)"].mean == pytest.approx(50)


def test_every_configuration_named_in_a_command_exists_or_is_of_the_critics(runs):
    runs.named("adv-rob-mnist/small/BCOP-Bjorck/multi-trial-A")
    runs.critic("wde_stl10/lr-0.1/conv/RKO/relu/multi-trial-A", -1, 1)
    fills = [cell.fill for t in tables(find_runs(runs.root).runs) for r in t.rows for cell in r.cells if cell.fill]
    paths = {fill.split()[4] for fill in fills if fill.startswith("python -m lconvnet.run --cfg ")}
    classifiers = {path for path in paths if "/adv-rob-" in path}
    assert len(classifiers) > 20
    assert [path for path in classifiers if not (CONFIGS.parent / path).is_file()] == []
    assert "runs/wde_stl10/lr-0.0001/conv/OSSN/n_iters-10/maxmin/multi-trial-A/cfg.yaml" in paths - classifiers


def test_a_missing_cell_says_what_fills_it(runs, cells):
    runs.named("adv-rob-mnist/small/BCOP-Bjorck/multi-trial-A")
    cell = cells("1")["MNIST (ε = 1.58), Large", "Robust", "RKO"]
    command = (
        "python -m lconvnet.run --cfg runs/adv-rob-mnist/large/RKO/multi-trial-A/cfg.yaml  # then again with --test"
    )
    assert (cell.mean, cell.fill) == (None, command)
    assert "no command trains these published" in cells("3")["MNIST (ε = 1.58)", "Clean", "KW Small"].fill


def test_only_what_the_paper_has_is_asked_for(runs, cells):
    runs.recorded("a", ["training.epochs=1"])
    found = cells("1")
    large = "MNIST (ε = 1.58), Large"
    assert (found[large, "Clean", "BCOP (1 epoch)"].fill, found[large, "Clean", "BCOP"].fill != "") == ("", True)


def test_two_folders_of_images_with_the_same_last_name_are_two_data_sets(runs, cells):
    for place, accuracy in (("x", 0.8), ("y", 0.9)):
        runs.recorded(place, [f"data.name=/{place}/flowers", f"seed={ord(place)}"], accuracy=accuracy)
    found = {key[1]: cell.text for key, cell in cells("9").items() if key[2] == "Clean"}
    assert found == {
        f"BCOP (hinge, 200 epochs, data.name=/{p}/flowers)": t for p, t in (("x", "80.00"), ("y", "90.00"))
    }


def test_a_run_that_lacks_a_measure_is_to_be_evaluated_again(runs, cells):
    runs.recorded("my run", drop=["lb", "pgd-ub", "pgd-ub-dist"])
    assert (
        cells("1")[SMALL, "Robust", "BCOP"].fill == "lconvnet evaluate 'runs/my run' --set 'evaluation.eps=[0.3, 1.58]'"
    )
    assert cells("3")["MNIST (ε = 1.58)", "PGD", "BCOP Small"].fill.startswith(
        "lconvnet evaluate 'runs/my run'  # with pgd"
    )


def test_a_table_without_a_value_is_left_out(runs):
    runs.named("adv-rob-mnist/small/BCOP-Bjorck/multi-trial-A")
    assert [table.number for table in tables(find_runs(runs.root).runs)] == ["1", "3", "7", "8", "9"]


def test_another_data_set_and_an_unknown_attack_are_in_the_last_table(runs, cells):
    runs.recorded("a", ["data.name=flowers"], my_attack_ub=0.3)
    found = cells("9")
    assert found["flowers (ε = 1.58), Small", "BCOP (hinge, 200 epochs)", "my attack"].text == "30.00"


def test_the_learning_rate_with_the_largest_certified_distance_is_chosen(runs, cells):
    for rate, loss, lipschitz in (("0.1", -100, 50), ("0.01", -4, 1), ("0.001", -3, 1)):
        for trial in "AB":
            runs.critic(f"wde_stl10/lr-{rate}/conv/OSSN/n_iters-10/maxmin/multi-trial-{trial}", loss, lipschitz)
    assert cells("4a")["STL-10, MaxMin", "W1", "OSSN"].text == "4.00 ± 0.00"
    assert "lr-0.0001/conv/BCOP/maxmin" in cells("4a")["STL-10, MaxMin", "W1", "BCOP"].fill


@pytest.mark.parametrize("data", ["cifar10", "stl10"])
def test_a_critic_of_the_template_is_the_papers_and_a_shorter_one_is_named(data):
    values = [choice.value for choice in expand(read(CONFIGS / f"wde_{data}" / "template.yaml"))]
    assert {differences(facts_of_experiment(parse_any(each))) for each in values} == {()}
    shorter = parse_any({**values[0], "training": {"steps": 1}})
    assert describe(differences(facts_of_experiment(shorter))) == "1 step"


def test_eps_is_matched_with_a_tolerance(runs, cells):
    folder = runs.named("adv-rob-cifar10/small/RKO/multi-trial-A")
    for key, text in (("0.1411764706", "25.00"), ("0.14117657", "25.00"), ("0.1412", "—")):
        original = "loss: 1\naccuracy: 0.5\nadv_robustness:\n  {}:\n    lb: 0.25\n"
        (folder / "results.yaml").write_text(original.format(key))
        found = cells("7")["CIFAR-10 (ε = 36/255), Small", "Robust", "RKO"]
        assert found.text == text, key


def test_other_norms_have_blocks_of_their_own(runs, cells):
    linf = {0.1: {"natural": 0.75, "lb": 0.05, "pgd-ub": 0.125}}
    mini = {0.1: {"natural": 0.8, "lb": 0.1, "square-ub": 0.2}}
    runs.recorded("a", top={"adv_robustness_linf": linf, "adv_robustness_linf_mini_eval": mini})
    found = cells("9")
    block = "MNIST (ε = 0.1 in linf), Small"
    expected = {"PGD": "12.50", "Provable": "5.00", "Square*": "20.00", "Provable*": "10.00"}
    assert {column: found[block, "BCOP", column].text for column in expected} == expected
    assert found[SMALL, "BCOP", "PGD"].text == "50.00"
    assert found[SMALL, "BCOP", "Square*"].fill.endswith("square (mini: true) under evaluation.attacks of its cfg.yaml")
