"""How far a run is, read from what it left in its folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, get_args

from lconvnet.experiments import generation
from lconvnet.experiments.config import Experiment, GanExperiment, WassersteinExperiment, settings
from lconvnet.experiments.loading import load_any
from lconvnet.experiments.reading import read
from lconvnet.experiments.run_folder import RunFolder
from lconvnet.experiments.session import Session, is_running, sessions
from lconvnet.ops.rounding import rounded_down, rounded_up
from lconvnet.training import CheckpointError, Record, is_started, load_record
from lconvnet.training.settings import differences

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
    past = sessions(folder)
    record = _record(folder)
    results = _results(folder, record)
    state, detail = _state(folder, past, record, results)
    epochs = int(record.settings.get("epochs", 0)) if record else max(_generator_epochs(folder), _generated(folder))
    return Status(
        folder.path,
        state,
        epoch=len(record.epochs) if record else _generated(folder),
        epochs=epochs,
        **_accuracies(record, results),
        seconds=sum(_numbers(past, "seconds")),
        images_per_second=_throughput(folder),
        peak_memory_mb=max(_numbers(past, "peak_memory_mb"), default=None),
        device=_device(record),
        detail=detail,
    )


def is_finished(folder: RunFolder, *, test: bool = True, attacks: bool = True) -> bool:
    """Whether nothing is left to do: trained to the end and, with `test`, measured as cfg.yaml asks, `attacks`
    included.

    Raises ValueError where cfg.yaml cannot be used, or states another experiment than was trained.
    """
    experiment, record = load_any(folder.config), _record(folder)
    if isinstance(experiment, WassersteinExperiment):
        return bool(_estimated(folder))
    if isinstance(experiment, GanExperiment):
        return _generated(folder) >= experiment.training.epochs
    _require_trained_as_stated(experiment, record)
    trained = bool(record and record.finished and folder.model.exists())
    if not (trained and test):
        return trained
    results = _results(folder, record)
    return bool(results) and (not attacks or _answers(results, experiment))


def _answers(results: dict[str, Any], experiment: Experiment) -> bool:
    return results.get("evaluation") == experiment.evaluation.model_dump(mode="json")


def _require_trained_as_stated(experiment: Experiment, record: Record | None) -> None:
    """Raise ValueError where a record tells of other settings; those it does not know are younger than it is."""
    trained = record.settings.get("settings") if record else None
    if isinstance(trained, dict):
        stated = _shared(json.loads(json.dumps(settings(experiment))), trained)
        if other := list(differences(trained, stated)):
            raise ValueError(
                f"cfg.yaml states another experiment than was trained ({'; '.join(other[:5])}); change it back, or "
                "train in another folder"
            )


def _shared(values: Any, like: Any) -> Any:
    """Return nested values without the keys that are not in `like`."""
    if not isinstance(values, dict) or not isinstance(like, dict):
        return values
    return {key: _shared(value, like[key]) for key, value in values.items() if key in like}


def count(rows: Iterable[Status]) -> dict[State, int]:
    """Return how many runs are in each state, those that none is in left out."""
    found = [row.state for row in rows]
    return {state: found.count(state) for state in STATES if state in found}


def _state(folder: RunFolder, past: list[Session], record: Record | None, results: dict[str, Any]) -> tuple[State, str]:
    last = past[-1] if past else None
    if is_running(folder):
        return "running", f"{last.task} on {last.facts.get('host')}, since {last.started}" if last else ""
    if error := _config_error(folder, record):
        return "invalid", error
    if record and record.finished and results:
        return _evaluated(folder, results)
    if estimated := _estimated(folder):
        low, high = estimated["distance_interval"]
        return (
            "finished",
            f"distance {rounded_down(estimated['distance'], 4)} ({rounded_down(low, 4)} to {rounded_up(high, 4)})",
        )
    if 0 < _generator_epochs(folder) <= _generated(folder):
        return "finished", "generator.safetensors"
    if last and last.outcome == "failed":
        return "failed", last.error
    if record and record.finished:
        return "trained", ""
    if last or is_started(folder.path):
        return "interrupted", f"{last.task} was {last.outcome}" if last else ""
    said = _last_line(folder.output)
    return ("failed", said) if said else ("missing", "")


def _evaluated(folder: RunFolder, results: dict[str, Any]) -> tuple[State, str]:
    experiment = load_any(folder.config)
    if "evaluation" in results and isinstance(experiment, Experiment) and not _answers(results, experiment):
        return "trained", "results.yaml answers another evaluation than cfg.yaml asks for"
    return "finished", ""


def _last_line(path: Path) -> str:
    """Return what a process said last that ended before its session began."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _config_error(folder: RunFolder, record: Record | None) -> str:
    try:
        experiment = load_any(folder.config)
        if isinstance(experiment, Experiment):
            _require_trained_as_stated(experiment, record)
    except ValueError as error:
        return str(error)
    return ""


def _record(folder: RunFolder) -> Record | None:
    try:
        return load_record(folder.path)
    except CheckpointError:
        return None


def _results(folder: RunFolder, record: Record | None) -> dict[str, Any]:
    """Return results.yaml, empty where there is none of the finished training."""
    try:
        results = read(folder.results)
    except (ValueError, OSError):
        return {}
    return results if record and results.get("finished") and results.get("epoch") == record.kept_epoch else {}


def _estimated(folder: RunFolder) -> dict[str, Any]:
    """Return results.yaml of a Wasserstein estimate, empty where there is none."""
    try:
        results = read(folder.results)
    except (ValueError, OSError):
        return {}
    return results if "distance" in results and folder.model.exists() else {}


def _generated(folder: RunFolder) -> int:
    """Return the number of epochs that a generator was trained for."""
    record = generation.recorded(folder)
    return len(record.epochs) if record else 0


def _generator_epochs(folder: RunFolder) -> int:
    """Return the number of epochs that cfg.yaml asks of a generator, 0 where it asks for something else."""
    try:
        experiment = load_any(folder.config)
    except ValueError:
        return 0
    return experiment.training.epochs if isinstance(experiment, GanExperiment) else 0


def _accuracies(record: Record | None, results: dict[str, Any]) -> dict[str, Any]:
    """Return the accuracies of the test images, at the largest eps, else of the validation images, at the first; never
    one of each."""
    if "accuracy" in results:
        rows = results.get("adv_robustness")
        eps = max(rows) if isinstance(rows, dict) and rows else None
        row = rows[eps] if isinstance(rows, dict) and isinstance(rows.get(eps), dict) else {}
        at = {"certified": row["lb"], "eps": eps} if "lb" in row else {}
        return {"clean": results["accuracy"], "images": "test", **at}
    if not record or not record.best_epoch or record.best.clean is None:
        return {}
    eps, certified = next(iter(record.best.certified.items()), (None, None))
    return {"clean": record.best.clean, "images": "validation", "certified": certified, "eps": eps}


def _numbers(past: list[Session], name: str) -> list[float]:
    """Return a fact of all sessions that have it."""
    found = (session.facts.get(name) for session in past)
    return [float(value) for value in found if isinstance(value, int | float)]


def _device(record: Record | None) -> str:
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
