"""Experiments of the original: classifiers under attack, and critics between images and a generator's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lconvnet.experiments.explain import choice, short
from lconvnet.experiments.original.networks import CLASSES, IMAGES, NETWORKS, Shape, Values, critic
from lconvnet.experiments.original.node import Node

STEPS_PER_EPOCH = 100  # of the original's critics
EPSILON = 1e-6  # constants such as sqrt(2) are written with twelve digits


def is_original(values: Mapping[str, Any]) -> bool:
    """Whether a file is in the original's grammar."""
    return "<type>" in values


def translate(values: Mapping[str, Any]) -> Values:
    """Return an old configuration as nested values of ours, not yet validated.

    Raises ValueError with the place in the file for an unknown type or argument, or a value without an equal here.
    """
    return Node(values, "").choose({"Experiment": _experiment})


def network(values: Mapping[str, Any]) -> tuple[Shape, int]:
    """Return the shape (C, H, W) of the images that the network of an old configuration takes, and its outputs."""
    translate(values)
    net = values["trainer"]["net"]
    if "dataset_name" in net:
        return IMAGES[net["dataset_name"]], CLASSES
    if net["<type>"] == "Sequential":
        units = net["<list>"][1]["units"]
        (shape,) = [shape for shape in IMAGES.values() if shape[0] * shape[1] * shape[2] == units[0]]
        return shape, units[-1]
    return (net["in_channels"], *net["input_spatial_shape"]), net["out_channels"]


def _experiment(root: Node) -> Values:
    trainer = root.node("trainer")
    read = _critic_run if _is_critic(trainer) else _classifier_run
    return trainer.choose({"Trainer": lambda node: read(root, node)})


def _is_critic(trainer: Node) -> bool:
    step = trainer.arguments.get("main_step")
    return isinstance(step, Mapping) and step.get("<type>") == "wasserstein_distance_estimation_step"


def _classifier_run(root: Node, trainer: Node) -> Values:
    data, shape = root.node("dataloaders").choose({"default_dataloader": _loader})
    evaluation = _evaluation(root.nodes("post_steps"))
    evaluation["mini_test_size"] = data.pop("mini_test_size")
    root.number("test_batch_size")  # changes no result; ours is chosen for speed
    model = trainer.node("net").choose({name: _for_images(read, shape) for name, read in NETWORKS.items()})
    if model["architecture"].startswith("kw"):  # whose product of norms certifies nothing
        evaluation["linear_bounds"] = evaluation["eps"]
    step = {"classification_step": lambda node: _loss(node, evaluation["eps"])}
    return {
        "seed": root.number("seed", 0),
        "data": data,
        "model": model,
        "loss": trainer.node("main_step").choose(step),
        **_optimisation(trainer),
        "training": {
            "epochs": root.number("num_epochs"),
            "batch_size": root.number("train_batch_size"),
            "project_every": trainer.number("proj_every_n_its"),
        },
        "evaluation": evaluation,
    }


def _for_images(read: Callable[[Node, Shape], Values], shape: Shape) -> Callable[[Node], Values]:
    return lambda node: read(node, shape)


def _critic_run(root: Node, trainer: Node) -> Values:
    root.node("best_metrics_comparator").choose({"default_loss_comparator": lambda node: None})
    name, samples = root.node("dataloaders").choose({"repeated_loaders": _repeated})
    root.number("test_batch_size")
    trainer.number("proj_every_n_its")
    trainer.node("main_step").choose({"wasserstein_distance_estimation_step": _difference})
    network, shape = trainer.node("net").choose({"DCGANDiscriminator": critic})
    return {
        "task": "wasserstein",
        "seed": root.number("seed", 0),
        **_sized(name, network, shape),
        "generated": f"runs/gan_{name}/wgan-gp/generator.safetensors",
        **_optimisation(trainer),
        "training": {
            "steps": STEPS_PER_EPOCH * root.number("num_epochs"),
            "batch_size": root.number("train_batch_size"),
        },
        "evaluation": {"samples": samples},
    }


