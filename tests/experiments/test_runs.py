"""The committed configurations: valid, buildable, and the paper's recipe as the original's own files state it."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from lconvnet.experiments.family import expand
from lconvnet.experiments.loading import load, parse_any, read

RUNS = Path(__file__).resolve().parents[2] / "runs"
COMMITTED = re.compile(r"(?!.*multi-trial-[B-E])")  # the other trials are generated
ALL = sorted(path.relative_to(RUNS) for path in RUNS.glob("**/cfg.yaml") if COMMITTED.match(str(path)))
CONFIGS = [path for path in ALL if "task" not in read(RUNS / path)]
PAPER = [path for path in CONFIGS if path.parts[0].startswith("adv-rob")]


def shape_of(experiment) -> tuple[int, int, int]:
    # SVCM projects at the image's true size when it is built: half a minute for Large, and no more to learn here.
    if getattr(experiment.model, "conv", "") == "svcm":
        return (1, 8, 8)
    return (3, 32, 32) if experiment.data.name == "cifar10" else (1, 28, 28)


# Networks take time to build, and the paper's Large ones differ from its Small ones in sizes only.
SLOW = re.compile("adv-rob.*/large/|adv-rob-cifar10/small/|qian.*/model-4|mnist-ten-epochs")


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_config_is_valid(path):
    experiment = load(RUNS / path)
    experiment.optimizer([torch.nn.Parameter(torch.zeros(1))])


@pytest.mark.parametrize(
    "path", [pytest.param(p, marks=[pytest.mark.slow] * bool(SLOW.search(str(p)))) for p in CONFIGS], ids=str
)
def test_the_network_of_a_config_runs(path):
    experiment = load(RUNS / path)
    shape = shape_of(experiment)
    model = experiment.model.build(shape, 10, seed=experiment.seed).eval()
    with torch.no_grad():
        assert model(torch.rand(2, *shape)).shape == (2, 10)


def test_all_of_the_papers_runs_are_there(reference_dir):
    folders = (reference_dir / "run_paths.txt").read_text().split()
    wanted = {f.removeprefix("runs/") for f in folders if "/adv-rob-" in f and f.endswith("multi-trial-A")}
    assert {str(path.parent) for path in PAPER} == wanted


@pytest.mark.parametrize("path", PAPER, ids=str)
def test_recipe_equals_the_originals(path, reference_dir):
    template = reference_dir / "runs" / path.parts[0] / "template.yaml"
    original, ours = yaml.safe_load(template.read_text()), load(RUNS / path)
    trainer = original["trainer"]
    assert ours.training.epochs == original["num_epochs"]
    assert ours.training.batch_size == original["train_batch_size"]
    assert ours.training.project_every == trainer["proj_every_n_its"]
    assert ours.seed == original["seed|multi-trial-A"]
    assert ours.optimizer.lr == trainer["optimizer"]["lr"]
    assert trainer["optimizer"]["<type>"].lower() == type(ours.optimizer).__name__.lower()
    assert ours.schedule.gamma == trainer["lr_scheduler"]["gamma"]
    assert ours.loss.eps == trainer["main_step"]["criterion"]["eps"]
    assert ours.data.name == original["dataloaders"]["dataset"]["<type>"]
    full = [step for step in original["post_steps"] if not step["mini_eval"]]
    mini = [step for step in original["post_steps"] if step["mini_eval"]]
    assert list(ours.evaluation.eps) == [eps for step in full for eps in step["eps_range"]]
    pgd = full[1]["attacker"][0]
    attack = ours.evaluation.attacks[0]
    assert (attack.name, attack.step_size, attack.steps) == ("pgd", pgd["alpha"], pgd["iters"])
    assert [(list(attack.eps), attack.mini) for attack in ours.evaluation.attacks] == [
        (step["eps_range"], step["mini_eval"]) for step in (full[1], *mini) for _ in step["attacker"]
    ]


def test_the_demo_is_the_examples():
    text = (RUNS.parent / "examples" / "demo.py").read_text(encoding="utf-8")
    experiment = load(RUNS / "demo" / "cfg.yaml")
    assert re.findall(r"EPOCHS = (\d+)", text) == [str(experiment.training.epochs)]
    assert [float(rate) for rate in re.findall(r"lr=([\de.-]+)", text)] == [experiment.optimizer.lr]
    assert max(experiment.evaluation.eps) == experiment.loss.eps


def test_configs_state_everything_that_matters():
    for path in CONFIGS:
        assert {"seed", "data", "model", "loss", "optimizer", "schedule", "training", "evaluation"} == set(
            read(RUNS / path)
        )


TEMPLATES = sorted(path.relative_to(RUNS) for path in RUNS.glob("**/template.yaml"))
OTHERS = [path for path in ALL if path not in CONFIGS]


@pytest.mark.parametrize("path", [*OTHERS, *TEMPLATES], ids=str)
def test_every_other_configuration_and_template_is_valid(path):
    for choice in expand(read(RUNS / path)):
        parse_any(choice.value)


@pytest.mark.parametrize("data", ["cifar10", "stl10"])
def test_critics_take_the_generator_that_is_trained(data):
    critics = {choice.value["generated"] for choice in expand(read(RUNS / f"wde_{data}" / "template.yaml"))}
    generators = {f"runs/gan_{data}/{choice.path}" for choice in expand(read(RUNS / f"gan_{data}" / "template.yaml"))}
    assert len(critics) == 1 and critics <= {f"{run}/generator.safetensors" for run in generators}
