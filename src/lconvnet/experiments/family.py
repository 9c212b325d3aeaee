"""From a `template.yaml` to the folders of its runs, again and again, without ever losing anything.

A generated cfg.yaml carries a digest of itself in its first lines, so that the next generation knows whether anybody
edited it, and the overrides it was made with, which stay with the run until others are given. What is there is replaced
only where it is a generated file, untouched, of a run that has not started.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lconvnet import atomic
from lconvnet.data.rows import alike
from lconvnet.experiments.loading import merge, parse_any
from lconvnet.experiments.reading import Dumper, parse_overrides, read
from lconvnet.experiments.run_folder import RunFolder
from lconvnet.experiments.session import undisturbed
from lconvnet.experiments.template import Choice, expand
from lconvnet.visible import files_below

TEMPLATE, CONFIG = "template.yaml", "cfg.yaml"
MARK = "# sha256 of the rest: "
OVERRIDDEN = "# Overridden: "
WIDTH = 100


@dataclass
class Generated:
    """What a generation did, as paths of run folders; `kept` and `invalid` with the reason.

    `overridden` are the overrides that runs keep from an earlier generation. `orphaned` folders hold a configuration or
    a run that no template expands to; they are left alone.
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

    `overrides` such as `training.epochs=3` apply to all runs and are written into their configurations; a run keeps
    those of an earlier generation where none are given. A run that has started, or whose cfg.yaml was written or edited
    by hand, keeps what it has. An invalid combination is reported and not written; the others are. Raises ValueError
    where there is no template, or one cannot be expanded, and for overrides that make two runs the same experiment.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; name one that holds a {TEMPLATE}, such as runs/adv-rob-mnist")
    templates = [path for path in files_below(folder) if path.name == TEMPLATE]
    if not templates:
        raise ValueError(f"{folder} holds no {TEMPLATE}, nor does any folder below it; write one, or name its folder")
    parse_overrides(overrides)
    result = Generated()
    for run, (template, choice) in _planned(templates, overrides).items():
        _generate(run, template, choice, overrides, result)
    planned = {*result.runs, *result.invalid}
    result.orphaned = [path for path in run_folders(folder) if path not in planned and _below(path, templates)]
    return result


def run_folders(folder: str | Path) -> list[Path]:
    """Return the folders in and below `folder` that hold a cfg.yaml, sorted."""
    return sorted(path.parent for path in files_below(Path(folder)) if path.name == CONFIG)


def _planned(templates: Sequence[Path], overrides: Sequence[str]) -> dict[Path, tuple[Path, Choice]]:
    """Return every run with its template and its choice; ValueError where two of them would be one."""
    planned: dict[Path, tuple[Path, Choice]] = {}
    for template in templates:
        choices = _expanded(template)
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
    """Raise ValueError for folders that differ in case or coding alone, which are one on some systems."""
    known: dict[str, Path] = {}
    for run in runs:
        for place in (run, *run.parents):
            if (other := known.setdefault(alike(str(place)), place)) == place:
                continue
            raise ValueError(
                f"{other.name!a} and {place.name!a} below {place.parent} differ in case or coding alone, and are one "
                "folder on some systems; change a label"
            )


def _expanded(template: Path) -> list[Choice]:
    try:
        return expand(read(template))
    except ValueError as error:
        raise ValueError(str(error) if str(template) in str(error) else f"{template}: {error}") from None


def _require_different(choices: Sequence[Choice], overrides: Sequence[str]) -> None:
    """Raise ValueError where an override undoes a choice, for the labels would then be wrong."""
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
    """Write the configuration of one run, or say why there is none."""
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
    """Put a configuration where it belongs, or say why the one that is there stays."""
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
    """Write the configuration of a run anew unless it has started, or is just about to."""
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
    """Return the overrides that a configuration was generated with; none where it is missing or edited."""
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
    """Whether anything was computed; a run that only failed, such as for want of its data, has not."""
    found = [run / name for name in ("record.json", "results.yaml", "model.safetensors")]
    return any(path.exists() for path in found) or any((run / "checkpoints").glob("[!.]*"))


def _below(path: Path, templates: Sequence[Path]) -> bool:
    return any(template.parent in (path, *path.parents) for template in templates)
