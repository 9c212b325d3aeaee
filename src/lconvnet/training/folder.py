"""The files of a training run. None of them is ever lost.

checkpoints/last.ckpt          everything a resume needs; one file, replaced atomically
checkpoints/best.safetensors   of a classifier: weights of the epoch that is best on the validation split
record.json, logs/metrics.csv  the deterministic record
logs/timing.jsonl, logs/tensorboard/   wall times and curves, which are not deterministic
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lconvnet import atomic


@dataclass(frozen=True)
class TrainingFolder:
    """The paths of a training below `path`."""

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
        """Raise `ValueError` if the folder holds files of a run: a new run must not replace them."""
        if is_started(self.path):
            raise ValueError(
                f"directory={str(self.path)!r}: holds a run already, which is never overwritten; "
                "continue it with resume=True (on the command line --resume) or choose another folder"
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Create the folders, and keep other processes from training here until the block ends or the process dies."""
        busy = f"directory={str(self.path)!r}: another process is training in this folder; wait, or choose another"
        try:
            self.last.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise atomic.WriteError(
                f"directory={str(self.path)!r}: cannot be used as a run folder ({error.strerror}); "
                "choose a folder that you may write to"
            ) from error
        with atomic.locked(self.last.with_name(".lock"), busy):
            atomic.sweep(self.last)
            yield

    def write(self, place: str, data: bytes) -> None:
        """Write the file at `place` atomically, and remove the partial file of a killed writer."""
        path = self.path / place
        atomic.sweep(path)
        atomic.write_bytes(path, data)

    def log_timing(self, values: dict[str, Any]) -> None:
        """Append one line to logs/timing.jsonl."""
        atomic.append_text(self.timing, json.dumps(values) + "\n")


def is_started(directory: str | Path) -> bool:
    """Whether this folder holds files of a training run; configuration and foreign files do not count."""
    folder = TrainingFolder(Path(directory))
    return any(path.exists() for path in (folder.last, folder.best, folder.record, folder.metrics))
