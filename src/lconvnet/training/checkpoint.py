"""All that a run needs to continue, in one file that is replaced atomically and read without running code."""

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from lconvnet import atomic
from lconvnet.training.record import CheckpointError, CriticEpoch, Record

FORMAT = "lconvnet-checkpoint"
VERSION = 3  # version 1: other learning rates, projections and frozen biases; version 2: one format per task
TASKS = {"classification": "a classifier", "gan": "a generator", "wasserstein": "a critic"}
OLDER = {FORMAT: "classification", "lconvnet-gan-checkpoint-1": "gan", "lconvnet-critic-1": "wasserstein"}
CYCLE = 100
"""Optimiser steps per epoch of a critic, as in the paper."""


@dataclass
class Progress:
    """Progress of a run: `epoch` epochs and `step` steps of the next one are done; `measures` come from those steps."""

    epoch: int = 0
    step: int = 0
    measures: dict[str, list[float]] = field(default_factory=dict)
    sums: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        self.sums = {name: _sum(values) for name, values in self.measures.items()}

    def add(self, measures: Mapping[str, float]) -> None:
        """Add the measures of one update."""
        for name, value in measures.items():
            self.measures.setdefault(name, []).append(value)
            self.sums[name] = self.sums.get(name, 0.0) + value

    def to_dict(self) -> dict[str, Any]:
        """The fields as a checkpoint stores them."""
        values = {name: torch.tensor(column, dtype=torch.float64) for name, column in self.measures.items()}
        return {"epoch": self.epoch, "step": self.step, "measures": values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Progress":
        """The inverse of `to_dict`; raises `ValueError`, `TypeError` or `KeyError` for anything else."""
        progress = cls(
            values["epoch"], values["step"], {name: list(map(float, v)) for name, v in values["measures"].items()}
        )
        numbers = [progress.epoch, progress.step, *progress.sums.values()]
        if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers) or min(numbers[:2]) < 0:
            raise ValueError(f"epoch={progress.epoch}, step={progress.step}, sums={progress.sums}")
        return progress


@dataclass(frozen=True)
class Checkpoint:
    """State of a run between two steps: `state_dict`s by name, and moving averages of the weights if it keeps any."""

    progress: Progress
    record: Record[Any]
    modules: dict[str, dict[str, Any]]
    optimizers: dict[str, dict[str, Any]]
    schedulers: dict[str, dict[str, Any]] = field(default_factory=dict)
    averages: dict[str, Tensor] = field(default_factory=dict)
    version: int = VERSION

    @property
    def kept(self) -> dict[str, dict[str, Any]]:
        """The states of the modules; averages, if there are any, replace the weights."""
        return {
            owner: {name: self.averages.get(f"{owner}.{name}", value) for name, value in state.items()}
            for owner, state in self.modules.items()
        }


