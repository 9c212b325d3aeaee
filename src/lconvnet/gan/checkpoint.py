"""All that a run needs to go on, in one file that is replaced atomically and read without executing anything."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lconvnet.gan.record import Record
from lconvnet.training import CheckpointError
from lconvnet.training.checkpoint import VERSION, read_state, write_state

FORMAT = "lconvnet-gan-checkpoint-1"
STATES = ("generator", "critic", "generator_optimizer", "critic_optimizer")


@dataclass
class Progress:
    """Where a run stands: `epoch` epochs are done, and `step` generator steps of the next one with their sums."""

    epoch: int = 0
    step: int = 0
    critic_loss: float = 0.0
    generator_loss: float = 0.0
    difference: float = 0.0


@dataclass(frozen=True)
class Checkpoint:
    """A run between two steps of the generator; `states` holds the `state_dict` of each of `STATES`."""

    progress: Progress
    record: Record
    states: dict[str, dict[str, Any]]
    version: int = VERSION


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically. Raises `atomic.WriteError`; the previous one then still stands."""
    record = json.dumps(checkpoint.record.to_dict(), allow_nan=False)
    states = {name: dict(state) for name, state in checkpoint.states.items()}
    write_state(path, {"format": FORMAT, "progress": asdict(checkpoint.progress), "record": record, **states})


def load(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU. Raises `CheckpointError` for everything that `save` did not write whole."""
    content = read_state(path, FORMAT, "a generator")
    try:
        return _parse(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged checkpoint ({error}); start in another folder") from error


def _parse(content: dict[str, Any]) -> Checkpoint:
    progress = Progress(**content["progress"])
    record = Record.from_dict(json.loads(content["record"]))
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in vars(progress).values()):
        raise ValueError(f"{progress}")
    if progress.epoch != len(record.epochs) or progress.step < 0:
        raise ValueError(f"{progress}, {len(record.epochs)} epochs recorded")
    return Checkpoint(progress, record, {name: dict(content[name]) for name in STATES}, content["version"])
