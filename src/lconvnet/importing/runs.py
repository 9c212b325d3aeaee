"""Runs of the original LConvNet (`cfg.yaml` beside `checkpoints/NET.pth`) as run folders of this package."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lconvnet import atomic, saving
from lconvnet.baking import bake
from lconvnet.bounds import Bound, lipschitz_bound
from lconvnet.experiments.config import Experiment
from lconvnet.experiments.loading import AnyExperiment, merge, naming, parse_any
from lconvnet.experiments.original import is_original, network
from lconvnet.experiments.reading import read
from lconvnet.experiments.run_folder import RunFolder
from lconvnet.experiments.tasks import task_of
from lconvnet.experiments.trained_on import require_open
from lconvnet.importing import original, pickles
from lconvnet.importing.baselines import adopt_baseline, is_baseline, read_baseline
from lconvnet.training import CheckpointError, Record, load_record
from lconvnet.training.checkpoint import save_best
from lconvnet.training.settings import versions
from lconvnet.visible import is_visible


@dataclass(frozen=True)
class Imported:
    """The result of an import: the baked network with its bound, and where it is saved.

    `unfinished` is the largest |1 - s| over the singular values s that the original's Björck steps left. If it is not
    small, the original's outputs depend on the random start of its power iteration, and ours agree only up to that.
    """

    network: nn.Module
    bound: Bound
    path: Path
    epoch: int
    unfinished: float


def import_run(old: str | Path, new: str | Path) -> Imported:
    """Write the original's run in the folder `old` (or its cfg.yaml) as the run folder `new`; nothing in it is run.

    `new` gets cfg.yaml in our grammar, checkpoints/best.safetensors, record.json, which names the file of the weights,
    and model.safetensors (the baked network with its bound). The same call continues an interrupted import. Raises
    ValueError for everything that the user can correct.
    """
    source, folder = Source.read(Path(old)), RunFolder(Path(new))
    if folder.path.resolve() == source.folder.resolve():
        raise ValueError(f"{new} is the folder to import from; name another one for the import")
    if _is_taken(folder) and not _is_import(folder, source.record):
        raise ValueError(f"{new} already holds a run, which is never overwritten; name another folder for the import")
    bound = source.bound()
    unfinished = original.unfinished(source.model, source.weights) if source.weights else 0.0
    folder.keep_config(source.experiment)
    source.write(folder, bound)
    return Imported(source.network, bound, folder.model, source.origin["epoch"], unfinished)


def adopt(path: Path, overrides: Sequence[str] = ()) -> None:
    """If `path` names a run of the original or a baseline without files of ours, add what an evaluation needs.

    Adds checkpoints/best.safetensors, record.json and model.safetensors beside its files, which are not changed. Raises
    ValueError, before anything is added, if the evaluation could not use the `overrides`.
    """
    if not path.exists():
        return
    folder = RunFolder(path if path.is_dir() else path.parent)
    if path.is_file() and not folder.is_configured and _checkpoints(folder.path):
        raise ValueError(f"{path} is not named cfg.yaml, as it must be in place; or lconvnet import {path} NEW")
    if not folder.config.is_file() or (_is_recorded(folder) and not _is_half_done(folder)):
        return
    values = read(folder.config)
    with naming(folder.config):
        merged = merge(values)
    if not is_original(values) or not _checkpoints(folder.path):
        adopt_baseline(folder, merged, overrides)
    elif not folder.model.exists():
        require_open(folder, overrides)
        parse_any(values, overrides)
        _adopt(folder)


def _adopt(folder: RunFolder) -> None:
    source = Source.read(folder.path)
    if unsampled := task_of(source.experiment).unsampled:
        raise ValueError(
            f"{folder.path} holds weights of the original that {unsampled}; lconvnet import {folder.path} NEW, and use "
            f"its model.safetensors, or train anew: lconvnet train {folder.config} --out NEW"
        )
    try:
        source.write(folder, source.bound())
    except atomic.WriteError as error:
        raise atomic.WriteError(f"{error}; or evaluate a copy: lconvnet import {folder.path} NEW") from error


def _is_taken(folder: RunFolder) -> bool:
    """Return whether a run has left something. Weights alone are an unfinished import."""
    return _is_recorded(folder) or folder.model.exists()


def _is_recorded(folder: RunFolder) -> bool:
    return any((folder.path / name).exists() for name in ("record.json", "checkpoints/last.ckpt"))


def _is_half_done(folder: RunFolder) -> bool:
    """Return whether an import stopped between its record and its network."""
    with contextlib.suppress(CheckpointError):
        return load_record(folder.path).is_baked and not folder.model.exists()
    return False


def _is_import(folder: RunFolder, record: Record) -> bool:
    with contextlib.suppress(CheckpointError):
        return load_record(folder.path).settings == record.settings
    return False


@dataclass(frozen=True)
class Source:
    """A run of the original: its description, its weights in our network, and their origin.

    `weights` are those of the original's own methods, in its coordinates; they are empty for a baseline.
    """

    folder: Path
    experiment: AnyExperiment
    model: nn.Sequential
    network: nn.Module
    shape: tuple[int, int, int]
    origin: dict[str, Any]
    weights: Mapping[str, Tensor]

    @classmethod
    def read(cls, path: Path) -> Source:
        """Read the configuration and the checkpoint of a run folder."""
        if not path.exists():
            raise ValueError(f"{path} does not exist; name the folder of a run, or the cfg.yaml in it")
        folder, config = (path, path / "cfg.yaml") if path.is_dir() else (path.parent, path)
        values = read(config)
        if not is_original(values):
            raise ValueError(f"{config} is not in the original's grammar, which begins with <type>")
        with naming(config):
            experiment = parse_any(values)
        shape, outputs = network(values)
        if is_baseline(experiment):
            model, origin = read_baseline(folder, cast(Experiment, experiment))
            return cls(folder, experiment, model, bake(model), shape, {**origin, "baked": True}, {})
        model = task_of(experiment).network(experiment, shape, outputs)
        checkpoint = _checkpoint(folder, values["trainer"]["net"]["<type>"])
        epoch, baked, weights = _load(model, checkpoint)
        digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        origin = {"file": checkpoint.name, "sha256": digest, "epoch": epoch, "baked": True}
        return cls(folder, experiment, model, baked, shape, origin, weights)

    @property
    def record(self) -> Record:
        """The record. It lists no epochs, because the original's file states only the number of the last."""
        facts = task_of(self.experiment).imported_settings(self.experiment)
        stated = {"settings": facts, "imported": self.origin}
        return Record(json.loads(json.dumps(stated)), versions(torch.device("cpu")), finished=True)

    def bound(self) -> Bound:
        """Return the bound of the baked network."""
        return lipschitz_bound(self.network, input_shape=self.shape, diagnose=False)

    def write(self, folder: RunFolder, bound: Bound) -> None:
        """Write weights, record and baked network, in an order that reveals an interrupted import."""
        notes = {"imported": self.origin["file"], "epoch": self.origin["epoch"]}
        save_best(folder.path / "checkpoints" / "best.safetensors", self.model, self.origin["epoch"])
        atomic.write_json(folder.path / "record.json", self.record.to_dict())
        folder.write_model(saving.encode(self.network, bound=bound, input_shape=self.shape, notes=notes))


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "checkpoints").glob("*.pth") if is_visible(path.name))


def _checkpoint(folder: Path, network: str) -> Path:
    """Return the only checkpoint, or the one that is named after the network, as the original does."""
    found = _checkpoints(folder)
    named = [path for path in found if path.stem == network] or found
    if len(named) != 1:
        names = ", ".join(path.name for path in found) or "no .pth file"
        raise ValueError(f"{folder / 'checkpoints'} holds {names}; the weights are expected in {network}.pth")
    return named[0]


def _load(model: nn.Sequential, path: Path) -> tuple[int, nn.Module, Mapping[str, Tensor]]:
    """Put the weights of a checkpoint into the model; return their epoch, the baked network and the weights."""
    content = pickles.read(path)
    trainer = content.get("trainer") if isinstance(content, dict) else None
    if not isinstance(trainer, dict) or "net" not in trainer:
        raise ValueError(f"{path} has no weights under trainer.net; it is not a checkpoint of the original LConvNet")
    epoch = content.get("epoch", 0)
    if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
        raise ValueError(f"{path} names the epoch {epoch!r}; it should be a whole number")
    try:
        weights = pickles.state_dict(trainer["net"], path)
        original.load(model, weights)
        return epoch, original.baked(model, weights), weights
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
