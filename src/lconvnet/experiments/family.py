"""From a `template.yaml` to the folders of its runs, again and again, without ever losing anything.

A generated cfg.yaml carries a digest of itself in its first lines, so that the next generation knows whether anybody
edited it. What is there is replaced only where it is a generated file, untouched, of a run that has not started.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lconvnet import atomic
from lconvnet.experiments.loading import merge, parse_any, read
from lconvnet.experiments.template import expand

TEMPLATE, CONFIG = "template.yaml", "cfg.yaml"
MARK = "# sha256 of the rest: "
WIDTH = 100
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


@dataclass
class Generated:
    """What a generation did, as paths of run folders; `kept` and `invalid` with the reason.

    `orphaned` folders hold a configuration or a run that no template expands to; they are left alone.
    """

    added: list[Path] = field(default_factory=list)
    changed: list[Path] = field(default_factory=list)
    unchanged: list[Path] = field(default_factory=list)
    kept: dict[Path, str] = field(default_factory=dict)
    invalid: dict[Path, str] = field(default_factory=dict)
    orphaned: list[Path] = field(default_factory=list)

    @property
    def runs(self) -> list[Path]:
        """All runs of the family that have a configuration."""
        return sorted([*self.added, *self.changed, *self.unchanged, *self.kept])


def generate(folder: str | Path, overrides: Sequence[str] = ()) -> Generated:
    """Write a cfg.yaml for every combination of every template.yaml in and below `folder`.

    `overrides` such as `training.epochs=3` apply to all runs and are written into their configurations. A run that has
    started, or whose cfg.yaml was written or edited by hand, keeps what it has. An invalid combination is reported and
    not written; the others are. Raises ValueError where there is no template, or one cannot be expanded.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; name one that holds a {TEMPLATE}, such as runs/adv-rob-mnist")
    templates = [path for path in _files(folder) if path.name == TEMPLATE]
    if not templates:
        raise ValueError(f"{folder} holds no {TEMPLATE}, nor does any folder below it; write one, or name its folder")
    result = Generated()
    for template in templates:
        _generate_family(template, overrides, result)
    planned = {*result.runs, *result.invalid}
    result.orphaned = [path for path in run_folders(folder) if path not in planned and _below(path, templates)]
    return result


def run_folders(folder: str | Path) -> list[Path]:
    """Return the folders in and below `folder` that hold a cfg.yaml, sorted."""
    return sorted(path.parent for path in _files(Path(folder)) if path.name == CONFIG)


def _generate_family(template: Path, overrides: Sequence[str], result: Generated) -> None:
    try:
        choices = expand(read(template))
    except ValueError as error:
        raise ValueError(str(error) if str(template) in str(error) else f"{template}: {error}") from None
    for choice in choices:
        run = template.parent / choice.path
        try:
            values = merge(choice.value, overrides)
            parse_any(values)
        except ValueError as error:
            result.invalid[run] = str(error)
        else:
            _place(run, _text(values, template, run), result)


def _place(run: Path, text: str, result: Generated) -> None:
    """Write the configuration of one run, or say why the one that is there stays."""
    path = run / CONFIG
    if not path.exists():
        atomic.write_text(path, text)
        result.added.append(run)
    elif path.read_text(encoding="utf-8", errors="replace") == text or _same_values(path, text):
        result.unchanged.append(run)
    elif not _is_untouched(path):
        result.kept[run] = "its cfg.yaml is written or edited by hand and differs from the template"
    elif _has_started(run):
        result.kept[run] = "it has started with what its cfg.yaml states, which differs from the template now"
    else:
        atomic.write_text(path, text)
        result.changed.append(run)


def _text(values: Mapping[str, Any], template: Path, run: Path) -> str:
    layout = {"sort_keys": False, "allow_unicode": True, "default_flow_style": None, "width": WIDTH}
    body = yaml.dump(dict(values), Dumper=DUMPER, **layout)
    source = os.path.relpath(template, run)
    return f"# Generated from {source}: change that and generate again.\n{MARK}{_digest(body)}\n{body}"


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
    return any(path.exists() for path in found) or any((run / "checkpoints").glob("*"))


def _below(path: Path, templates: Sequence[Path]) -> bool:
    return any(template.parent in (path, *path.parents) for template in templates)


def _files(folder: Path) -> Iterator[Path]:
    """All files in and below a folder, links to folders not followed, in a fixed order."""
    for above, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(above) / name for name in sorted(files))