def _sized(name: str, network: Values, shape: Shape) -> Values:
    """Images of the side that the critic takes: smaller than stored, or every pixel repeated."""
    stored, (channels, side, _) = IMAGES[name], shape
    data = {"name": name} | ({"channels": channels} if channels != stored[0] else {})
    if side < stored[1]:
        return {"data": data | {"image_size": side}, "critic": network}
    if side % stored[1]:
        raise ValueError(f"trainer.net.input_spatial_shape is {side}; {name} has {stored[1]} pixels, take a multiple")
    return {"data": data, "critic": network | {"upsampling": side // stored[1]}}


def _optimisation(trainer: Node) -> Values:
    for node in trainer.nodes("post_steps"):
        node.choose({"l2_lipschitz_constant_checker": lambda node: None})
    optimizers = dict.fromkeys(OPTIMIZERS, _optimizer)
    return {
        "optimizer": trainer.node("optimizer").choose(optimizers),
        "schedule": trainer.node("lr_scheduler").choose({"ExponentialLR": _schedule}),
    }


OPTIMIZERS = {"Adam": "adam", "RMSprop": "rmsprop"}


def _optimizer(node: Node) -> Values:
    return {"name": OPTIMIZERS[node.type], "lr": float(node.number("lr"))}


def _schedule(node: Node) -> Values:
    return {"name": "exponential", "gamma": float(node.number("gamma"))}


def _loader(node: Node) -> tuple[Values, Shape]:
    return node.node("dataset").choose({"mnist": _mnist, "cifar10": _cifar10})


def _mnist(node: Node) -> tuple[Values, Shape]:
    return {"name": "mnist", "mini_test_size": node.number("mini_test_size", 100)}, IMAGES["mnist"]


def _cifar10(node: Node) -> tuple[Values, Shape]:
    if not node.flag("no_scaling", False):
        raise ValueError(f"{node.at('no_scaling')} must be true; images are in [0, 1] here, whatever the set")
    images = {"name": "cifar10", "augment": "crop-flip"}  # as in runs/adv-rob-cifar10
    return images | {"mini_test_size": node.number("mini_test_size", 100)}, IMAGES["cifar10"]


def _repeated(node: Node) -> tuple[str, int]:
    return node.node("loader_init").choose({"DistributionGANLoader": _gan_loader})


def _gan_loader(node: Node) -> tuple[str, int]:
    return node.node("gan_sampler_module").choose({"GANSampler": lambda inner: inner.node("config").choose(MUNCH)})


def _gan(node: Node) -> tuple[str, int]:
    node.number("sample_size")
    node.only(dim="None")
    path = node.take("gan_config_json_path")
    named = re.search("cifar10|stl10", str(path))
    if not named:
        raise ValueError(f"{node.at('gan_config_json_path')} is {short(path)}; its name tells no set (cifar10, stl10)")
    return named[0], node.number("test_sample_size")


MUNCH = {"Munch": _gan}


def _evaluation(steps: Sequence[Node]) -> Values:
    eps: list[float] = []
    attacks: list[Values] = []
    for step in steps:
        for radii, attack in step.choose({"eval_adv_robustness_batch": _robustness}):
            eps += [radius for radius in radii if radius not in eps]
            attacks += attack
    if not eps:
        raise ValueError("post_steps names no eps_range; an evaluation needs at least one radius")
    return {"eps": eps, "attacks": attacks}


def _robustness(node: Node) -> list[tuple[list[float], list[Values]]]:
    node.only(p=2)
    if abs(node.number("force_lipschitz_constant", 2**0.5) - 2**0.5) > EPSILON:
        raise ValueError(f"{node.at('force_lipschitz_constant')} is not sqrt(2); the bound of the network is used here")
    eps = [float(radius) for radius in node.numbers("eps_range")]
    mini = node.flag("mini_eval")
    found = [attacker.choose(ATTACKERS) for attacker in node.nodes("attacker")]
    return [(eps, [attack | {"eps": eps} | ({"mini": True} if mini else {}) for attack in found])]


def _pgd(node: Node) -> Values:
    node.only(rand_start=True)
    node.node("support_projection").choose({"clamp": _unit_box})
    return {"name": "pgd", "steps": node.number("iters"), "step_size": node.number("alpha")}


def _fgsm(node: Node) -> Values:
    node.node("support_projection").choose({"clamp": _unit_box})
    return {"name": "fgsm"}


def _foolbox(node: Node) -> Values:
    mode, known = node.take("attack_mode"), ("boundary_attack", "pointwise")
    if mode not in known:
        raise ValueError(choice(node.at("attack_mode"), mode, known))
    return {"name": mode}


def _unit_box(node: Node) -> None:
    node.only(min=0, max=1)


ATTACKERS = {"PGDAttacker": _pgd, "FGSMAttacker": _fgsm, "FoolBoxAttacker": _foolbox}


def _loss(node: Node, eps: Sequence[float]) -> Values:
    criteria = {"multi_margin_loss_eps": _hinge, "cross_entropy": lambda _: _cross_entropy(eps)}
    return node.node("criterion").choose(criteria)


def _hinge(node: Node) -> Values:
    node.only(l_constant=1.0, order=1.0, p=2)
    return {"name": "hinge", "eps": float(node.number("eps"))}


def _cross_entropy(eps: Sequence[float]) -> Values:
    """Plain cross-entropy: no offset, temperature 1; `eps` only says what a validation certifies."""
    return {"name": "offset-cross-entropy", "eps": max(eps), "temperature": 1.0, "offset": 0.0}


def _difference(node: Node) -> None:
    node.node("criterion").choose({"diff_loss": lambda _: None})
