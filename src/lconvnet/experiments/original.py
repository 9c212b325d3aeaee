"""Configurations in the original's grammar, translated into ours.

There a value is `{<type>: NAME, <init>: BOOL, argument: ...}`: a callable by its registered name with its arguments. It
is called when the file is read, or kept as a partial application. `<list>` holds positional arguments, and
`[submodules]` is replaced by its keys. Here the names are a closed set, each read by one function: nothing is evaluated
or imported by name. A value without an equal here is refused with its place in the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from sys import float_info
from typing import Any

from lconvnet.experiments.explain import choice, short
from lconvnet.models import baselines

Values = dict[str, Any]
Shape = tuple[int, int, int]

IMAGES: Mapping[str, Shape] = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "stl10": (3, 96, 96)}
CLASSES = 10
MAXIMAL_WEIGHTS = 2**28  # of a dense network; the paper's has 2^22
MAXIMAL_IMAGE = 2**20  # numbers per image of a critic; the paper's has 12,288
STEPS = 20  # of Björck's iteration in every layer; they stand for its limit, and an import stops after as many
STEPS_PER_EPOCH = 100  # of the original's critics
EPSILON = 1e-6  # constants such as sqrt(2) are written with twelve digits
MISSING = object()
MAXIMUM = float_info.max


def is_original(values: Mapping[str, Any]) -> bool:
    """Whether a file is in the original's grammar."""
    return "<type>" in values


def translate(values: Mapping[str, Any]) -> Values:
    """Return an old configuration as nested values of ours, not yet validated.

    Raises ValueError with the place in the file for an unknown type or argument, or a value without an equal here.
    """
    return Node(values, "").choose({"Experiment": _experiment})


def network(values: Mapping[str, Any]) -> tuple[Shape, int]:
    """Return the image shape (C, H, W) that the network of an old configuration takes, and its number of outputs."""
    translate(values)
    net = values["trainer"]["net"]
    if "dataset_name" in net:
        return IMAGES[net["dataset_name"]], CLASSES
    if net["<type>"] == "Sequential":
        units = net["<list>"][1]["units"]
        (shape,) = [shape for shape in IMAGES.values() if shape[0] * shape[1] * shape[2] == units[0]]
        return shape, units[-1]
    return (net["in_channels"], *net["input_spatial_shape"]), net["out_channels"]


class Node:
    """A typed value of an old configuration with its place in the file; `take` removes its arguments one by one."""

    def __init__(self, value: Any, place: str) -> None:
        if not isinstance(value, Mapping) or not isinstance(value.get("<type>"), str):
            raise ValueError(f"{place} is {short(value)}; it should be a section with a key '<type>'")
        self.type, self.place = value["<type>"], place
        self.arguments = {key: inner for key, inner in value.items() if key != "<type>"}
        self.flag("<init>", False)
        self.arguments |= self._checked("[submodules]", {}, "a section", lambda found: isinstance(found, Mapping))

    def at(self, key: str) -> str:
        """The place of an argument."""
        return f"{self.place}.{key}" if self.place else key

    def take(self, key: str, default: Any = MISSING) -> Any:
        """Return an argument and remove it."""
        value = self.arguments.pop(key, default)
        if value is MISSING:
            raise ValueError(f"{self.at(key)} is missing; {self.type} needs it")
        return value

    def node(self, key: str) -> Node:
        """Return an argument that is itself a typed value."""
        return Node(self.take(key), self.at(key))

    def nodes(self, key: str) -> list[Node]:
        """Return the typed values of an argument that lists them; none if it is absent."""
        values = self._checked(key, [], "a list", lambda found: isinstance(found, list))
        return [Node(value, f"{self.at(key)}[{i}]") for i, value in enumerate(values)]

    def number(self, key: str, default: Any = MISSING) -> Any:
        """Return an argument that is a number."""
        return self._checked(key, default, "a number", _is_number)

    def numbers(self, key: str) -> list[Any]:
        """Return an argument that lists at least one number."""
        return self._checked(key, MISSING, "a list of numbers", _are_numbers)

    def flag(self, key: str, default: Any = MISSING) -> bool:
        """Return an argument that is true or false."""
        return self._checked(key, default, "true or false", lambda found: isinstance(found, bool))

    def _checked(self, key: str, default: Any, what: str, fits: Callable[[Any], bool]) -> Any:
        value = self.take(key, default)
        if not fits(value):
            raise ValueError(f"{self.at(key)} is {short(value)}; it should be {what}")
        return value

    def only(self, **expected: Any) -> None:
        """Refuse any value but the one that has an equal here; an absent argument has that value."""
        for key, value in expected.items():
            found = self.take(key, value)
            if found != value or isinstance(found, bool) != isinstance(value, bool):
                raise ValueError(f"{self.at(key)} is {short(found)}; of {self.type} only {short(value)} can be read")

    def choose(self, readers: Mapping[str, Callable[[Node], Any]]) -> Any:
        """Return the result of the reader for this type, which must take all arguments."""
        if self.type not in readers:
            raise ValueError(choice(self.at("<type>"), self.type, list(readers)))
        found = readers[self.type](self)
        for key, value in self.arguments.items():
            raise ValueError(f"{self.at(key)} = {short(value)} is not a known argument of {self.type}")
        return found


