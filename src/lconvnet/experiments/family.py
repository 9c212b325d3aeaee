"""Families of experiments: `template.yaml`, the grammar of its choices, and the folders of its runs.

A key `key|label: value` is one of the choices for `key`. All keys of a mapping with the same text before the bar are
alternatives. Every combination of choices is a run, whose path joins the labels in the order of the file. Choices nest:
those inside a chosen value follow its label and multiply only its branch. A key in brackets, `[name]|label: {...}`, is
replaced by the keys of its mapping.

    optimizer:
      name: adam
      lr|fast: 0.01
      lr|slow: 0.001         # fast/first, fast/second, slow/first, slow/second
    seed|first: 0
    seed|second: 1

:func:`generate` may be called again, and nothing is ever lost. The first lines of a generated cfg.yaml hold a digest of
the file, so that the next generation detects edits. They also hold the overrides of the run, which stay until others
are given. A file is replaced only if it was generated, is unedited, and its run has not started.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lconvnet import atomic
from lconvnet.data.tables import alike
from lconvnet.experiments.loading import merge, naming, parse_any
from lconvnet.experiments.reading import Dumper, parse_overrides, read
from lconvnet.experiments.run_folder import RunFolder
from lconvnet.experiments.session import undisturbed
from lconvnet.visible import files_below, is_visible

TEMPLATE, CONFIG = "template.yaml", "cfg.yaml"
MARK = "# sha256 of the rest: "
OVERRIDDEN = "# Overridden: "
WIDTH = 100


MAXIMAL_RUNS = 100_000
MAXIMAL_ENTRIES = 2_000_000
"""Largest number of keys of all combinations together, with those of inner choices; a run has about a hundred."""

LONGEST_LABEL = 255  # bytes


@dataclass(frozen=True)
class Choice:
    """One combination: the chosen labels, in order, and the value without any choice in it."""

    labels: tuple[str, ...]
    value: Any

    @property
    def path(self) -> str:
        """The folder of the run below that of the template; "." if nothing was chosen."""
        return "/".join(self.labels) or "."


def expand(template: Mapping[str, Any]) -> list[Choice]:
    """Return all combinations of the choices of a template, the first choice varying slowest.

    No two share a path, and none lies in the folder of another. Raises ValueError for a label that is not a valid
    folder name, for a key that is both fixed and a choice, and for more than 100,000 runs.

    >>> template = {"model": {"conv|BCOP": "bcop", "conv|RKO": "rko"}, "seed|A": 0, "seed|B": 1}
    >>> [choice.path for choice in expand(template)]
    ['BCOP/A', 'BCOP/B', 'RKO/A', 'RKO/B']
    >>> expand(template)[-1].value
    {'model': {'conv': 'rko'}, 'seed': 1}
    """
    _size(template, "")
    return _expand(template, "")


def _size(value: Any, place: str) -> tuple[int, int, int]:
    """The size of an expansion, found without making it: runs, keys per run, and entries in total with inner ones.

    ValueError if it is too large.
    """
    if isinstance(value, Mapping):
        found = _groups(value, place).items()
        groups = [(key, [_size(item, _at(place, key)) for _, item in group]) for key, group in found]
    else:
        groups = [("", [_size(item, place)]) for item in value] if isinstance(value, list) else []
    runs = math.prod(sum(number for number, _, _ in group) for _, group in groups)
    keys = sum(max(number for _, number, _ in group) if _is_bracketed(key) else 1 for key, group in groups)
    entries = runs * keys + sum(number for _, group in groups for _, _, number in group)
    if runs > MAXIMAL_RUNS or entries > MAXIMAL_ENTRIES:
        what = f"{MAXIMAL_RUNS} combinations" if runs > MAXIMAL_RUNS else f"{MAXIMAL_ENTRIES} entries in all"
        raise ValueError(f"the template has more than {what}; split it into several folders")
    return runs, keys, entries


def _is_bracketed(key: str) -> bool:
    return key.startswith("[") and key.endswith("]")


def _expand(value: Any, place: str) -> list[Choice]:
    if isinstance(value, Mapping):
        groups = _groups(value, place)
        alternatives = [
            [Choice((*label, *inner.labels), inner.value) for label, item in group for inner in _expand(item, at)]
            for at, group in ((_at(place, key), group) for key, group in groups.items())
        ]
        combinations = itertools.product(*alternatives)
        return [Choice(_labels(items), _merged(list(groups), items, place)) for items in combinations]
    if isinstance(value, list):
        combinations = itertools.product(*(_expand(item, f"{place}[{i}]") for i, item in enumerate(value)))
        return [Choice(_labels(items), [item.value for item in items]) for items in combinations]
    return [Choice((), value)]


def _groups(mapping: Mapping[str, Any], place: str) -> dict[str, list[tuple[tuple[str, ...], Any]]]:
    """Return for every key its alternatives, each with its label (none for a fixed one), in the order of the file."""
    groups: dict[str, list[tuple[tuple[str, ...], Any]]] = {}
    for text, value in mapping.items():
        key, bar, label = str(text).partition("|")
        if bar and not _is_folder_name(label):
            raise ValueError(f"{_at(place, text)}: {label!r} cannot be the name of a folder; choose another label")
        group = groups.setdefault(key, [])
        if group and (not bar or not group[0][0]):
            raise ValueError(f"{_at(place, text)}: {key!r} has a fixed value beside its choices; label all of them")
        group.append(((label,) if bar else (), value))
    return groups


def _is_folder_name(label: str) -> bool:
    fits = label != "" and label == label.strip() and len(label.encode()) <= LONGEST_LABEL
    return fits and is_visible(label) and label.isprintable() and not {"/", "\\"} & set(label)


def _merged(keys: list[str], items: tuple[Choice, ...], place: str) -> dict[str, Any]:
    """The mapping of one combination; the keys of a bracketed mapping replace it."""
    merged: dict[str, Any] = {}
    for key, item in zip(keys, items, strict=True):
        bracketed = _is_bracketed(key)
        if bracketed and not isinstance(item.value, Mapping):
            raise ValueError(f"{_at(place, key)}: a key in brackets must hold a mapping, not {item.value!r}")
        for name, value in (item.value if bracketed else {key: item.value}).items():
            if name in merged:
                raise ValueError(f"{_at(place, key)}: {name!r} is there twice; keep one")
            merged[name] = value
    return merged


def _labels(items: tuple[Choice, ...]) -> tuple[str, ...]:
    return tuple(label for item in items for label in item.labels)


def _at(place: str, key: str) -> str:
    return f"{place}.{key}" if place else str(key)


@dataclass
class Generated:
    """The result of a generation, as paths of run folders; `kept` and `invalid` with the reason.

    `overridden` are the overrides that runs keep from an earlier generation. `orphaned` folders hold a configuration or
    a run that no template expands to; they are not touched.
    """

    added: list[Path] = field(default_factory=list)
    changed: list[Path] = field(default_factory=list)
    unchanged: list[Path] = field(default_factory=list)
    kept: dict[Path, str] = field(default_factory=dict)
    invalid: dict[Path, str] = field(default_factory=dict)
    overridden: dict[Path, str] = field(default_factory=dict)
    orphaned: list[Path] = field(default_factory=list)

    @property
    def runs(self) -> list[Path]:
        """All runs of the family that have a configuration."""
        return sorted([*self.added, *self.changed, *self.unchanged, *self.kept])


def generate(folder: str | Path, overrides: Sequence[str] = ()) -> Generated:
    """Write a cfg.yaml for every combination of every template.yaml in and below `folder`.

    `overrides` such as `training.epochs=3` apply to all runs and are written into their configurations. Without them a
    run keeps those of an earlier generation. A run that has started, or whose cfg.yaml was written or edited by hand,
    stays unchanged. An invalid combination is reported and not written; the others are written. Raises ValueError if
    there is no template, if one cannot be expanded, and for overrides that make two runs the same experiment.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; name one that holds a {TEMPLATE}, such as runs/adv-rob-mnist")
    templates = [path for path in files_below(folder) if path.name == TEMPLATE]
    if not templates:
        raise ValueError(f"{folder} holds no {TEMPLATE}, nor does any folder below it; write one, or name its folder")
    parse_overrides(overrides)
    result = Generated()
    for run, (template, choice) in _planned(templates, overrides).items():
        _generate(run, template, choice, overrides, result)
    planned = {*result.runs, *result.invalid}
    families = {template.parent for template in templates}
    unknown = [path for path in run_folders(folder) if path not in planned]
    result.orphaned = [path for path in unknown if families & {path, *path.parents}]
    return result


