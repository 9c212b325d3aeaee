"""A new run that starts from the weights of another: what `lconvnet train CFG --from RUN --out NEW` does first.

The initial weights matter at step 0 only. A run that has begun goes on from its own checkpoint, and needs the other run
no more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lconvnet import atomic
from lconvnet.experiments.loading import AnyExperiment, load_any, parse_any
from lconvnet.experiments.run_folder import RunFolder, find_run, recorded_settings
from lconvnet.training import is_first_process, is_started
from lconvnet.training.checkpoint import load, load_weights, read_best
from lconvnet.training.settings import describe_model, differences

Weights = Mapping[str, Mapping[str, Any]]
NAMES = {"classification": "a classifier", "wasserstein": "a Wasserstein estimate", "gan": "a generator"}


def begin_from(
    source: Path, folder: RunFolder, experiment: AnyExperiment, networks: Mapping[str, nn.Module]
) -> dict[str, Any]:
    """Put the weights of the run `source` into networks, by the section that describes each; return facts on them.

    Of a classifier they are those of the best epoch, of others the last ones, before any baking. Where the run in
    `folder` has begun, nothing is read. Raises ValueError if no such run exists, or its networks are others.
    """
    if is_started(folder.path):
        return {"run": str(source)}
    run = find_run(source)
    settings = recorded_settings(run)
    if settings.get("imported", {}).get("baked"):
        raise ValueError(f"{run.path} holds an imported network in its baked form, from which no training can start")
    _require_same_networks(run, settings, experiment, networks)
    path, weights, facts = _read(run, experiment)
    for section, network in networks.items():
        if other := _shapes(weights[section], network):
            raise ValueError(
                f"{run.path} holds weights of other shapes ({other[0]}); --from takes a run of this network"
            )
        load_weights(network, dict(weights[section]), path)
    if is_first_process():
        atomic.write_json(_intent(folder), {"run": str(source)})  # for a kill before the first checkpoint
    return {"run": str(source), "file": path.name, **facts, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def require_source(source: Path | None, folder: RunFolder) -> None:
    """Raise ValueError, before anything is written, if no run exists to start from, or if a run that was to start from
    another is begun without it."""
    if is_started(folder.path):
        return
    if source:
        find_run(source)
    elif _intent(folder).exists():
        raise ValueError(
            f"{folder.path} was stopped before its first checkpoint and was to start from the weights of another run; "
            f"name it again with --from ({_intent(folder)} says which), or choose another folder with --out"
        )


def _intent(folder: RunFolder) -> Path:
    return folder.path / "checkpoints" / "from.json"


def _read(run: RunFolder, experiment: AnyExperiment) -> tuple[Path, Weights, dict[str, Any]]:
    if experiment.task == "classification":
        weights, epoch = read_best(run.best)
        return run.best, {"model": weights}, {"epoch": epoch}
    saved = load(run.last, experiment.task)
    return run.last, saved.kept, {"epoch": saved.progress.epoch} if experiment.task == "gan" else {}


def _require_same_networks(
    run: RunFolder, settings: Mapping[str, Any], experiment: AnyExperiment, networks: Mapping[str, nn.Module]
) -> None:
    """Raise ValueError for another task, and for another network, by the first key that differs."""
    stated = _stated(run, settings)
    if stated is None:
        _require_same_architecture(run, settings, networks)
        return
    if stated.task != experiment.task:
        raise ValueError(
            f"{run.path} is a run of {NAMES[stated.task]}, not of {NAMES[experiment.task]}; --from takes a run of the "
            "same task"
        )
    old, new = (one.model_dump(mode="json", include=set(networks)) for one in (stated, experiment))
    if other := list(differences(old, new)):
        raise ValueError(f"{run.path} has another network ({other[0]}); --from takes a run of this network")


def _require_same_architecture(run: RunFolder, settings: Mapping[str, Any], networks: Mapping[str, nn.Module]) -> None:
    """The same of a run that was trained from Python, of which only a fingerprint is known."""
    for section, network in networks.items():
        recorded = (settings.get(section) or {}).get("architecture")
        if recorded != describe_model(network)["architecture"]:
            raise ValueError(
                f"{run.path} was trained from Python with another {section}, or says nothing of it; "
                "load its weights into yours with lconvnet.training.load_best"
            )


def _stated(run: RunFolder, settings: Mapping[str, Any]) -> AnyExperiment | None:
    """The experiment a run was trained with; None where it was trained from Python."""
    recorded = settings.get("settings") or {}
    if "model" in recorded:
        return parse_any(recorded)
    return load_any(run.config) if run.is_configured and not recorded else None


def _shapes(weights: Mapping[str, Any], network: nn.Module) -> list[str]:
    old, new = ({name: list(value.shape) for name, value in state.items()} for state in (weights, network.state_dict()))
    return list(differences(old, new))
