"""Configurations in the original's grammar: those that it published, and what is refused in others."""

from copy import deepcopy

import pytest
import torch
import yaml

from lconvnet.cli import app, invoke
from lconvnet.experiments.config import Experiment, WassersteinExperiment
from lconvnet.experiments.family import expand
from lconvnet.experiments.loading import load_any, parse_any, read
from lconvnet.experiments.original import is_original, network
from lconvnet.layers import NearestUpsampling
from tests.importing.originals import OPTIONS, RELU, SHAPES, classifier, convnet, critic, mlp, typed

OURS = ("adv-rob-mnist", "adv-rob-cifar10", "wde_cifar10", "wde_stl10")
BASELINES = tuple(f"baselines/{name}-{data}" for name in ("kw", "qian") for data in ("mnist", "cifar10"))
FAMILIES = OURS + BASELINES
SMALL = classifier(convnet("SmallConvNet", "BCOP", SHAPES["mnist"], 10))


def published(place, family):
    """Every run of a template by its path."""
    return {choice.path: choice.value for choice in expand(read(place / "runs" / family / "template.yaml"))}


def changed(config, place, value):
    """A configuration with another value at a place such as "trainer.net.scaling"."""
    config = deepcopy(config)
    *above, last = place.split("/")
    section = config
    for key in above:
        section = section[int(key) if key.isdigit() else key]
    section[last] = value
    return config


@pytest.mark.parametrize("family", FAMILIES)
def test_published_families_are_ours(family, reference_dir, pytestconfig):
    """Two sources that were written apart: the published template, translated, and the one in this repository.

    Ours bounds baselines more, attacks them at every radius and, since it only evaluates them, does not augment them;
    its critics see the images of CIFAR-10 as they are stored.
    """
    ours, theirs = published(pytestconfig.rootpath, family), published(reference_dir, family)
    assert ours.keys() == theirs.keys()
    for path, values in theirs.items():
        old, new = (parse_any(found).model_dump() for found in (values, ours[path]))
        for found in (old, new):
            found.get("critic", {}).pop("upsampling", None)
            if family in BASELINES:
                del found["data"]["augment"]
                for measured in ("attacks", "linear_bounds"):
                    del found["evaluation"][measured]
        assert old == new, path


def test_the_run_paths_are_the_published_ones(reference_dir):
    expected = (reference_dir / "run_paths.txt").read_text().split()
    folders = [path.parent for path in (reference_dir / "runs").rglob("template.yaml")]
    found = [folder / choice.path for folder in folders for choice in expand(read(folder / "template.yaml"))]
    assert sorted(str(path.relative_to(reference_dir)) for path in found) == sorted(expected)


def test_attacks_of_the_evaluation(reference_dir):
    config = load_any(reference_dir / "mnist-small-BCOP-Bjorck" / "cfg.yaml")
    assert isinstance(config, Experiment)
    facts = [(attack.name, attack.eps, attack.mini) for attack in config.evaluation.attacks]
    slow = [("boundary_attack", (1.58,), True), ("pointwise", (1.58,), True)]
    assert facts == [("pgd", (1.58,), False), ("fgsm", (1.58,), False), *slow]
    assert config.evaluation.eps == (0.3, 1.58)


def step(config, shape, outputs):
    """One optimiser step on random images of the network that a configuration describes; the parameters that moved."""
    experiment = parse_any(config)
    classifies = isinstance(experiment, Experiment)
    model = experiment.model.build(shape, outputs, seed=0) if classifies else experiment.critic.build(shape, seed=0)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = experiment.optimizer(parameters)
    outcome = model(torch.rand(4, *shape))
    labels = torch.arange(4)
    loss = experiment.loss(outcome, labels) if classifies else outcome[:2].mean() - outcome[2:].mean()
    loss.backward()
    optimizer.step()
    assert all(bool(parameter.isfinite().all()) for parameter in parameters)
    moved = [bool((old != new).any()) for old, new in zip(before, parameters, strict=True)]
    # a difference of means does not feel the bias of the output
    return moved if classifies else moved[:-1] if len(moved) % 2 else [m for m in moved if m]


