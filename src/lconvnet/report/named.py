"""A results.yaml in every folder that has its results under another name, as the original's programs expect.

The original wrote one results-norm-2019-05-21-….yaml for each evaluation; what a later evaluation here replaces is kept
as results-1.yaml, results-2.yaml, and so on.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lconvnet import atomic
from lconvnet.experiments.reading import read
from lconvnet.report.results import parse_results
from lconvnet.report.runs import NAME, Skipped
from lconvnet.visible import walk

OTHER = re.compile(r".*results.*\.ya?ml")
DATE = re.compile(r"\d{4}-?\d\d-?\d\d.*")
NUMBERED = re.compile(r"results-(\d+)")


@dataclass(frozen=True)
class Named:
    """The results.yaml files written, each with the file it is a copy of; how many were there; what is unusable."""

    written: dict[Path, Path]
    present: int
    skipped: tuple[Skipped, ...]


def name_results(folder: str | Path) -> Named:
    """Copy the newest results of every folder in and below `folder` to results.yaml where that is missing.

    Nothing is overwritten. The newest is that of the latest date in the names, or of the highest number, or that was
    written last. Raises ValueError where there is no such folder, or no results in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; name one with results below it, such as runs")
    written: dict[Path, Path] = {}
    skipped: list[Skipped] = []
    present = 0
    for place, _, files in walk(folder):
        if place / NAME in files:
            present += 1
            continue
        usable = [path for path in files if OTHER.fullmatch(path.name) and _is_usable(path, skipped)]
        if usable:
            written[place / NAME] = newest(usable)
            atomic.write_bytes(place / NAME, newest(usable).read_bytes())
    if not written and not present:
        raise ValueError(f"{folder} holds no usable {NAME}, nor results under another name")
    return Named(written, present, tuple(skipped))


def newest(paths: Sequence[Path]) -> Path:
    """Return the newest of several results.

    >>> newest([Path("results-norm-2019-10-02-09-00.yaml"), Path("results-adv-2019-09-30-12-00.yaml")]).name
    'results-norm-2019-10-02-09-00.yaml'
    >>> newest([Path("results-10.yaml"), Path("results-9.yaml")]).name
    'results-10.yaml'
    """
    dates = [DATE.search(path.stem) for path in paths]
    numbers = [NUMBERED.fullmatch(path.stem) for path in paths]
    ages: list[Any]
    if all(dates):
        ages = [re.sub(r"\D", "", found.group()) for found in dates if found]
    elif all(numbers):
        ages = [int(found.group(1)) for found in numbers if found]
    else:
        ages = [path.stat().st_mtime_ns for path in paths]
    return max(zip(ages, paths, strict=True))[1]


def _is_usable(path: Path, skipped: list[Skipped]) -> bool:
    try:
        parse_results(read(path))
    except (OSError, ValueError, RecursionError) as error:
        skipped.append(Skipped(str(path), " ".join(str(error).split())))
        return False
    return True
