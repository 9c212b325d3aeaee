"""Published baselines: a run folder with a cfg.yaml of ours and the weights as their authors published them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from lconvnet import atomic
from lconvnet.experiments import build
from lconvnet.experiments.config import Experiment
from lconvnet.experiments.execute import require_open
from lconvnet.experiments.loading import parse
from lconvnet.experiments.run_folder import RunFolder
from lconvnet.importing import kw, qw
from lconvnet.training import Record
from lconvnet.training.checkpoint import save_best
from lconvnet.training.settings import versions

IMAGES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
CLASSES = 10
Loader = Callable[[nn.Sequential, str, Path], int]
FORMATS: Mapping[str, tuple[str, Loader]] = {
    "kw-small": ("*.pth", kw.load),
    "kw-large": ("*.pth", kw.load),
    "kw-resnet": ("*.pth", kw.load),
    "qw": ("*.index", qw.load),
}
"""Architecture -> the files of its authors, and what reads them."""


def adopt_baseline(folder: RunFolder, values: Mapping[str, object], overrides: Sequence[str]) -> None:
    """Where the folder has a baseline's cfg.yaml and its published weights, add what an evaluation needs.

    Adds checkpoints/best.safetensors and record.json, which names the file and its SHA-256; the file stays as it is.
    Nothing is added where the evaluation could not have the `overrides` (ValueError).
    """
    model = values.get("model")
    pattern, load = FORMATS.get(str(model.get("architecture")) if isinstance(model, Mapping) else "", ("", None))
    found = sorted(folder.path.glob(pattern)) if pattern else []
    if load is None or not found:
        return
    if len(found) > 1:
        raise ValueError(f"{folder.path} holds {', '.join(p.name for p in found)}; leave the weights to evaluate only")
    require_open(folder, overrides)
    parse(values, overrides)
    _adopt(folder, parse(values), found[0], load)


def _adopt(folder: RunFolder, experiment: Experiment, path: Path, load: Loader) -> None:
    if experiment.data.name not in IMAGES:
        raise ValueError(f"data.name is {experiment.data.name!r}; baselines are published for {', '.join(IMAGES)}")
    network = build.build_model(experiment.model, IMAGES[experiment.data.name], CLASSES, seed=experiment.seed)
    epoch = load(network, experiment.model.architecture, path)
    origin = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "epoch": epoch}
    facts = json.loads(json.dumps({"settings": build.settings(experiment), "imported": origin}))
    save_best(folder.path / "checkpoints" / "best.safetensors", network, epoch)
    record = Record(facts, versions(torch.device("cpu")), finished=True)
    atomic.write_json(folder.path / "record.json", record.to_dict())