def save(path: Path, checkpoint: Checkpoint, task: str) -> None:
    """Write a checkpoint atomically. Raises `atomic.WriteError`; the previous checkpoint then stays."""
    content = vars(checkpoint) | {
        "format": FORMAT,
        "task": task,
        "progress": checkpoint.progress.to_dict(),
        "record": json.dumps(checkpoint.record.to_dict(), allow_nan=False),
        "modules": {name: dict(state) for name, state in checkpoint.modules.items()},
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    atomic.write_bytes(path, buffer.getvalue())


def load(path: Path, task: str) -> Checkpoint:
    """Read a checkpoint of a task onto the CPU with torch's weights-only reader, which refuses pickled code.

    Raises `CheckpointError` for a file that `save` did not write completely, for another task, and for a newer version.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch passes on any error of its zip and pickle readers
        raise CheckpointError(
            f"{path}: not a checkpoint of {TASKS[task]}, or damaged, or holding pickled code, which is never run "
            f"({str(error).strip().partition(chr(10))[0]}); restore the file or start in another folder"
        ) from error
    if not isinstance(content, dict) or content.get("task", OLDER.get(str(content.get("format")))) != task:
        raise CheckpointError(f"{path}: a torch file, but not a checkpoint of {TASKS[task]}; start in another folder")
    version = content.setdefault("version", 1)
    if version not in range(1, VERSION + 1):
        raise CheckpointError(
            f"{path}: checkpoint version {version!r}, this package reads {VERSION}; "
            "continue with the release that wrote it"
        )
    try:
        return _parse(content if version == VERSION else _modernised(content, task))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged checkpoint ({error}); start in another folder") from error


def _parse(content: Mapping[str, Any]) -> Checkpoint:
    progress, record = Progress.from_dict(content["progress"]), Record.from_dict(json.loads(content["record"]))
    if progress.epoch != len(record.epochs):
        raise ValueError(f"{progress.epoch} epochs done, {len(record.epochs)} recorded")
    states = {name: dict(content[name]) for name in ("modules", "optimizers", "schedulers", "averages")}
    states["modules"] = {name: dict(state) for name, state in states["modules"].items()}
    return Checkpoint(progress, record, **states, version=content["version"])


def _modernised(content: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Convert a checkpoint of version 1 or 2 to the present form, as far as a finished run needs it."""
    modules = {"classification": ("model",), "gan": ("generator", "critic"), "wasserstein": ("critic",)}[task]
    older = {"version": content["version"], "modules": {name: content[name] for name in modules}}
    older |= {"optimizers": {}, "schedulers": {}, "averages": {}}
    if task != "wasserstein":
        place = {name: content["progress"][name] for name in ("epoch", "step")}
        return older | {"progress": place | {"measures": {}}, "record": content["record"]}
    values = [float(value) for value in content["values"]]
    steps = content["settings"]["steps"]
    whole = [values[start : start + CYCLE] for start in range(0, len(values), CYCLE)]
    done = whole if len(values) == steps else [part for part in whole if len(part) == CYCLE]
    rows = [CriticEpoch(n + 1, min((n + 1) * CYCLE, steps), tuple(part)) for n, part in enumerate(done)]
    record = Record(content["settings"], {}, tuple(rows), len(rows), row=CriticEpoch)
    place = {"epoch": len(rows), "step": len(values) - sum(map(len, done)), "measures": {}}
    return older | {"progress": place, "record": json.dumps(record.to_dict())}


def _sum(values: list[float]) -> float:
    """Add up the values one by one, as a run does (`sum` in Python 3.12 compensates for rounding)."""
    total = 0.0
    for value in values:
        total += value
    return total


def encode_best(model: nn.Module, epoch: int) -> bytes:
    """The weights of the best epoch (of the un-baked model) as safetensors."""
    return atomic.encode_safetensors(model.state_dict(), metadata=json.dumps({"epoch": epoch}))


def save_best(path: Path, model: nn.Module, epoch: int) -> None:
    """Write `encode_best` atomically."""
    atomic.write_bytes(path, encode_best(model, epoch))


def read_best(path: Path) -> tuple[dict[str, Tensor], int]:
    """Weights and 1-based epoch from a file of `encode_best`. Raises `CheckpointError` for any other file."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            epoch = int(json.loads((file.metadata() or {})["lconvnet"])["epoch"])
            return {name: file.get_tensor(name) for name in file.keys()}, epoch  # noqa: SIM118 (not a mapping)
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: no readable weights of a training run ({error}); train in this folder first, or restore the file"
        ) from error


def load_best(model: nn.Module, directory: str | Path) -> int:
    """Load the weights of a run's best epoch into `model` and return that epoch (1-based).

    Build `model` by the same call as for the run. Raises `CheckpointError` if the folder has no such weights or they
    belong to another architecture.
    """
    path = Path(directory) / "checkpoints" / "best.safetensors"
    weights, epoch = read_best(path)
    load_weights(model, weights, path)
    return epoch


def load_weights(model: nn.Module, weights: dict[str, Any], path: Path) -> None:
    """`model.load_state_dict`, with an error that names the file."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{path}: weights of another architecture ({reason[:300]}); build the model as it was trained"
        ) from error
