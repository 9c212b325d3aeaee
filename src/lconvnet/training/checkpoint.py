"""Everything a run needs to go on, in one file that is replaced atomically and read without executing anything."""

import io
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from lconvnet import atomic
from lconvnet.training.record import Record
from lconvnet.training.settings import differences, identity

FORMAT = "lconvnet-checkpoint"
VERSION = 2  # in 1 equal settings meant other learning rates, projections and frozen biases
LONGER = (
    "the learning rates of a run are made for its length: to train for longer, start a new run from its weights in "
    "another folder, after load_best(model, RUN), on the command line lconvnet train CFG --from RUN --out NEW"
)


class CheckpointError(ValueError):
    """A file of a run cannot be used: missing, truncated, foreign, with pickled code, or of other settings."""


@dataclass
class Progress:
    """Where a run stands: `epoch` epochs are done, and `step` steps of the next one with their running sums."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """State of a run between two optimiser steps; the last three are `state_dict`s."""

    progress: Progress
    record: Record
    model: dict[str, Any]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any] = field(default_factory=dict)


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically. Raises `atomic.WriteError`; the previous one then still stands."""
    content = {
        "format": FORMAT,
        "progress": asdict(checkpoint.progress),
        "record": json.dumps(checkpoint.record.to_dict(), allow_nan=False),
        "model": dict(checkpoint.model),
        "optimizer": checkpoint.optimizer,
        "scheduler": checkpoint.scheduler,
    }
    write_state(path, content)


def write_state(path: Path, content: dict[str, Any]) -> None:
    """Write what `read_state` reads, atomically. Raises `atomic.WriteError`; the previous file then still stands."""
    buffer = io.BytesIO()
    torch.save({"version": VERSION, **content}, buffer)
    atomic.write_bytes(path, buffer.getvalue())


def read_state(path: Path, form: str, what: str = "this package") -> dict[str, Any]:
    """Read the dictionary with this "format" onto the CPU by torch's weights-only reader, which refuses pickled code.

    Raises `CheckpointError` for any other file, as no checkpoint of `what`, and for a newer version.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its zip and pickle readers stumble over
        raise CheckpointError(
            f"{path}: not a checkpoint of {what}, or damaged, or holding pickled code, which is never run "
            f"({str(error).strip().partition(chr(10))[0]}); restore the file or start in another folder"
        ) from error
    if not isinstance(content, dict) or content.get("format") != form:
        raise CheckpointError(f"{path}: a torch file, but no checkpoint of {what}; start in another folder")
    if content.setdefault("version", 1) not in (1, VERSION):
        raise CheckpointError(
            f"{path}: checkpoint version {content['version']!r}, this package reads {VERSION}; "
            "continue with the release that wrote it"
        )
    return content


def require_resumable(path: Path, version: int, *, finished: bool) -> None:
    """Raise `CheckpointError` where training would go on otherwise than it began; what is finished trains no more."""
    if version != VERSION and not finished:
        raise CheckpointError(
            f"{path}: is of an unfinished run of an older release, where the same settings meant other learning rates, "
            "projections or frozen biases; finish it with that release, or start anew in another folder"
        )


def require_same_settings(path: Path, saved: Any, asked: Any) -> None:
    """Raise `CheckpointError` where the checkpoint at `path` was written with other settings than are asked for.

    A resume need not say again where the first weights came from.
    """
    known = saved if "from" in asked else {name: value for name, value in saved.items() if name != "from"}
    if changed := list(differences(identity(known), identity(asked))):
        longer = any(line.startswith(("epochs: ", "steps: ")) for line in changed)
        raise CheckpointError(
            f"{path}: was written with other settings ({'; '.join(changed[:5])}); "
            f"{LONGER if longer else 'resume with those, or train in another folder'}"
        )


def load(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU, to go on from.

    Raises `CheckpointError` for everything that `save` did not write whole, and for an unfinished run of an older
    version.
    """
    content = read_state(path, FORMAT)
    saved = _parse(path, content)
    require_resumable(path, content["version"], finished=saved.record.finished)
    return saved


def _parse(path: Path, content: dict[str, Any]) -> Checkpoint:
    try:
        progress = Progress(**content["progress"])
        record = Record.from_dict(json.loads(content["record"]))
        if not all(isinstance(value, int | float) and value >= 0 for value in vars(progress).values()):
            raise ValueError(f"progress={progress}")
        if progress.epoch != len(record.epochs):
            raise ValueError(f"{progress.epoch} epochs done, {len(record.epochs)} recorded")
        states = [dict(content[name]) for name in ("model", "optimizer", "scheduler")]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged checkpoint ({error}); start in another folder") from error
    return Checkpoint(progress, record, *states)


def save_best(path: Path, model: nn.Module, epoch: int) -> None:
    """Write the weights of the best epoch (of the un-baked model) as safetensors, atomically."""
    atomic.write_safetensors(path, model.state_dict(), metadata=json.dumps({"epoch": epoch}))


def read_best(path: Path) -> tuple[dict[str, torch.Tensor], int]:
    """Weights and 1-based epoch written by `save_best`. Raises `CheckpointError` for any other file."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            epoch = int(json.loads((file.metadata() or {})["lconvnet"])["epoch"])
            return {name: file.get_tensor(name) for name in file.keys()}, epoch  # noqa: SIM118 (not a mapping)
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: no readable weights of a training run ({error}); train in this folder first, or restore the file"
        ) from error


def load_best(model: nn.Module, directory: str | Path) -> int:
    """Put the weights of a run's best epoch into `model` and return that epoch (1-based).

    `model` must be built by the call that the run was trained with. Raises `CheckpointError` if the folder has no such
    weights or they belong to another architecture.
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
