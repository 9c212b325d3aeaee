"""Published baselines: a run folder with a cfg.yaml of ours and the weights as their authors published them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lconvnet import atomic
from lconvnet.experiments.config import Experiment, settings
from lconvnet.experiments.loading import parse
from lconvnet.experiments.run_folder import RunFolder
from lconvnet.experiments.trained_on import require_open
from lconvnet.importing import kw, qw
from lconvnet.training import Record
from lconvnet.training.checkpoint import save_best
from lconvnet.training.settings import versions
from lconvnet.visible import is_visible

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


def is_baseline(experiment: object) -> bool:
    """Whether an experiment is of a network that others published weights of."""
    return isinstance(experiment, Experiment) and experiment.model.architecture in FORMATS


def adopt_baseline(folder: RunFolder, values: Mapping[str, object], overrides: Sequence[str]) -> None:
    """Where the folder has a baseline's cfg.yaml and its published weights, add what an evaluation needs.

    Adds checkpoints/best.safetensors and record.json, which names the file and its SHA-256; the file stays as it is.
    Nothing is added where the evaluation could not have the `overrides` (ValueError).
    """
    model = values.get("model")
    architecture = str(model.get("architecture")) if isinstance(model, Mapping) else ""
    if not published(folder.path, architecture):
        return
    require_open(folder, overrides)
    parse(values, overrides)
    experiment = parse(values)
    network, origin = read_baseline(folder.path, experiment)
    facts = json.loads(json.dumps({"settings": settings(experiment), "imported": origin}))
    save_best(folder.path / "checkpoints" / "best.safetensors", network, origin["epoch"])
    record = Record(facts, versions(torch.device("cpu")), finished=True)
    atomic.write_json(folder.path / "record.json", record.to_dict())


def published(folder: Path, architecture: str) -> list[Path]:
    """The files with an architecture's weights in a run's folder or its checkpoints/; none where it has no format."""
    pattern, _ = FORMATS.get(architecture, ("", None))
    places = (folder, folder / "checkpoints") if pattern else ()
    return [path for place in places for path in sorted(place.glob(pattern)) if is_visible(path.name)]


def read_baseline(folder: Path, experiment: Experiment) -> tuple[nn.Sequential, dict[str, Any]]:
    """Return the network of a baseline with the only weights that its folder has, and where they came from."""
    architecture = experiment.model.architecture
    pattern, load = FORMATS[architecture]
    found = published(folder, architecture)
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or f"no {pattern} file"
        raise ValueError(f"{folder} holds {names}; leave the weights to evaluate only")
    if experiment.data.name not in IMAGES:
        raise ValueError(f"data.name is {experiment.data.name!r}; baselines are published for {', '.join(IMAGES)}")
    network = experiment.model.build(IMAGES[experiment.data.name], CLASSES, seed=experiment.seed)
    epoch = load(network, architecture, found[0])
    digest = hashlib.sha256(found[0].read_bytes()).hexdigest()
    return network, {"file": found[0].name, "sha256": digest, "epoch": epoch}
