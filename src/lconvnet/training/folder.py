"""The files of a training run, and the rule that none of them is ever lost.

checkpoints/last.ckpt          everything a resume needs; one file, replaced atomically
checkpoints/best.safetensors   weights of the epoch that is best on the validation split
record.json, logs/metrics.csv  the deterministic record
logs/timing.jsonl, logs/tensorboard/   wall times and curves, which are not
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lconvnet import atomic, locking
from lconvnet.training.checkpoint import CheckpointError
from lconvnet.training.interruption import Interrupted
from lconvnet.training.record import Record


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run below `path`."""

    path: Path

    @property
    def last(self) -> Path:
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def best(self) -> Path:
        return self.path / "checkpoints" / "best.safetensors"

    @property
    def record(self) -> Path:
        return self.path / "record.json"

    @property
    def metrics(self) -> Path:
        return self.path / "logs" / "metrics.csv"

    @property
    def timing(self) -> Path:
        return self.path / "logs" / "timing.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "logs" / "tensorboard"

    def refuse_if_started(self) -> None:
        """Raise `ValueError` if a run has left something here: a new run must not replace it."""
        if is_started(self.path):
            raise ValueError(
                f"directory={str(self.path)!r}: holds a run already, which is never overwritten; "
                "continue it with resume=True (on the command line --resume) or choose another folder"
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Create the folders and keep other processes from training here until the block ends (or the process dies)."""
        busy = f"directory={str(self.path)!r}: another process is training in this folder; wait, or choose another"
        try:
            self.last.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise atomic.WriteError(
                f"directory={str(self.path)!r}: cannot be used as a run folder ({error.strerror}); "
                "choose a folder that you may write to"
            ) from error
        with locking.locked(self.last.with_name(".lock"), busy):
            for path in (self.last, self.best, self.record, self.metrics):
                atomic.sweep(path)
            yield

    def write_record(self, record: Record) -> None:
        """Write record.json and logs/metrics.csv."""
        atomic.write_json(self.record, record.to_dict())
        atomic.write_text(self.metrics, record.to_csv())

    def log_timing(self, values: dict[str, Any]) -> None:
        """Append one line to logs/timing.jsonl."""
        atomic.append_text(self.timing, json.dumps(values) + "\n")


def interrupted(by: str, done: str, folder: RunFolder | None) -> Interrupted:
    """The error for a training that was asked to stop, with the way to go on."""
    resumable = "resume=True, on the command line --resume"
    way_out = f"continue {folder.path} with {resumable}" if folder else "nothing is kept, directory was None"
    return Interrupted(f"stopped by {by} after {done}; {way_out}")


def is_started(directory: str | Path) -> bool:
    """Whether a training run has left something in this folder; configuration and foreign files do not count."""
    folder = RunFolder(Path(directory))
    return any(path.exists() for path in (folder.last, folder.best, folder.record, folder.metrics))


def load_record(directory: str | Path) -> Record:
    """The record of a run folder. Raises `CheckpointError` if record.json is missing, damaged or of another format."""
    path = RunFolder(Path(directory)).record
    try:
        return Record.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: not a readable training record ({error}); train with this folder first"
        ) from error
