"""The facts of a run, and the names of recipes that differ from the paper's.

A run is defined by its specification: record.json says what was trained, or else the cfg.yaml. Only without a
specification (the original's cfg.yaml is a program, not data) do the facts come from the folder's name, as in
`FOLDERS`.

The plain name of a method stands for the paper's recipe (Li et al. 2019; for data sets outside the paper, the package's
defaults). Any other recipe is another experiment and is named by its differences: the loss and the number of epochs if
they differ, and as many other settings as tell the experiments apart.
"""

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from lconvnet.experiments.config import settings
from lconvnet.experiments.evaluation import Evaluation
from lconvnet.experiments.loading import AnyExperiment, parse_any
from lconvnet.experiments.reading import read
from lconvnet.experiments.run_folder import RunFolder, recorded_settings
from lconvnet.experiments.trained_on import trained_experiment
from lconvnet.ops.rounding import decimal
from lconvnet.report import labels
from lconvnet.training import load_record

MAXIMAL_RECORD_BYTES = 16_000_000
ORIGINALS_KEY = "<type>"
# Facts with their own place in a table; every other setting that determines the weights is the recipe.
AXES = {"task", "seed", "model.architecture", "model.conv", "model.widths", "critic.conv", "critic.activation"}

FOLDERS = (
    "adv-rob-{data}/{architecture}/{method}/multi-trial-{trial}",
    "wde_{data}/lr-{rate}/conv/{method}/{activation}/multi-trial-{trial}",
    "baselines/{baseline}-{data}/{name}",
)
PARTS = {
    "data": "mnist|cifar10|stl10",
    "architecture": "small|large|fc",
    "method": r"[^/]+(?:/n_iters-\d+)?",
    "activation": "maxmin|relu",
    "baseline": "kw|qian",
}
ITERATIONS = "/n_iters-"  # of a critic's power iteration; the published critics used 10

SHOWN_ALWAYS = ("loss.name", "training.epochs", "training.steps", "finished")
UNSPECIFIED = ("specification", "none")
PAPER_IMAGES = {
    "mnist": {"data": {"name": "mnist"}, "loss": {"name": "hinge", "eps": 1.5}},
    "cifar10": {"data": {"name": "cifar10", "augment": "crop-flip"}, "loss": {"name": "hinge", "eps": 0.5}},
}
PAPER_TRAINING = {
    "optimizer": {"name": "adam", "lr": 0.001},
    "schedule": {"name": "exponential", "gamma": 0.96235062639},
    "training": {"epochs": 200, "batch_size": 128, "project_every": 100},
}
PAPER_CRITIC = {
    "task": "wasserstein",
    "optimizer": {"name": "rmsprop"},
    "schedule": {"name": "exponential", "gamma": 0.96235062639},
    "training": {"steps": 25600, "batch_size": 64},
    "critic": {"linear": "orthogonal"},
}

Recipe = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Facts:
    """The facts of a run; runs whose facts differ only in `trial` are repetitions of one experiment.

    `learning_rate` is set if it is the variable of a sweep (critics). Otherwise it belongs to the `recipe`: all other
    settings that determine the weights, as sorted pairs.
    """

    task: Literal["robustness", "wasserstein"]
    data: str
    architecture: str
    method: str
    activation: str
    trial: str
    learning_rate: float | None = None
    recipe: Recipe = ()
    specified: bool = False


class Variant(NamedTuple):
    """The differences between a recipe and the paper's: the label has `shown`; `full` is all of them."""

    shown: Recipe
    full: Recipe


def facts_of(folder: Path, evaluation: Any = None) -> tuple[Facts, Mapping[str, Recipe]]:
    """Return the facts of the run in `folder` and the settings of each attack. These come from `evaluation`, the
    section of its results.yaml, or, if that is empty, from its specification.

    Raises ValueError if neither a specification nor the folder's name defines the run.
    """
    experiment = specification(folder)
    if experiment is None:
        return facts_of_name(folder.resolve().as_posix()), {}
    facts, recorded = facts_of_experiment(experiment), recorded_settings(RunFolder(folder))
    attacks: Mapping[str, Recipe] = {}
    if facts.task == "robustness":
        values = experiment.model_dump(mode="json")
        ran = values["evaluation"] if evaluation is None else _stated(evaluation)
        attacks = _attacks(Evaluation.model_validate(ran))
        if "imported" in recorded and values["model"]["architecture"] in labels.NETWORKS:
            # A baseline's authors published its weights, so our seeds and recipes do not apply.
            facts = replace(facts, recipe=(), trial="")
            if published := values["model"].get("published"):
                facts = replace(facts, architecture=f"Model-{published}", method=labels.BASELINES["qian"])
    if isinstance(origin := recorded.get("from"), Mapping):
        facts = with_setting(facts, "from", str(origin.get("run")))
    return facts, attacks