def run_folders(folder: str | Path) -> list[Path]:
    """Return the folders in and below `folder` that hold a cfg.yaml, sorted."""
    return sorted(path.parent for path in files_below(Path(folder)) if path.name == CONFIG)


def _planned(templates: Sequence[Path], overrides: Sequence[str]) -> dict[Path, tuple[Path, Choice]]:
    """Return every run with its template and its choice; ValueError if two of them coincide."""
    planned: dict[Path, tuple[Path, Choice]] = {}
    for template in templates:
        with naming(template):
            choices = expand(read(template))
        if overrides:
            _require_different(choices, overrides)
        for choice in choices:
            run = template.parent / choice.path
            if run in planned:
                raise ValueError(
                    f"{run} is a run of {planned[run][0]} and of {template}; change a label in one of them"
                )
            planned[run] = template, choice
    _require_distinct(planned)
    return planned


def _require_distinct(runs: Iterable[Path]) -> None:
    """Raise ValueError for folders that differ only in case or Unicode form: on some systems they are the same."""
    known: dict[str, Path] = {}
    for run in runs:
        for place in (run, *run.parents):
            if (other := known.setdefault(alike(str(place)), place)) == place:
                continue
            raise ValueError(
                f"{other.name!a} and {place.name!a} below {place.parent} differ in case or coding alone, and are one "
                "folder on some systems; change a label"
            )


