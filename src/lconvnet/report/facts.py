"""What a run is: from its specification where it has one, from the original's folder names where it has none.

The specification is what record.json says was trained, or else the cfg.yaml. Then nothing is read from the folder's
name. Folders without (the original's cfg.yaml is a program, not data, and no specification) are named

* adv-rob-{mnist,cifar10}/{small,large,fc}/METHOD/multi-trial-X
* wde_{stl10,cifar10}/lr-RATE/conv/METHOD[/n_iters-N]/{maxmin,relu}/multi-trial-X
* baselines/{kw,qian}-{mnist,cifar10}/NAME
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from lconvnet.experiments import build
from lconvnet.experiments.config import Evaluation, Experiment, Kw, Mlp, Qw
from lconvnet.experiments.estimation_config import WassersteinExperiment
from lconvnet.experiments.execute import trained_experiment
from lconvnet.experiments.generation_config import GanExperiment
from lconvnet.experiments.loading import AnyExperiment, parse_any
from lconvnet.experiments.reading import read
from lconvnet.experiments.run_folder import RunFolder, recorded_settings
from lconvnet.report import names
from lconvnet.training import load_record

MAXIMAL_RECORD_BYTES = 16_000_000
ORIGINALS_KEY = "<type>"
# Facts of their own in a table; everything else that determines the weights is the recipe.
AXES = {"seed", "data.name", "model.architecture", "model.conv", "model.widths"}
PATTERNS = tuple(
    re.compile(rf"(?:.*/)?{tail}")
    for tail in (
        r"adv-rob-(?P<data>mnist|cifar10)/(?P<architecture>small|large|fc)/(?P<method>[^/]+)/multi-trial-(?P<trial>[^/]+)",
        r"wde_(?P<data>stl10|cifar10)/lr-(?P<lr>[^/]+)/conv/(?P<method>[^/]+)(?:/n_iters-(?P<iterations>\d+))?"
        r"/(?P<activation>maxmin|relu)/multi-trial-(?P<trial>[^/]+)",
        r"baselines/(?P<baseline>kw|qian)-(?P<data>mnist|cifar10)/(?P<name>[^/]+)",
    )
)

Recipe = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Facts:
    """What a run is; runs whose facts differ in `trial` alone are repetitions of one experiment.

    `learning_rate` is given where it is the variable of a sweep (critics), otherwise it belongs to the `recipe`: all
    other settings that determine the weights, as sorted pairs.
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


def facts_of(folder: Path, evaluation: Any = None) -> tuple[Facts, Mapping[str, Recipe]]:
    """Return the facts of the run in `folder` and the settings of each attack: those of `evaluation`, the section of
    its results.yaml, or where that has none, of its specification.

    Raises ValueError where neither a specification nor the folder's name says what it is.
    """
    experiment = specification(folder)
    if isinstance(experiment, WassersteinExperiment):
        return _with_origin(facts_of_estimate(experiment), folder), {}
    if isinstance(experiment, GanExperiment):
        raise ValueError("its cfg.yaml trains a generator (task: gan), of which no table tells")
    if experiment is not None:
        ran = experiment.evaluation if evaluation is None else Evaluation.model_validate(_stated(evaluation))
        facts = replace(facts_of_experiment(experiment), **_published(folder, experiment))
        return _with_origin(facts, folder), _attacks(ran)
    return facts_of_name(folder.resolve().as_posix()), {}


def specification(folder: Path) -> AnyExperiment | None:
    """Return the experiment that record.json, or else cfg.yaml, says was trained; None where neither does."""
    run, record = RunFolder(folder), folder / "record.json"
    values = read(run.config) if run.is_configured else {ORIGINALS_KEY: None}
    if "task" not in values and record.exists() and _recorded(record):
        found = trained_experiment(run)
        name = load_record(folder).settings["settings"].get("data", {}).get("name", found.data.name)
        return found.model_copy(update={"data": found.data.model_copy(update={"name": name})})
    return None if ORIGINALS_KEY in values else parse_any(values)


def facts_of_experiment(experiment: Experiment) -> Facts:
    """Return the facts that an experiment states.

    >>> from lconvnet.experiments.loading import parse
    >>> experiment = parse({"data": {"name": "mnist"}, "model": {"architecture": "small", "conv": "rko"}, "seed": 3})
    >>> facts = facts_of_experiment(experiment)
    >>> facts.data, facts.architecture, facts.method, facts.trial, dict(facts.recipe)["training.epochs"]
    ('mnist', 'Small', 'RKO', '3', 6)
    """
    architecture, method = _network(experiment)
    return Facts(
        task="robustness",
        data=_data_name(experiment),
        architecture=architecture,
        method=method,
        activation=_activation(experiment),
        trial=str(experiment.seed),
        recipe=recipe_of(experiment),
        specified=True,
    )


def facts_of_estimate(experiment: WassersteinExperiment) -> Facts:
    """Return the facts that a Wasserstein estimate states; its recipe is what differs from the paper's.

    >>> values = {"task": "wasserstein", "data": {"name": "cifar10"}, "generated": "g.npy", "critic": {"conv": "rko"}}
    >>> facts = facts_of_estimate(WassersteinExperiment.model_validate(values))
    >>> facts.data, facts.architecture, facts.method, facts.learning_rate
    ('cifar10', 'Critic', 'RKO', 0.0001)
    """
    outside = {"task": True, "seed": True, "evaluation": True, "data": {"name", "directory"}}
    outside |= {"critic": {"conv", "activation"}, "optimizer": {"lr"}, "training": {"checkpoint_every"}}
    return Facts(
        task="wasserstein",
        data=PurePosixPath(experiment.data.name).name or experiment.data.name,
        architecture="Critic",
        method=names.CONVS.get(experiment.critic.conv, experiment.critic.conv.upper()),
        activation=names.ACTIVATIONS.get(experiment.critic.activation, experiment.critic.activation),
        trial=str(experiment.seed),
        learning_rate=experiment.optimizer.lr,
        recipe=tuple(sorted(flatten(experiment.model_dump(mode="json", exclude=outside)))),
        specified=True,
    )


