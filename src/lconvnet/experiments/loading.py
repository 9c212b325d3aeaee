"""From a YAML file and `key=value` overrides to a validated `Experiment`, with one clear line per error.

A file in the grammar of the original LConvNet is translated (`lconvnet.experiments.original`). The key of an override
decides the meaning of a plain value: `data.name=0123` is a folder, `seed=0123` is refused.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError

from lconvnet.experiments import original
from lconvnet.experiments.config import Experiment, GanExperiment, WassersteinExperiment
from lconvnet.experiments.explain import choice, explain, open_to, typed
from lconvnet.experiments.reading import Dumper, overlaid, parse_overrides, read, resolved

AnyExperiment = Experiment | WassersteinExperiment | GanExperiment
TASKS: Mapping[str, type[AnyExperiment]] = {"wasserstein": WassersteinExperiment, "gan": GanExperiment}


def load(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Return the classifier described by the file `path`, with `overrides` such as `training.epochs=3`.

    If an override chooses another member of a union (`loss.name=...`), keys of the file that the new member does not
    know are dropped. Keys given as overrides are never dropped.

    Raises ValueError for a file that is missing, too large, not YAML or not a valid experiment.
    """
    with naming(Path(path)):
        return parse(read(Path(path)), overrides)


def load_any(path: str | Path, overrides: Sequence[str] = ()) -> AnyExperiment:
    """Like `load`, for any task."""
    with naming(Path(path)):
        return parse_any(read(Path(path)), overrides)


def parse(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> Experiment:
    """Return the classifier described by nested `values`, with `overrides` applied.

    >>> parse({"model": {"architecture": "mlp"}}, ["training.epochs=3"]).training.epochs
    3
    """
    experiment = parse_any(values, overrides)
    if experiment.task != Experiment.task:
        raise ValueError(f"task is {experiment.task!r}; a classifier, which has no task, is needed here")
    return cast(Experiment, experiment)


def parse_any(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> AnyExperiment:
    """Like `parse`, for any task: `task` is wasserstein or gan, or absent for a classifier."""
    merged = merge(values, overrides)
    kind = _kind(merged)
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        raise ValueError(explain(error, kind)) from None


def merge(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return nested `values` with `overrides` applied and references resolved, not yet validated.

    >>> merge({"seed": 0, "data": {"name": "mnist"}}, ["data.limit=100"])
    {'data': {'name': 'mnist', 'limit': 100}, 'seed': 0}
    """
    if original.is_original(values):
        values = original.translate(values)
    if not overrides and "${" not in str(values):
        return dict(values)
    changes = parse_overrides(overrides)
    found = resolved(overlaid(open_to(changes, values, _kind(values)), changes))
    return typed(found, _kind(found))


def dump(experiment: AnyExperiment) -> str:
    """Return the complete configuration, defaults written out, as YAML that `load` reads to an equal one."""
    values = experiment.model_dump(mode="json")
    return yaml.dump(values, Dumper=Dumper, sort_keys=False, default_flow_style=None, width=100)


def _kind(values: Mapping[str, Any]) -> type[AnyExperiment]:
    if "task" not in values:
        return Experiment
    task = str(values["task"])
    if task not in TASKS:
        raise ValueError(choice("task", task, list(TASKS)))
    return TASKS[task]


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the path before an error that does not name it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
