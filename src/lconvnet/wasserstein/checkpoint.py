"""The state of a critic's training in one file, replaced atomically and read without executing anything."""

import io
from pathlib import Path
from typing import Any

import torch

from lconvnet import atomic
from lconvnet.training import CheckpointError
from lconvnet.training.settings import differences

FORMAT = "lconvnet-critic-1"
PARTS = ("settings", "critic", "optimizer", "scheduler", "values")


def write(path: Path, state: dict[str, Any]) -> None:
    """Write a state of the `PARTS`. Raises `atomic.WriteError`; the previous file then still stands."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    atomic.write_bytes(path, buffer.getvalue())


def read(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Read a state onto the CPU, without unpickling code.

    Raises `CheckpointError` for a damaged or foreign file, and where it was written with other settings.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its zip and pickle readers stumble over
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"{path}: no critic's checkpoint, or damaged, or holding pickled code, which is never run ({reason}); "
            "restore the file or start in another folder"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT or not all(part in state for part in PARTS):
        raise CheckpointError(f"{path}: no checkpoint of a critic of this release; start in another folder")
    changed = list(differences(state["settings"], settings))
    if changed:
        raise CheckpointError(
            f"{path}: was written with other settings ({'; '.join(changed[:5])}); "
            "resume with those, or use another folder"
        )
    return state