def _is_number(value: Any) -> bool:
    """Whether a value is a number in the range of float64."""
    return type(value) in (int, float) and not abs(value) > MAXIMUM


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(map(_is_number, values))


def _experiment(root: Node) -> Values:
    trainer = root.node("trainer")
    read = _critic_run if _is_critic(trainer) else _classifier_run
    return trainer.choose({"Trainer": lambda node: read(root, node)})


def _is_critic(trainer: Node) -> bool:
    step = trainer.arguments.get("main_step")
    return isinstance(step, Mapping) and step.get("<type>") == "wasserstein_distance_estimation_step"


def _classifier_run(root: Node, trainer: Node) -> Values:
    loader = {"default_dataloader": lambda node: node.node("dataset").choose(DATA)}
    data, shape = root.node("dataloaders").choose(loader)
    evaluation = _evaluation(root.nodes("post_steps"))
    evaluation["mini_test_size"] = data.pop("mini_test_size")
    root.number("test_batch_size")  # does not change results; ours is chosen for speed
    net = trainer.node("net")
    model = net.choose(dict.fromkeys(NETWORKS, lambda node: NETWORKS[node.type](node, shape)))
    if model["architecture"].startswith("kw"):  # its product of norms certifies nothing
        evaluation["linear_bounds"] = evaluation["eps"]
    criteria = {"multi_margin_loss_eps": _hinge, "cross_entropy": lambda node: _cross_entropy(evaluation["eps"])}
    step = {"classification_step": lambda node: node.node("criterion").choose(criteria)}
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


def _critic_run(root: Node, trainer: Node) -> Values:
    root.node("best_metrics_comparator").choose({"default_loss_comparator": lambda node: None})
    name, samples = root.node("dataloaders").choose({"repeated_loaders": _repeated})
    root.number("test_batch_size")
    trainer.number("proj_every_n_its")
    step = {"diff_loss": lambda node: None}
    trainer.node("main_step").choose(
        {"wasserstein_distance_estimation_step": lambda node: node.node("criterion").choose(step)}
    )
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
    """Images at the side length that the critic takes: smaller than stored, or with every pixel repeated."""
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
    optimizer, schedule = trainer.node("optimizer"), trainer.node("lr_scheduler")
    rate = optimizer.choose(dict.fromkeys(("Adam", "RMSprop"), lambda node: float(node.number("lr"))))
    gamma = schedule.choose({"ExponentialLR": lambda node: float(node.number("gamma"))})
    return {
        "optimizer": {"name": optimizer.type.lower(), "lr": rate},
        "schedule": {"name": "exponential", "gamma": gamma},
    }


def _mnist(node: Node) -> tuple[Values, Shape]:
    return {"name": "mnist", "mini_test_size": node.number("mini_test_size", 100)}, IMAGES["mnist"]