def facts_of_name(path: str) -> Facts:
    """Return the facts in the original's folder names.

    >>> facts_of_name("runs/wde_stl10/lr-0.001/conv/OSSN/n_iters-10/relu/multi-trial-B").learning_rate
    0.001
    """
    found = next((match.groupdict() for pattern in PATTERNS if (match := pattern.fullmatch(path))), None)
    if found is None:
        raise ValueError(
            "it has no specification (record.json or cfg.yaml) and its folder's name is none of the known ones; "
            "keep record.json beside results.yaml"
        )
    if "baseline" in found:
        return _baseline(found)
    known = names.FC_FOLDERS if found.get("architecture") == "fc" else names.METHOD_FOLDERS
    if found["method"] not in known:
        raise ValueError(f"its method {found['method']!r} is unknown; known: {', '.join(known)}")
    return _critic(found) if "lr" in found else _classifier(found)


def recipe_of(experiment: Experiment) -> Recipe:
    """Return the settings that determine the weights, without the seed and what a table names otherwise."""
    # Tables name a folder of images by its last part alone, which several folders may share.
    axes = AXES if _data_name(experiment) == experiment.data.name else AXES - {"data.name"}
    return tuple(sorted(pair for pair in flatten(build.settings(experiment)) if pair[0] not in axes))


def flatten(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested settings with dotted keys, lists as tuples.

    >>> list(flatten({"optimizer": {"lr": 0.1, "betas": [0.9, 0.99]}}))
    [('optimizer.lr', 0.1), ('optimizer.betas', (0.9, 0.99))]
    """
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", tuple(value) if isinstance(value, list) else value


def _with_origin(facts: Facts, folder: Path) -> Facts:
    """Runs that start from the weights of another are no repetitions of one that does not."""
    origin = recorded_settings(RunFolder(folder)).get("from")
    if not isinstance(origin, Mapping):
        return facts
    return replace(facts, recipe=tuple(sorted((*facts.recipe, ("from", str(origin.get("run")))))))


def _recorded(record: Path) -> bool:
    """Whether a record holds a specification; lconvnet.fit writes one without."""
    if record.stat().st_size > MAXIMAL_RECORD_BYTES:
        raise ValueError(f"its record.json has more than {MAXIMAL_RECORD_BYTES} bytes and is no record")
    return isinstance(load_record(record.parent).settings.get("settings"), Mapping)


def _network(experiment: Experiment) -> tuple[str, str]:
    model = experiment.model
    if isinstance(model, Mlp):
        widths = "-".join(map(str, model.widths))
        architecture = "FC-3" if model.widths == names.FC3_WIDTHS else f"FC {widths}"
        return architecture, names.LINEARS.get(model.linear, model.linear.capitalize())
    if isinstance(model, Kw):
        return names.ARCHITECTURES[model.architecture], names.BASELINES["kw"]
    if isinstance(model, Qw):
        return "QW", names.CONVS["rkl2ne"]
    return names.ARCHITECTURES[model.architecture], names.CONVS.get(model.conv, model.conv.upper())


def _activation(experiment: Experiment) -> str:
    model = experiment.model
    if isinstance(model, Kw | Qw):
        return "ReLU"
    return names.ACTIVATIONS.get(model.activation, model.activation)


def _published(folder: Path, experiment: Experiment) -> dict[str, Any]:
    """What differs where a baseline's weights are its authors': no seed and no recipe of ours made them."""
    model, record = experiment.model, folder / "record.json"
    if not isinstance(model, Kw | Qw) or not record.exists() or "imported" not in load_record(folder).settings:
        return {}
    published = {"recipe": (), "trial": ""}
    if isinstance(model, Qw) and model.published:
        published |= {"architecture": f"Model-{model.published}", "method": names.BASELINES["qian"]}
    return published


def _data_name(experiment: Experiment) -> str:
    return PurePosixPath(experiment.data.name).name or experiment.data.name


def _stated(evaluation: Any) -> Any:
    """The evaluation of a results.yaml; those that name no loss are older than the key, and climbed cross-entropy."""
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


def _classifier(found: Mapping[str, str]) -> Facts:
    architecture = names.ARCHITECTURES[found["architecture"]]
    method = {**names.METHOD_FOLDERS, **names.FC_FOLDERS}[found["method"]]
    return Facts("robustness", found["data"], architecture, method, "MaxMin", found["trial"])


def _critic(found: Mapping[str, str]) -> Facts:
    try:
        rate = float(found["lr"])
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise ValueError(f"its learning rate {found['lr']!r} is no positive number")
    method, activation = names.METHOD_FOLDERS[found["method"]], names.ACTIVATIONS[found["activation"]]
    iterations = int(found["iterations"] or 10)
    recipe: Recipe = (("iterations", iterations),) if iterations != 10 else ()
    return Facts("wasserstein", found["data"], "Critic", method, activation, found["trial"], rate, recipe)


def _baseline(found: Mapping[str, str]) -> Facts:
    return Facts(
        "robustness", found["data"], found["name"].capitalize(), names.BASELINES[found["baseline"]], "ReLU", ""
    )