@pytest.mark.parametrize("method", OPTIONS)
def test_a_training_step_of_small(method):
    config = classifier(convnet("SmallConvNet", method, SHAPES["mnist"], 10))
    assert all(step(config, *network(config)))


def test_a_training_step_of_the_dense_network():
    config = classifier(mlp([3072, 32, 10]), "cifar10")
    assert network(config) == ((3, 32, 32), 10)
    assert all(step(config, *network(config)))


@pytest.mark.parametrize("family", [name for name in BASELINES if "kw" in name])
def test_a_training_step_of_the_baselines(family, reference_dir):
    config = next(iter(published(reference_dir, family).values()))
    assert any(step(config, *network(config)))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_training_step_of_every_published_network(family, reference_dir):
    """The networks are those of all runs, the seeds and rates left out; images are of the size of the data set."""
    done = set()
    for config in published(reference_dir, family).values():
        net = yaml.safe_dump(config["trainer"]["net"])
        if net not in done:
            done.add(net)
            shape, outputs = network(config)
            assert any(step(config, (3, 32, 32) if family == "wde_cifar10" else shape, outputs))
    assert len(done) == (2 if family in BASELINES else 6 if family.startswith("wde") else 13)


def test_a_frozen_kernel_and_other_activations():
    config = classifier(convnet("SmallConvNet", "BCOP", SHAPES["mnist"], 10, RELU))
    frozen = changed(config, "trainer/net/[submodules]/conv_module/conv_module/frozen", True)
    model = parse_any(frozen).model_dump()["model"]
    assert (model["conv"], model["activation"]) == ("bcop-fixed", "relu")
    triples = changed(SMALL, "trainer/net/[submodules]/activation/group_size", 3)
    assert parse_any(triples).model_dump()["model"]["group_size"] == 3


def test_critics_see_repeated_pixels():
    values = parse_any(critic(convnet("DCGANDiscriminator", "RKO", (3, 64, 64), 1))).model_dump()
    assert (values["data"]["name"], values["data"]["image_size"]) == ("cifar10", None)
    assert (values["critic"]["upsampling"], values["training"]["steps"]) == (2, 25600)
    stl10 = parse_any(critic(convnet("DCGANDiscriminator", "RKO", (3, 64, 64), 1), "stl10")).model_dump()
    assert (stl10["data"]["image_size"], stl10["critic"]["upsampling"]) == (64, 1)