def _cifar10(node: Node) -> tuple[Values, Shape]:
    if not node.flag("no_scaling", False):
        raise ValueError(f"{node.at('no_scaling')} must be true; images are in [0, 1] here, whatever the set")
    images = {"name": "cifar10", "augment": "crop-flip"}  # as in runs/adv-rob-cifar10
    return images | {"mini_test_size": node.number("mini_test_size", 100)}, IMAGES["cifar10"]


DATA = {"mnist": _mnist, "cifar10": _cifar10}


def _repeated(node: Node) -> tuple[str, int]:
    loader = {"GANSampler": lambda sampler: sampler.node("config").choose({"Munch": _gan})}
    return node.node("loader_init").choose(
        {"DistributionGANLoader": lambda inner: inner.node("gan_sampler_module").choose(loader)}
    )


def _gan(node: Node) -> tuple[str, int]:
    node.number("sample_size")
    node.only(dim="None")
    path = node.take("gan_config_json_path")
    named = re.search("cifar10|stl10", str(path))
    if not named:
        raise ValueError(f"{node.at('gan_config_json_path')} is {short(path)}; its name tells no set (cifar10, stl10)")
    return named[0], node.number("test_sample_size")


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
    node.node("support_projection").choose(UNIT_BOX)
    return {"name": "pgd", "steps": node.number("iters"), "step_size": node.number("alpha")}


def _fgsm(node: Node) -> Values:
    node.node("support_projection").choose(UNIT_BOX)
    return {"name": "fgsm"}


def _foolbox(node: Node) -> Values:
    mode, known = node.take("attack_mode"), ("boundary_attack", "pointwise")
    if mode not in known:
        raise ValueError(choice(node.at("attack_mode"), mode, known))
    return {"name": mode}


UNIT_BOX = {"clamp": lambda node: node.only(min=0, max=1)}
ATTACKERS = {"PGDAttacker": _pgd, "FGSMAttacker": _fgsm, "FoolBoxAttacker": _foolbox}


def _hinge(node: Node) -> Values:
    node.only(l_constant=1.0, order=1.0, p=2)
    return {"name": "hinge", "eps": float(node.number("eps"))}


def _cross_entropy(eps: Sequence[float]) -> Values:
    """Plain cross-entropy: no offset, temperature 1; `eps` only sets the radii that a validation certifies."""
    return {"name": "offset-cross-entropy", "eps": max(eps), "temperature": 1.0, "offset": 0.0}


def _convnet(node: Node, shape: Shape) -> Values:
    node.only(scaling=1.0)
    found = (node.number("in_channels"), *node.numbers("input_spatial_shape")), node.number("out_channels")
    if found != (shape, CLASSES):
        raise ValueError(f"{node.place} is for {found[0]} and {found[1]} classes; the images are {shape} of {CLASSES}")
    return {"architecture": CONVNETS[node.type], **_parts(node)}


CONVNETS = {"SmallConvNet": "small", "LargeConvNet": "large", "DCGANDiscriminator": "dcgan"}


def _parts(node: Node) -> Values:
    conv = node.node("conv_module").choose({"LipschitzConv2d": lambda inner: inner.node("conv_module").choose(CONVS)})
    return {"conv": conv, **_dense(node)}


def _dense(node: Node) -> Values:
    return {"linear": node.node("linear_module").choose(LINEARS), **node.node("activation").choose(ACTIVATIONS)}


def _group_sort(node: Node) -> Values:
    """GroupSort: pairs in the fast implementation are MaxMin, larger value first."""
    node.only(axis=1)
    size, fast = node.number("group_size"), node.flag("new_impl", False)
    return {"activation": "maxmin"} if fast and size == 2 else {"activation": "groupsort", "group_size": size}


ACTIVATIONS = {"GroupSort": _group_sort, "ReLU": lambda node: {"activation": "relu"}}


def _layer(name: str, **only: Any) -> Callable[[Node], str]:
    """A reader of a layer with the only options that can be read."""

    def read(node: Node) -> str:
        node.only(**only)
        return name

    return read


