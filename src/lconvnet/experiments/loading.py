"""From a YAML file and `key=value` overrides to a validated `Experiment`, with one clear line for what is
wrong.

A file in the grammar of the original LConvNet is translated (`lconvnet.experiments.original`).
The file is read with a safe loader (no Python objects), may not exceed 1 MB or 20 levels and may not use YAML aliases
(`${key}` refers to another key instead), so that reading it takes bounded time and memory.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from lconvnet.experiments import original
from lconvnet.experiments.config import Experiment
from lconvnet.experiments.estimation_config import WassersteinExperiment
from lconvnet.experiments.explain import choice, explain, sections, tags
from lconvnet.experiments.generation_config import GanExperiment

AnyExperiment = Experiment | WassersteinExperiment | GanExperiment
TASKS: Mapping[str, type[AnyExperiment]] = {"wasserstein": WassersteinExperiment, "gan": GanExperiment}

MAXIMAL_BYTES = 1_000_000
MAXIMAL_DEPTH = 20
STARTS = (
    yaml.FlowSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.BlockMappingStartToken,
)
ENDS = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)


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
    try:
        changes = parse_overrides(overrides)
        known = OmegaConf.create(_without_stale_keys(_with_defaults(values, changes), changes))
        return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.merge(known, changes), resolve=True))
    except TypeError:
        raise ValueError(f"--set {' --set '.join(overrides)} puts a list where the file has a section") from None
    except OmegaConfBaseException as error:
        raise ValueError(f"a ${{key}} reference is wrong: {_first_line(error)}") from None


def read(path: Path) -> dict[str, Any]:
    """Return the nested values of a YAML file, unvalidated; ValueError where it is no readable YAML
    mapping."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name the cfg.yaml in it")
    if not path.is_file():
        raise ValueError(f"{path} does not exist; name a cfg.yaml such as runs/demo/cfg.yaml")
    if path.stat().st_size > MAXIMAL_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, more than {MAXIMAL_BYTES}; it is no configuration")
    try:
        text = path.read_text(encoding="utf-8")
        _check_tokens(path, text)
        config = _created(path, text)
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8; name a YAML configuration") from None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path} is not valid YAML: {_first_line(error)}") from None
    if not isinstance(config, DictConfig):
        raise ValueError(f"{path} holds a {type(config).__name__}; a configuration is a mapping of sections")
    values = OmegaConf.to_container(config, resolve=False)
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ValueError(f"{path} has a key that is no text; a configuration maps names to sections")
    return {str(key): value for key, value in values.items()}


def parse_overrides(overrides: Sequence[str]) -> DictConfig:
    """Return `key=value` texts as a nested configuration.

    >>> parse_overrides(["evaluation.eps=[0.1, 0.2]"])
    {'evaluation': {'eps': [0.1, 0.2]}}
    """
    for text in overrides:
        key, separator, _ = text.partition("=")
        if not separator or not all(part.strip() for part in key.split(".")):
            raise ValueError(f"--set is {text!r}; write key=value, such as --set training.epochs=3")
    return OmegaConf.from_dotlist(list(overrides))


def dump(experiment: AnyExperiment) -> str:
    """Return the complete configuration, defaults written out, as YAML that `load` reads to an equal one."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=100)


def _check_tokens(path: Path, text: str) -> None:
    """Refuse aliases, which can grow without bound, and deep nesting, on which the parser's time is quadratic."""
    depth = 0
    for token in yaml.scan(text):
        depth += isinstance(token, STARTS) - isinstance(token, ENDS)
        if isinstance(token, yaml.AliasToken):
            raise ValueError(f"{path} uses a YAML alias (*name); refer to another key with ${{key}} instead")
        if depth > MAXIMAL_DEPTH:
            raise ValueError(f"{path} is nested deeper than {MAXIMAL_DEPTH} levels; it is no configuration")


def _created(path: Path, text: str) -> Any:
    """The text's nested values; what YAML's own types and single values raise is one clear line."""
    try:
        return OmegaConf.create(text)
    except AssertionError:  # for a number, which OmegaConf takes nothing but sections and lists for
        raise ValueError(f"{path} holds a single value; a configuration is a mapping of sections") from None
    except ValueError as error:  # such as a number of too many digits, or the 30th of February
        raise ValueError(f"{path} is not valid YAML: {_first_line(error)}") from None


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


def _with_defaults(values: Mapping[str, Any], changes: DictConfig) -> dict[str, Any]:
    """Write out the default of a section that only the overrides name, so that they may change a part of it."""
    fields = _kind(values).model_fields
    defaults = {name: fields[name].default for name in changes if name in fields}
    absent = {name: value for name, value in defaults.items() if name not in values}
    written = {name: value.model_dump(mode="json") for name, value in absent.items() if isinstance(value, BaseModel)}
    return {**values, **written}


def _without_stale_keys(values: Mapping[str, Any], changes: DictConfig) -> dict[str, Any]:
    """Drop the keys of a section that the member chosen by an override does not know."""
    kept = dict(values)
    for name, field in _kind(values).model_fields.items():
        change, section = changes.get(name), values.get(name)
        for member in sections(field.annotation):
            key, names = tags(member)
            if not (key and isinstance(change, DictConfig) and isinstance(section, Mapping)):
                continue
            if change.get(key) in names and change.get(key) != section.get(key):
                kept[name] = {k: v for k, v in section.items() if k in member.model_fields}
    return kept


def _first_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
    problem = getattr(error, "problem", None)
    return (str(problem) if problem else str(error).strip().splitlines()[0]) + where