def with_setting(facts: Facts, key: str, value: Any) -> Facts:
    """Return facts with one more setting in the recipe, which makes them another experiment."""
    return replace(facts, recipe=tuple(sorted((*facts.recipe, (key, value)))))


def specification(folder: Path) -> AnyExperiment | None:
    """Return the experiment that record.json, or else cfg.yaml, describes; None if neither does."""
    run, record = RunFolder(folder), folder / "record.json"
    values = read(run.config) if run.is_configured else {ORIGINALS_KEY: None}
    if "task" not in values and record.exists():
        if record.stat().st_size > MAXIMAL_RECORD_BYTES:
            raise ValueError(f"its record.json has more than {MAXIMAL_RECORD_BYTES} bytes and is not a record")
        settings = load_record(folder).settings.get("settings")
        if isinstance(settings, Mapping):  # lconvnet.fit writes a record without
            found = trained_experiment(run)
            name = settings.get("data", {}).get("name", found.data.name)
            return found.model_copy(update={"data": found.data.model_copy(update={"name": name})})
    return None if ORIGINALS_KEY in values else parse_any(values)


def facts_of_experiment(experiment: AnyExperiment) -> Facts:
    """Return the facts of an experiment.

    >>> values = {"data": {"name": "mnist"}, "model": {"architecture": "small", "conv": "rko"}, "seed": 3}
    >>> facts = facts_of_experiment(parse_any(values))
    >>> facts.data, facts.architecture, facts.method, facts.trial, dict(facts.recipe)["training.epochs"]
    ('mnist', 'Small', 'RKO', '3', 6)
    >>> values = {"task": "wasserstein", "data": {"name": "cifar10"}, "generated": "g.npy", "critic": {"conv": "rko"}}
    >>> facts = facts_of_experiment(parse_any(values))
    >>> facts.data, facts.architecture, facts.method, facts.learning_rate
    ('cifar10', 'Critic', 'RKO', 0.0001)
    """
    values = experiment.model_dump(mode="json")
    task = values.get("task", "robustness")
    if task not in ("robustness", "wasserstein"):
        raise ValueError(f"its cfg.yaml trains a generator (task: {task}), and generators appear in no table")
    network: dict[str, Any] = {"architecture": "critic", **values["critic"]} if "critic" in values else values["model"]
    data = PurePosixPath(experiment.data.name).name or experiment.data.name
    # Tables name a folder of images by the last part of its path, which several folders may share.
    axes = AXES | ({"data.name"} if data == experiment.data.name else set())
    rate, activation = None, network.get("activation") or "relu"
    if task == "wasserstein":
        rate, axes = values["optimizer"]["lr"], axes | {"optimizer.lr"}
    return Facts(
        task=task,
        data=data,
        architecture=_architecture(network),
        method=labels.NETWORKS.get(network["architecture"]) or _method(network),
        activation=labels.ACTIVATIONS.get(activation, activation),
        trial=str(experiment.seed),
        learning_rate=rate,
        recipe=tuple(sorted(pair for pair in flatten(settings(experiment)) if pair[0] not in axes)),
        specified=True,
    )