def _bcop(node: Node) -> str:
    node.only(bjorck_iters=STEPS, ortho_mode="bjorck", mask_half=True, projection=False)
    return "bcop-fixed" if node.flag("frozen", False) else "bcop"


LINEARS = {"BjorckLinear": _layer("orthogonal", bjorck_iters=STEPS)}
CONVS: Mapping[str, Callable[[Node], str]] = {
    "BCOP": _bcop,
    "RKO": _layer("rko", bjorck_iters=STEPS),
    "OSSN": _layer("ossn", n_iters=10),
    "SVCM": _layer("svcm", num_projections=50, orthogonal=False),
    "NonexpansiveConv2d": _layer("rkl2ne"),
}


def _sequential(node: Node, shape: Shape) -> Values:
    flatten, *rest = node.nodes("<list>") or [node]
    flatten.choose({"Rearrange": lambda inner: inner.only(pattern="b c h w -> b (c h w)")})
    if len(rest) != 1:
        raise ValueError(f"{node.at('<list>')} has {len(rest) + 1} entries; Rearrange and MLP can be read")
    return rest[0].choose({"MLP": lambda inner: _mlp(inner, shape)})


def _mlp(node: Node, shape: Shape) -> Values:
    node.only(dropout_rate=0, dist_scaling=1.0)
    first, *widths, last = node.numbers("units")
    if (first, last) != (shape[0] * shape[1] * shape[2], CLASSES) or not widths:
        raise ValueError(f"{node.at('units')} goes from {first} to {last}; images of {shape} have other numbers")
    if sum(before * after for before, after in pairwise([first, *widths, last])) > MAXIMAL_WEIGHTS:
        raise ValueError(f"{node.at('units')} asks for more than {MAXIMAL_WEIGHTS} weights; no run has so many")
    return {"architecture": "mlp", "widths": widths, **_dense(node)}


def critic(node: Node) -> tuple[Values, Shape]:
    """Return a critic and its image shape."""
    node.only(scaling=1.0, out_channels=1)
    channels, sides = node.number("in_channels"), node.numbers("input_spatial_shape")
    if len(sides) != 2 or sides[0] != sides[1]:
        raise ValueError(f"{node.at('input_spatial_shape')} is {sides}; critics take square images")
    if channels * sides[0] ** 2 > MAXIMAL_IMAGE:
        raise ValueError(f"{node.place} takes images of more than {MAXIMAL_IMAGE} numbers; no run has so large ones")
    return _parts(node), (channels, sides[0], sides[1])


def _kw(node: Node, shape: Shape) -> Values:
    """Wong et al. 2018; on CIFAR-10 their networks normalise the images."""
    _require_images(node, shape)
    size, known = node.take("model_name"), ("small", "large")
    if size not in known:
        raise ValueError(choice(node.at("model_name"), size, known))
    normalised = {"mean": baselines.CIFAR10_MEAN, "std": baselines.CIFAR10_STD} if shape == IMAGES["cifar10"] else {}
    return {"architecture": f"kw-{size}", **normalised}


def _qian(node: Node, shape: Shape) -> Values:
    """Qian & Wegman 2019, by the number of their model; its widths come from runs/baselines, as the file lacks them."""
    _require_images(node, shape)
    channels = (32, 64, 128) if shape == IMAGES["cifar10"] else (32, 64)
    return {"architecture": "qw", "channels": channels, "published": node.number("model_index")}


def _require_images(node: Node, shape: Shape) -> None:
    name = node.take("dataset_name")
    if IMAGES.get(name) != shape:
        raise ValueError(f"{node.at('dataset_name')} is {short(name)}, but the images of dataloaders are {shape}")


NETWORKS: Mapping[str, Callable[[Node, Shape], Values]] = {
    "Sequential": _sequential,
    "SmallConvNet": _convnet,
    "LargeConvNet": _convnet,
    "DCGANDiscriminator": _convnet,
    "kw": _kw,
    "qian": _qian,
}
