"""A family of experiments in one file: `template.yaml`, the grammar of choices, and its expansion.

A key `key|label: value` is one of the choices for `key`; all keys of a mapping that share what stands before the bar
are alternatives, and every combination of choices is a run, whose path joins the labels in the order of the file.
Choices nest: those inside a chosen value follow its label and multiply only its branch. A key in brackets,
`[name]|label: {...}`, puts the keys of its mapping in its own place.

    optimizer:
      name: adam
      lr|fast: 0.01
      lr|slow: 0.001         # fast/first, fast/second, slow/first, slow/second
    seed|first: 0
    seed|second: 1
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lconvnet.visible import is_visible

MAXIMAL_RUNS = 100_000
MAXIMAL_ENTRIES = 2_000_000
"""Keys of all combinations together, those of inner choices with them; a run has about a hundred."""

LONGEST_LABEL = 255  # bytes


@dataclass(frozen=True)
class Choice:
    """One combination: the labels that were chosen, in order, and the value without any choice in it."""

    labels: tuple[str, ...]
    value: Any

    @property
    def path(self) -> str:
        """The folder of the run below that of the template; "." where nothing was chosen."""
        return "/".join(self.labels) or "."


def expand(template: Mapping[str, Any]) -> list[Choice]:
    """Return all combinations of the choices of a template, the first choice varying slowest.

    No two share a path, and none lies in the folder of another. Raises ValueError for a label that is no name of a
    folder, for a key that is both fixed and a choice, and for more than 100,000 runs.

    >>> template = {"model": {"conv|BCOP": "bcop", "conv|RKO": "rko"}, "seed|A": 0, "seed|B": 1}
    >>> [choice.path for choice in expand(template)]
    ['BCOP/A', 'BCOP/B', 'RKO/A', 'RKO/B']
    >>> expand(template)[-1].value
    {'model': {'conv': 'rko'}, 'seed': 1}
    """
    _size(template, "")
    return _expand(template, "")


@dataclass(frozen=True)
class _Size:
    """What an expansion makes: combinations, keys of each, and entries of all, inner ones with them."""

    runs: int = 1
    keys: int = 1
    entries: int = 0


def _size(value: Any, place: str) -> _Size:
    """The size of an expansion, found without making it; ValueError where it is too large."""
    if isinstance(value, Mapping):
        groups = [
            (key, [_size(item, _at(place, key)) for _, item in group]) for key, group in _groups(value, place).items()
        ]
    else:
        groups = [("", [_size(item, place)]) for item in value] if isinstance(value, list) else []
    runs = math.prod(sum(size.runs for size in group) for _, group in groups)
    keys = sum(max(size.keys for size in group) if _is_bracketed(key) else 1 for key, group in groups)
    entries = runs * keys + sum(size.entries for _, group in groups for size in group)
    if runs > MAXIMAL_RUNS or entries > MAXIMAL_ENTRIES:
        what = f"{MAXIMAL_RUNS} combinations" if runs > MAXIMAL_RUNS else f"{MAXIMAL_ENTRIES} entries in all"
        raise ValueError(f"the template has more than {what}; split it into several folders")
    return _Size(runs, keys, entries)


def _is_bracketed(key: str) -> bool:
    return key.startswith("[") and key.endswith("]")


def _expand(value: Any, place: str) -> list[Choice]:
    if isinstance(value, Mapping):
        return _expand_mapping(value, place)
    if isinstance(value, list):
        combinations = itertools.product(*(_expand(item, f"{place}[{i}]") for i, item in enumerate(value)))
        return [Choice(_labels(items), [item.value for item in items]) for items in combinations]
    return [Choice((), value)]


def _expand_mapping(mapping: Mapping[str, Any], place: str) -> list[Choice]:
    groups = _groups(mapping, place)
    alternatives = [
        [
            Choice((*label, *inner.labels), inner.value)
            for label, value in group
            for inner in _expand(value, _at(place, key))
        ]
        for key, group in groups.items()
    ]
    return [Choice(_labels(items), _merged(list(groups), items, place)) for items in itertools.product(*alternatives)]


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
    """The mapping of one combination; the keys of a bracketed one stand in its place."""
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