def facts_of_name(path: str) -> Facts:
    """Return the facts in the original's folder names.

    >>> facts_of_name("runs/wde_stl10/lr-0.001/conv/OSSN/n_iters-10/relu/multi-trial-B").learning_rate
    0.001
    """
    found = next((match.groupdict() for pattern in _patterns() if (match := pattern.fullmatch(path))), None)
    if found is None:
        raise ValueError(
            "it has no specification (record.json or cfg.yaml) and its folder's name is none of the known ones; "
            "keep record.json beside results.yaml"
        )
    if "baseline" in found:
        architecture, method = found["name"].capitalize(), labels.BASELINES[found["baseline"]]
        return Facts("robustness", found["data"], architecture, method, "ReLU", "")
    known = labels.FC_FOLDERS if found.get("architecture") == "fc" else labels.METHOD_FOLDERS
    folder, _, iterations = found["method"].partition(ITERATIONS)
    if folder not in known:
        raise ValueError(f"its method {folder!r} is unknown; known: {', '.join(known)}")
    if "rate" not in found:
        architecture = labels.ARCHITECTURES[found["architecture"]]
        return Facts("robustness", found["data"], architecture, known[folder], "MaxMin", found["trial"])
    activation, rate = labels.ACTIVATIONS[found["activation"]], _learning_rate(found["rate"])
    recipe: Recipe = (("iterations", int(iterations)),) if iterations not in ("", "10") else ()
    return Facts("wasserstein", found["data"], "Critic", known[folder], activation, found["trial"], rate, recipe)


def name_of_facts(facts: Facts) -> str:
    """Return the folder that the original gives such a run, below its `runs`.

    >>> name_of_facts(facts_of_name("runs/adv-rob-mnist/large/RKO/multi-trial-A"))
    'adv-rob-mnist/large/RKO/multi-trial-A'
    """
    classifier, critic, baseline = FOLDERS
    if facts.method in labels.PUBLISHED:
        short = labels.folder_of(facts.method, labels.BASELINES)
        return baseline.format(baseline=short, data=facts.data, name=facts.architecture.lower())
    method = labels.folder_of(facts.method, labels.FC_FOLDERS | labels.METHOD_FOLDERS)
    if facts.task == "robustness":
        architecture = labels.folder_of(facts.architecture, labels.ARCHITECTURES)
        return classifier.format(data=facts.data, architecture=architecture, method=method, trial=facts.trial)
    method = {"BCOP": "BCOP", "OSSN": f"OSSN{ITERATIONS}10"}.get(facts.method, method)
    rate, activation = format(decimal(facts.learning_rate or 0.0).normalize(), "f"), facts.activation.lower()
    return critic.format(data=facts.data, rate=rate, method=method, activation=activation, trial=facts.trial)


def variants(experiments: Iterable[Facts]) -> dict[Facts, Variant]:
    """Name the recipes of experiments so that no two of one data set and network have the same label.

    A label shows `SHOWN_ALWAYS`, then each setting that tells more experiments apart.
    """
    named: dict[Facts, Variant] = {}
    ordered = sorted(experiments, key=lambda facts: (_family(facts), repr(facts)))
    for _, members in itertools.groupby(ordered, key=_family):
        family = list(members)
        any_specified = any(facts.specified for facts in family)
        unknown = [() if facts.specified or not any_specified else (UNSPECIFIED,) for facts in family]
        full = [(*start, *differences(facts)) for start, facts in zip(unknown, family, strict=True)]
        recipes, chosen = [(), *full], {*SHOWN_ALWAYS, UNSPECIFIED[0]}
        for key in dict.fromkeys(key for recipe in full for key, _ in recipe):
            if len({_only(recipe, chosen) for recipe in recipes}) < len({_only(r, chosen | {key}) for r in recipes}):
                chosen.add(key)
        named |= {facts: Variant(_only(recipe, chosen), recipe) for facts, recipe in zip(family, full, strict=True)}
    return named


def differences(facts: Facts) -> Recipe:
    """Return the settings of a run that are not the paper's, the loss and the epochs first."""
    paper = dict(_paper(facts.task, facts.data, facts.architecture)) if facts.specified else {}
    # None is the default of a key that only this member of a union has.
    found = {key: value for key, value in facts.recipe if paper.get(key) != value}
    return tuple((key, found[key]) for key in dict.fromkeys((*SHOWN_ALWAYS, *found)) if key in found)


def describe(recipe: Recipe) -> str:
    """Return settings in words.

    >>> describe((("loss.name", "offset-cross-entropy"), ("training.epochs", 1), ("optimizer.lr", 0.03)))
    'offset-cross-entropy, 1 epoch, optimizer.lr=0.03'
    """
    words = {UNSPECIFIED[0]: "no specification", "finished": "unfinished"}
    said = []
    for key, value in recipe:
        if key in ("training.epochs", "training.steps"):
            said.append(f"{value} {key.removeprefix('training.').removesuffix('s')}{'' if value == 1 else 's'}")
        elif key == "loss.name":
            said.append(str(value))
        else:
            said.append(words.get(key, f"{key}={list(value) if isinstance(value, tuple) else value}"))
    return ", ".join(said)


