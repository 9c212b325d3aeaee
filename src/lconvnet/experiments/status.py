"""How far a run is, read from what it left in its folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, get_args

from lconvnet.experiments.loading import AnyExperiment, load_any
from lconvnet.experiments.run_folder import RunFolder, recorded
from lconvnet.experiments.session import Session, is_running, sessions
from lconvnet.experiments.tasks import results_of, task_of
from lconvnet.training import Record, is_started

State = Literal["finished", "running", "trained", "interrupted", "failed", "invalid", "missing"]
STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True)
class Status:
    """A run at a glance; accuracies are fractions, on the `images` that were evaluated (test, else validation); the
    certified one is at `eps`.

    finished: trained and evaluated · trained: not evaluated yet · interrupted: stopped or killed, goes on · failed:
    ended by the error in `detail` · invalid: its cfg.yaml cannot be used · missing: not started.
    """

    path: Path
    state: State
    epoch: int = 0
    epochs: int = 0
    clean: float | None = None
    certified: float | None = None
    images: str = ""
    eps: float | None = None
    seconds: float = 0.0
    images_per_second: float | None = None
    peak_memory_mb: float | None = None
    device: str = ""
    detail: str = ""


def status(path: str | Path) -> Status:
    """Return how far the run in the folder `path` is; whatever is damaged there is said in `detail`."""
    folder = RunFolder(Path(path))
    past, record = sessions(folder), recorded(folder)
    experiment, error = _experiment(folder, record)
    state, detail = _state(folder, past, record, experiment, error)
    asked = record.settings.get("epochs") or getattr(experiment and experiment.training, "epochs", 0) if record else 0
    return Status(
        folder.path,
        state,
        epoch=len(record.epochs) if record else 0,
        epochs=max(int(asked), len(record.epochs)) if record else 0,
        **_accuracies(record, results_of(folder, record)),
        seconds=sum(_numbers(past, "seconds")),
        images_per_second=_throughput(folder),
        peak_memory_mb=max(_numbers(past, "peak_memory_mb"), default=None),
        device=_device(record),
        detail=detail,
    )


def is_finished(folder: RunFolder, *, test: bool = True, attacks: bool = True) -> bool:
    """Whether nothing is left to do: trained to the end and, with `test`, measured as cfg.yaml asks, `attacks`
    included.

    Raises ValueError if cfg.yaml cannot be used, or states another experiment than was trained.
    """
    experiment = load_any(folder.config)
    task = task_of(experiment)
    task.require_stated(experiment, recorded(folder))
    done = task.finished(experiment, folder, test, attacks)
    return done is not None and (folder.path / task.product).exists()


def _experiment(folder: RunFolder, record: Record[Any] | None) -> tuple[AnyExperiment | None, str]:
    """What cfg.yaml states, and what is wrong with it."""
    try:
        experiment = load_any(folder.config)
        task_of(experiment).require_stated(experiment, record)
    except ValueError as error:
        return None, str(error)
    return experiment, ""


def count(rows: Iterable[Status]) -> dict[State, int]:
    """Return how many runs are in each state, those that none is in left out."""
    found = [row.state for row in rows]
    return {state: found.count(state) for state in STATES if state in found}


def _state(
    folder: RunFolder, past: list[Session], record: Record[Any] | None, experiment: AnyExperiment | None, error: str
) -> tuple[State, str]:
    last = past[-1] if past else None
    if is_running(folder):
        return "running", f"{last.task} on {last.facts.get('host')}, since {last.started}" if last else ""
    if experiment is None:
        return "invalid", error
    task = task_of(experiment)
    done = task.finished(experiment, folder, True, False)
    if done is not None:
        outdated = task.outdated(experiment, folder)
        return ("trained", outdated) if outdated else ("finished", done)
    if last and last.outcome == "failed":
        return "failed", last.error
    if record and record.finished and task.finished(experiment, folder, False, False) is not None:
        return "trained", ""
    if last or is_started(folder.path):
        return "interrupted", f"{last.task} was {last.outcome}" if last else ""
    said = _last_line(folder.output)
    return ("failed", said) if said else ("missing", "")


def _last_line(path: Path) -> str:
    """Return what a process said last that ended before its session began."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _accuracies(record: Record[Any] | None, results: dict[str, Any]) -> dict[str, Any]:
    """Return the accuracies of the test images, at the largest eps, else of the validation images, at the first; never
    one of each."""
    if "accuracy" in results:
        rows = results.get("adv_robustness")
        eps = max(rows) if isinstance(rows, dict) and rows else None
        row = rows[eps] if isinstance(rows, dict) and isinstance(rows.get(eps), dict) else {}
        at = {"certified": row["lb"], "eps": eps} if "lb" in row else {}
        return {"clean": results["accuracy"], "images": "test", **at}
    if not record or not record.best_epoch or record.best.rank is None:
        return {}
    eps, certified = next(iter(record.best.certified.items()), (None, None))
    return {"clean": record.best.clean, "images": "validation", "certified": certified, "eps": eps}


def _numbers(past: list[Session], name: str) -> list[float]:
    """Return a fact of all sessions that have it."""
    found = (session.facts.get(name) for session in past)
    return [float(value) for value in found if isinstance(value, int | float)]


def _device(record: Record[Any] | None) -> str:
    """Return where the last session trained: the device, and how many processes where it was more than one."""
    versions = record.versions if record else {}
    device, processes = versions.get("device", ""), versions.get("processes")
    return f"{device} x {processes}" if processes else device


def _throughput(folder: RunFolder) -> float | None:
    """Return the median over epochs of the training images per second."""
    path = folder.path / "logs" / "timing.jsonl"
    if not path.exists():
        return None
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found.append(float(json.loads(line)["images_per_second"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return median(found) if found else None
