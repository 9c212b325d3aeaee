"""From a YAML file and `key=value` overrides to a validated `Experiment`, with one clear line for what is
wrong.

A file in the grammar of the original LConvNet is translated (`lconvnet.experiments.original`).
What a plain value of an override stands for depends on its key: `data.name=0123` is a folder, `seed=0123` is refused.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from lconvnet.experiments import original
from lconvnet.experiments.config import Experiment, GanExperiment, WassersteinExperiment
from lconvnet.experiments.explain import choice, explain, sections, tags, types
from lconvnet.experiments.explain import values as literals
from lconvnet.experiments.reading import Dumper, Written, overlaid, parse_overrides, read
from lconvnet.experiments.references import resolved
from lconvnet.experiments.scalars import plain

AnyExperiment = Experiment | WassersteinExperiment | GanExperiment
TASKS: Mapping[str, type[AnyExperiment]] = {"wasserstein": WassersteinExperiment, "gan": GanExperiment}


def load(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Return the classifier described by the file `path`, with `overrides` such as `training.epochs=3`.

    Where an override chooses another member of a union (`loss.name=...`), keys of the file that the new
    member does not know are dropped; keys given as overrides never are.

    Raises ValueError for a file that is missing, too large, not YAML or not a valid experiment.
    """
    with naming(Path(path)):
        return parse(read(Path(path)), overrides)


def load_any(path: str | Path, overrides: Sequence[str] = ()) -> AnyExperiment:
    """As `load`, whatever the task is."""
    with naming(Path(path)):
        return parse_any(read(Path(path)), overrides)


def parse(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> Experiment:
    """Return the classifier described by nested `values`, with `overrides` applied.

    >>> parse({"model": {"architecture": "mlp"}}, ["training.epochs=3"]).training.epochs
    3
    """
    experiment = parse_any(values, overrides)
    if not isinstance(experiment, Experiment):
        raise ValueError(f"task is {experiment.task!r}; a classifier, which has no task, is needed here")
    return experiment


def parse_any(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> AnyExperiment:
    """As `parse`, whatever the task is: `task` wasserstein or gan, or none for a classifier."""
    merged = merge(values, overrides)
    kind = _kind(merged)
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        raise ValueError(explain(error, kind)) from None


def merge(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return nested `values` with `overrides` applied and references resolved, not yet validated.

    >>> merge({"seed": 0, "data": {"name": "mnist"}}, ["data.limit=100"])
    {'seed': 0, 'data': {'name': 'mnist', 'limit': 100}}
    """
    if original.is_original(values):
        values = original.translate(values)
    if not overrides and "${" not in str(values):
        return dict(values)
    changes = parse_overrides(overrides)
    found = resolved(overlaid(_without_stale_keys(_with_defaults(values, changes), changes), changes))
    return _typed(found, _kind(found))


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


def _with_defaults(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Write out the default of a section that only the overrides name, so that they may change a part of it."""
    defaults = _kind(values).model_construct().model_dump(mode="json")
    written = {name: defaults[name] for name in changes if isinstance(defaults.get(name), dict)}
    return {**written, **values}


def _without_stale_keys(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the keys of a section that the member chosen by an override does not know."""
    kept = dict(values)
    for name, field in _kind(values).model_fields.items():
        change, section = changes.get(name), values.get(name)
        for member in sections(field.annotation):
            key, names = tags(member)
            if not (key and isinstance(change, Mapping) and isinstance(section, Mapping)):
                continue
            if change.get(key) in names and change.get(key) != section.get(key):
                kept[name] = {k: v for k, v in section.items() if k in member.model_fields}
    return kept


def _typed(value: Any, annotation: Any) -> Any:
    """Return nested values in which every `Written` is what its key takes."""
    if isinstance(value, Mapping):
        fields = next((member.model_fields for member in sections(annotation) if _is_chosen(member, value)), {})
        return {key: _typed(inner, fields[key].annotation if key in fields else None) for key, inner in value.items()}
    if isinstance(value, list):
        return [_typed(inner, annotation) for inner in value]
    return _read_as(value, annotation) if isinstance(value, Written) else value


def _is_chosen(member: type[BaseModel], section: Mapping[str, Any]) -> bool:
    """Whether a section is of this member of a union."""
    key, names = tags(member)
    return not key or section.get(key) in names


def _read_as(text: Written, annotation: Any) -> Any:
    found, kinds = plain(text), types(annotation)
    is_text = str in kinds or str(text) in literals(annotation)
    return str(text) if is_text and not (found is None and NoneType in kinds) else found
