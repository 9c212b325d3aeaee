"""Every run below a folder, and every results.yaml that could not be used, with the reason."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lconvnet.experiments.reading import read
from lconvnet.report.facts import Facts, Recipe, facts_of
from lconvnet.report.results import Results, parse_results
from lconvnet.visible import walk

logger = logging.getLogger("lconvnet")

NAME = "results.yaml"


@dataclass(frozen=True)
class Run:
    """One run: its folder below the one that was read, what it is, what was measured, how its attacks were set."""

    path: str
    facts: Facts
    results: Results
    attacks: Mapping[str, Recipe]


@dataclass(frozen=True)
class Skipped:
    """A results.yaml that was not used."""

    path: str
    reason: str


@dataclass(frozen=True)
class Found:
    """What a folder holds, sorted by path; `unmeasured` are trained networks without results.yaml."""

    folder: Path
    runs: tuple[Run, ...]
    skipped: tuple[Skipped, ...]
    unmeasured: tuple[str, ...] = ()

    def report_skipped(self) -> None:
        """Warn of every file that was not used."""
        for skipped in self.skipped:
            logger.warning("not used: %s: %s", self.folder / skipped.path, skipped.reason)


def find_runs(folder: str | Path) -> Found:
    """Return the runs below `folder`; one that is corrupt is skipped with its reason, the rest is used.

    results-1.yaml and so on are older evaluations and are not read. Links to folders are not followed. Raises
    ValueError where there is no such folder, or no usable run below it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; name one with results.yaml files below it, such as runs")
    skipped: list[Skipped] = []
    runs: dict[Facts, Run] = {}
    for path in _results_files(folder, skipped):
        run = _read_run(path, folder)
        if isinstance(run, Run) and run.facts in runs:
            run = Skipped(run.path, f"the same experiment and seed as {runs[run.facts].path}, which is used")
        if isinstance(run, Run):
            runs[run.facts] = run
        else:
            skipped.append(run)
    if not runs:
        reasons = f": {skipped[0].path}: {skipped[0].reason}" if skipped else "; evaluate a run: lconvnet evaluate RUN"
        raise ValueError(f"{folder} holds no usable {NAME}{reasons}")
    ordered = tuple(sorted(skipped, key=lambda item: item.path))
    return Found(folder, tuple(runs.values()), ordered, tuple(_unmeasured(folder)))


def _unmeasured(folder: Path) -> list[str]:
    """The folders of trained networks that nobody has evaluated."""
    trained = {"record.json", "model.safetensors"}
    found = [(files[0].parent, {path.name for path in files}) for _, _, files in walk(folder) if files]
    return sorted(_text(place.relative_to(folder)) for place, held in found if trained <= held and NAME not in held)


def _results_files(folder: Path, skipped: list[Skipped]) -> list[Path]:
    def note(error: OSError) -> None:
        path = Path(error.filename or folder)
        skipped.append(Skipped(path.relative_to(folder).as_posix(), f"it cannot be read ({error.strerror})"))

    return sorted(path for _, _, files in walk(folder, onerror=note) for path in files if path.name == NAME)


def _read_run(path: Path, folder: Path) -> Run | Skipped:
    """Read one run, or say why not."""
    place = _text(path.parent.relative_to(folder))
    try:
        values = read(path)
        results = parse_results(values)
        facts, attacks = facts_of(path.parent, values.get("evaluation"))
        return Run(place, _with_state(facts, results), results, attacks)
    except OSError as error:
        reason = f"it cannot be read ({error.strerror})"
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:
        reason = " ".join(str(error).replace(f"{path} ", "it ").replace(f"{path.parent}/", "").split())
    return Skipped(_text(path.relative_to(folder)), reason)


def _text(path: Path) -> str:
    """A path as text that can be written, whatever bytes its name has."""
    return os.fsencode(path.as_posix()).decode("utf-8", "replace")


def _with_state(facts: Facts, results: Results) -> Facts:
    """Check that the results belong to such a run; one that was stopped is another experiment than one that was
    not."""
    if facts.task == "robustness" and results.accuracy is None:
        raise ValueError("it has no accuracy, which every classifier has")
    if results.finished:
        return facts
    return Facts(**{**vars(facts), "recipe": tuple(sorted((*facts.recipe, ("finished", False))))})