def _require_different(choices: Sequence[Choice], overrides: Sequence[str]) -> None:
    """Raise ValueError if an override undoes a choice, because the labels would then be wrong."""
    keys = [text.partition("=")[0].strip().split(".") for text in overrides]
    seen: dict[str, tuple[str, Any]] = {}
    for choice in choices:
        rest = functools.reduce(_without, keys, choice.value)
        other, its_value = seen.setdefault(json.dumps(rest, default=str), (choice.path, choice.value))
        if choice.value != its_value:
            raise ValueError(
                f"--set {' --set '.join(overrides)} makes {other} and {choice.path} the same experiment; change the "
                "template instead"
            )


def _without(values: Any, key: Sequence[str]) -> Any:
    """Return nested values without one of their keys."""
    if not key or not isinstance(values, Mapping):
        return values
    first, *rest = key
    return {
        name: _without(value, rest) if name == first else value
        for name, value in values.items()
        if rest or name != first
    }


def _generate(run: Path, template: Path, choice: Choice, overrides: Sequence[str], result: Generated) -> None:
    """Write the configuration of one run, or record why it is invalid."""
    try:
        atomic.refuse_links(template.parent, run / CONFIG)
        RunFolder(run).refuse_links()
        kept = [] if overrides else _overrides_of(run / CONFIG)
        values = merge(choice.value, overrides or kept)
        parse_any(values)
    except ValueError as error:
        result.invalid[run] = str(error)
        return
    _place(run, _text(values, os.path.relpath(template, run), overrides or kept), result)
    if kept:
        result.overridden[run] = " ".join(kept)


def _place(run: Path, text: str, result: Generated) -> None:
    """Write a configuration to its place, or record why the existing one stays."""
    path = run / CONFIG
    if not path.exists():
        if _has_started(run):
            result.invalid[run] = "it has started, but its cfg.yaml is gone; put it back, or move the folder away"
            return
        atomic.write_text(path, text)
        result.added.append(run)
    elif path.read_text(encoding="utf-8", errors="replace") == text or _same_values(path, text):
        result.unchanged.append(run)
    elif not _is_untouched(path):
        result.kept[run] = "its cfg.yaml is written or edited by hand and differs from the template"
    else:
        _replace(run, text, result)


def _replace(run: Path, text: str, result: Generated) -> None:
    """Rewrite the configuration of a run unless it has started or is about to start."""
    try:
        with undisturbed(RunFolder(run)):
            if _has_started(run):
                result.kept[run] = "it has started with what its cfg.yaml states, which differs from the template now"
            else:
                atomic.write_text(run / CONFIG, text)
                result.changed.append(run)
    except ValueError:
        result.kept[run] = "a process works on it, with what its cfg.yaml states, which differs from the template now"


def _text(values: Mapping[str, Any], source: str, overrides: Sequence[str]) -> str:
    layout = {"sort_keys": False, "allow_unicode": True, "default_flow_style": None, "width": WIDTH}
    body = yaml.dump(dict(values), Dumper=Dumper, **layout)
    overridden = f"{OVERRIDDEN}{json.dumps(list(overrides), ensure_ascii=False)}\n" if overrides else ""
    return f"# Generated from {source}: change that and generate again.\n{overridden}{MARK}{_digest(body)}\n{body}"


def _overrides_of(path: Path) -> list[str]:
    """Return the overrides that a configuration was generated with; none if it is missing or edited."""
    if not path.exists() or not _is_untouched(path):
        return []
    head = path.read_text(encoding="utf-8").partition(MARK)[0]
    line = next((line for line in head.splitlines() if line.startswith(OVERRIDDEN)), None)
    try:
        found = json.loads(line.removeprefix(OVERRIDDEN)) if line else []
        parse_overrides(found)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return []
    return found


def _is_untouched(path: Path) -> bool:
    """Whether a configuration is, byte for byte, as a generation wrote it."""
    head, mark, rest = path.read_text(encoding="utf-8", errors="replace").partition(MARK)
    digest, _, body = rest.partition("\n")
    return bool(mark) and head.startswith("# Generated from ") and digest == _digest(body)


def _same_values(path: Path, text: str) -> bool:
    try:
        return read(path) == yaml.safe_load(text)
    except ValueError:
        return False


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def _has_started(run: Path) -> bool:
    """Whether anything was computed; a run that only failed, for example because its data is missing, has not
    started."""
    found = [run / name for name in ("record.json", "results.yaml", "model.safetensors")]
    return any(path.exists() for path in found) or any((run / "checkpoints").glob("[!.]*"))
