"""Runs that differ in the seed alone, and how another recipe than the paper's is called.

The plain name of a method stands for the paper's recipe (Li et al. 2019; for data sets that are not in the paper, the
package's defaults). Any other recipe is another experiment and is named by what differs: the loss and the number of
epochs where they do, and of the rest what is needed to tell the experiments apart.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from lconvnet.experiments.estimation_config import WassersteinExperiment
from lconvnet.experiments.loading import parse
from lconvnet.report.facts import Facts, Recipe, facts_of_estimate, recipe_of
from lconvnet.report.runs import Run

ALWAYS = ("loss.name", "training.epochs", "training.steps", "finished")
UNSPECIFIED = ("specification", "none")
PAPER_RECIPES = {
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
PAPER_IMAGES = {"stl10": {"name": "stl10", "image_size": 64}}


@dataclass(frozen=True)
class Variant:
    """How a recipe differs from the paper's: `shown` of it is in the label, `full` is all of it."""

    shown: Recipe = ()
    full: Recipe = ()

    @property
    def text(self) -> str:
        """What stands in parentheses behind the method; empty for the paper's recipe.

        >>> Variant((("loss.name", "offset-cross-entropy"), ("training.epochs", 10))).text
        'offset-cross-entropy, 10 epochs'
        """
        return ", ".join(describe(key, value) for key, value in self.shown)


@dataclass(frozen=True)
class Group:
    """Repetitions of one experiment with different seeds."""

    facts: Facts
    variant: Variant
    runs: tuple[Run, ...]


def describe(key: str, value: Any) -> str:
    """Return one difference in words.

    >>> describe("training.epochs", 1), describe("optimizer.lr", 0.03)
    ('1 epoch', 'optimizer.lr=0.03')
    """
    if key in ("training.epochs", "training.steps"):
        return f"{value} {key.removeprefix('training.').removesuffix('s')}{'' if value == 1 else 's'}"
    if (key, value) == UNSPECIFIED:
        return "no specification"
    if key == "finished":
        return "unfinished"
    return str(value) if key == "loss.name" else f"{key}={list(value) if isinstance(value, tuple) else value}"


def group(runs: Iterable[Run]) -> tuple[Group, ...]:
    """Return the runs in groups that differ in the seed alone, sorted by what they are."""
    experiments: dict[Facts, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.facts.trial, run.path)):
        experiments.setdefault(replace(run.facts, trial=""), []).append(run)
    families = itertools.groupby(sorted(experiments, key=lambda facts: (_family(facts), repr(facts))), key=_family)
    return tuple(
        Group(facts, variant, tuple(experiments[facts]))
        for _, members in families
        for facts, variant in _variants(tuple(members))
    )


def recipe_note(label: str, found: Group) -> str:
    """Return a line that says how a recipe differs from the paper's where its label does not say all of it."""
    if found.variant.full == found.variant.shown:
        return ""
    where = f"{found.facts.data}, {found.facts.architecture}"
    return f"{label}, {where}: {', '.join(describe(key, value) for key, value in found.variant.full)}"


def differences(facts: Facts) -> Recipe:
    """Return the settings of a run that are not the paper's, the loss and the epochs first."""
    paper = dict(_paper(facts)) if facts.specified else {}
    # None is the default of a key that only this member of a union has.
    found = {key: value for key, value in facts.recipe if paper.get(key) != value}
    return tuple((key, found[key]) for key in (*ALWAYS, *(k for k in found if k not in ALWAYS)) if key in found)


def _family(facts: Facts) -> tuple[str, ...]:
    # A classifier's activation is part of its recipe; a critic's is a row of the table.
    activation = facts.activation if facts.task == "wasserstein" else ""
    return (facts.task, facts.data, facts.architecture, facts.method, activation, str(facts.learning_rate))


def _variants(family: Sequence[Facts]) -> list[tuple[Facts, Variant]]:
    """Name the experiments of one family so that no two have the same label."""
    any_specified = any(facts.specified for facts in family)
    unknown = [() if facts.specified or not any_specified else (UNSPECIFIED,) for facts in family]
    full = [(*start, *differences(facts)) for start, facts in zip(unknown, family, strict=True)]
    chosen = _telling([(), *full])
    shown = [tuple(pair for pair in pairs if pair[0] in chosen) for pairs in full]
    return [(facts, Variant(*pairs)) for facts, *pairs in zip(family, shown, full, strict=True)]


def _telling(differing: Sequence[Recipe]) -> set[str]:
    """Return the keys that labels show: those always shown, then each that tells more experiments apart."""
    chosen = {*ALWAYS, UNSPECIFIED[0]}
    for key in dict.fromkeys(key for pairs in differing for key, _ in pairs):
        if _labels(differing, chosen) < _labels(differing, chosen | {key}):
            chosen.add(key)
    return chosen


def _labels(differing: Sequence[Recipe], chosen: set[str]) -> int:
    return len({tuple(pair for pair in pairs if pair[0] in chosen) for pairs in differing})


def _paper(facts: Facts) -> Recipe:
    if facts.task == "wasserstein":
        return _paper_critic(facts.data)
    return _paper_recipe(facts.data, {"Small": "small", "Large": "large"}.get(facts.architecture, "mlp"))


@cache
def _paper_critic(data: str) -> Recipe:
    """The recipe of runs/wde_*, whose generator is that of runs/gan_*."""
    images = PAPER_IMAGES.get(data, {"name": data})
    generated = f"runs/gan_{data}/wgan-gp/generator.safetensors"
    spec = {**PAPER_CRITIC, "data": images, "generated": generated}
    return facts_of_estimate(WassersteinExperiment.model_validate(spec)).recipe


@cache
def _paper_recipe(data: str, architecture: str) -> Recipe:
    model: Mapping[str, Any] = {"architecture": architecture}
    if data not in PAPER_RECIPES:
        return recipe_of(parse({"model": model}))
    spec = {**PAPER_RECIPES[data], **PAPER_TRAINING, "model": {**model, "linear": "orthogonal"}}
    return recipe_of(parse(spec))