def flatten(values: Mapping[str, Any], above: str = "", separator: str = ".") -> Iterator[tuple[str, Any]]:
    """Yield nested settings with joined keys, lists as tuples.

    >>> list(flatten({"optimizer": {"lr": 0.1, "betas": [0.9, 0.99]}}))
    [('optimizer.lr', 0.1), ('optimizer.betas', (0.9, 0.99))]
    """
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{above}{key}{separator}", separator)
        else:
            yield f"{above}{key}", tuple(value) if isinstance(value, list) else value


def _architecture(network: Mapping[str, Any]) -> str:
    name = str(network["architecture"])
    if name == "mlp":
        widths = list(network["widths"])
        return labels.ARCHITECTURES["fc"] if widths == labels.FC3_WIDTHS else f"FC {'-'.join(map(str, widths))}"
    return labels.ARCHITECTURES.get(name, name.capitalize())


def _method(network: Mapping[str, Any]) -> str:
    conv, linear = str(network.get("conv", "")), str(network.get("linear", ""))
    return labels.CONVS.get(conv, conv.upper()) or labels.LINEARS.get(linear, linear.capitalize())


def _stated(evaluation: Any) -> Any:
    """The evaluation of a results.yaml; attacks without a loss predate that key and used cross-entropy."""
    if not isinstance(evaluation, Mapping) or not isinstance(evaluation.get("attacks"), list):
        return evaluation
    older = {name: {"loss": "cross-entropy"} for name in ("pgd", "fgsm")}
    attacks = [older.get(str(a.get("name")), {}) | a if isinstance(a, dict) else a for a in evaluation["attacks"]]
    return {**evaluation, "attacks": attacks}


def _attacks(evaluation: Evaluation) -> Mapping[str, Recipe]:
    found: dict[str, Recipe] = {}
    for attack in evaluation.attacks:
        values = attack.model_dump(mode="json", exclude={"name", "eps"})
        values |= {"mini_test_size": evaluation.mini_test_size} if attack.mini else {}
        key = evaluation.key(attack)
        found[key] = (*found.get(key, ()), *flatten(values))
    return found


@cache
def _patterns() -> list[re.Pattern[str]]:
    """The regular expressions for the paths of `FOLDERS`."""
    named = (re.sub(r"\{(\w+)\}", lambda part: f"(?P<{part[1]}>{PARTS.get(part[1], '[^/]+')})", f) for f in FOLDERS)
    return [re.compile(f"(?:.*/)?{pattern}") for pattern in named]


def _learning_rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise ValueError(f"its learning rate {text!r} is not a positive number")
    return rate


def _family(facts: Facts) -> tuple[str, ...]:
    # A classifier's activation is part of its recipe; a critic's is a row of the table.
    activation = facts.activation if facts.task == "wasserstein" else ""
    return (facts.task, facts.data, facts.architecture, facts.method, activation, str(facts.learning_rate))


def _only(recipe: Recipe, keys: set[str]) -> Recipe:
    return tuple(pair for pair in recipe if pair[0] in keys)


@cache
def _paper(task: str, data: str, architecture: str) -> Recipe:
    """The recipe of runs/adv-rob-*, or of runs/wde_*, whose generator is that of runs/gan_*."""
    values: Mapping[str, Any]
    if task == "wasserstein":
        images = {"name": data, "image_size": 64 if data == "stl10" else None}
        values = {**PAPER_CRITIC, "data": images, "generated": f"runs/gan_{data}/wgan-gp/generator.safetensors"}
    else:
        model = {"architecture": {"Small": "small", "Large": "large"}.get(architecture, "mlp")}
        paper = {**PAPER_IMAGES[data], **PAPER_TRAINING} if data in PAPER_IMAGES else {}
        values = {**paper, "model": {**model, "linear": "orthogonal"} if paper else model}
    return facts_of_experiment(parse_any(values)).recipe