def test_an_upsampling_critic_repeats_pixels():
    experiment = parse_any(critic(convnet("DCGANDiscriminator", "RKO", (3, 64, 64), 1)))
    assert isinstance(experiment, WassersteinExperiment)
    config = experiment.critic
    one, two = (config.model_copy(update={"conv": "unconstrained", "upsampling": factor}) for factor in (1, 2))
    critics = one.build((3, 64, 64), seed=0), two.build((3, 32, 32), seed=0)
    x = torch.rand(2, 3, 32, 32)
    repeated = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(critics[0].eval()(repeated), critics[1].eval()(x))
    assert isinstance(critics[1][0], NearestUpsampling)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("trainer/net/<type>", "ResNet", r"trainer\.net\.<type> is 'ResNet'; .*Allowed: Sequential, SmallConvNet"),
        ("trainer/net/<type>", "os.system", r"trainer\.net\.<type> is 'os.system'"),
        ("trainer/optimizer/<type>", "Adamw", r"trainer\.optimizer\.<type> is 'Adamw'; did you mean 'Adam'\?"),
        ("trainer/net/[submodules]/conv_module/conv_module/<type>", "LOT", r"net\.conv_module\.conv_module\.<type>"),
        ("trainer/net/[submodules]/conv_module/conv_module/projection", True, r"projection is True; .*only False"),
        ("trainer/net/[submodules]/conv_module/conv_module/ranks", 3, r"ranks = 3 is not a known argument of BCOP"),
        ("trainer/net/[submodules]/conv_module/conv_module/bjorck_iters", 5, r"bjorck_iters is 5; of BCOP only 20 can"),
        (
            "trainer/net/[submodules]/linear_module",
            typed("BjorckLinear", bjorck_iters=3),
            r"linear_module\.bjorck_iters is 3; of BjorckLinear only 20 can be read",
        ),
        ("trainer/net/[submodules]/linear_module", "Linear", r"linear_module is 'Linear'; .*key '<type>'"),
        ("trainer/net/scaling", 2.0, r"trainer\.net\.scaling is 2\.0; of SmallConvNet only 1\.0"),
        (
            "trainer/net/in_channels",
            3,
            r"trainer\.net is for \(3, 28, 28\) and 10 classes; .*\(1, 28, 28\)",
        ),
        ("trainer/net/<init>", "yes", r"trainer\.net\.<init> is 'yes'; it should be true or false"),
        ("trainer/main_step/criterion/p", 1, r"criterion\.p is 1; .*only 2"),
        ("trainer/optimizer/lr", "fast", r"trainer\.optimizer\.lr is 'fast'; it should be a number"),
        ("dataloaders/dataset/<type>", "imagenet", r"dataloaders\.dataset\.<type> is 'imagenet'"),
        ("post_steps/0/eps_range", 1.58, r"post_steps\[0\]\.eps_range is 1\.58; it should be a list of numbers"),
        ("post_steps", [], r"post_steps names no eps_range"),
        (
            "trainer/net",
            typed("kw", True, dataset_name="cifar10", model_name="small"),
            r"dataset_name is 'cifar10', but",
        ),
        ("trainer/net", typed("kw", True, dataset_name="mnist", model_name="tiny"), r"model_name is 'tiny'; .*large"),
        ("trainer/net", typed("qian", True, dataset_name="mnist", model_index=1), r"model\.published is 1"),
        ("seed", "zero", r"seed is 'zero'; it should be a number"),
        ("seed", 10**400, r"seed is 10{76}\.\.\.; it should be a number"),
        ("post_steps/0/eps_range", [0.3, 10**400], r"eps_range is \[0\.3, 10+\.\.\.; it should be a list of numbers"),
        ("trainer/net", mlp([784, 2**20, 2**20, 10]), r"<list>\[1\]\.units asks for more than 268435456 weights"),
        ("trainer/net/<type>", "x" * 10**5, r"<type> is 'x{76}\.\.\.; Allowed"),
        ("<type>", "Experiments", r"<type> is 'Experiments'; did you mean 'Experiment'\?"),
    ],
)
def test_what_has_no_equal_is_refused_by_its_place(place, value, message):
    with pytest.raises(ValueError, match=message):
        parse_any(changed(SMALL, place, value))


def test_a_critic_of_images_that_no_run_has_is_not_built():
    config = critic(convnet("DCGANDiscriminator", "BCOP", (3, 2**14, 2**14), 1))
    with pytest.raises(ValueError, match=r"trainer\.net takes images of more than 1048576 numbers"):
        parse_any(config)


def test_a_missing_argument_is_named():
    config = deepcopy(SMALL)
    del config["trainer"]["optimizer"]
    with pytest.raises(ValueError, match=r"trainer\.optimizer is missing; Trainer needs it"):
        parse_any(config)


def test_overrides_speak_our_language():
    experiment = parse_any(SMALL, ["training.epochs=3", "optimizer.lr=0.5"]).model_dump()
    assert (experiment["training"]["epochs"], experiment["optimizer"]["lr"]) == (3, 0.5)


def test_nothing_in_a_file_is_evaluated(tmp_path):
    path = tmp_path / "cfg.yaml"
    made = tmp_path / "made"
    path.write_text(f"<type>: Experiment\n<init>: true\nseed: !!python/object/apply:pathlib.Path.touch ['{made}']\n")
    with pytest.raises(ValueError, match=r"cfg\.yaml uses a YAML tag"):
        load_any(path)
    assert not made.exists()


def test_an_old_configuration_trains(tmp_path, capsys):
    """The command takes it as it is; only the images are others here."""
    path = tmp_path / "cfg.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    assert is_original(read(path))
    tiny = ["data.name=digits", "data.image_size=28", "data.limit=40", "training.epochs=1"]
    arguments = [word for change in tiny for word in ("--set", change)]
    assert invoke(app, ["train", str(path), "--out", str(tmp_path / "run"), "--json", "--quiet", *arguments]) == 0
    assert '"epoch": 1' in capsys.readouterr().out
