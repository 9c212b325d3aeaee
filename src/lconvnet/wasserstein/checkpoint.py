"""The state of a critic's training in one file, replaced atomically and read without executing anything."""

from pathlib import Path
from typing import Any

from lconvnet.training import CheckpointError
from lconvnet.training.checkpoint import read_state, require_resumable, require_same_settings, write_state

FORMAT = "lconvnet-critic-1"
PARTS = ("settings", "critic", "optimizer", "scheduler", "values")


def write(path: Path, state: dict[str, Any]) -> None:
    """Write a state of the `PARTS`. Raises `atomic.WriteError`; the previous file then still stands."""
    write_state(path, {"format": FORMAT, **state})


def read(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Read a state onto the CPU.

    Raises `CheckpointError` for a damaged or foreign file, and where it was written with other settings, or by
    an older version for a training that is not finished.
    """
    state = read_state(path, FORMAT, "a critic")
    if not all(part in state for part in PARTS):
        raise CheckpointError(f"{path}: damaged checkpoint; start in another folder")
    require_same_settings(path, state["settings"], settings)
    require_resumable(path, state["version"], finished=len(state["values"]) == settings["steps"])
    return state
