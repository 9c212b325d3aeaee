"""From run folders to picture files: what `lconvnet plot` does."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lconvnet import atomic, attacks, saving
from lconvnet.bounds import lipschitz_bound
from lconvnet.certify import certify
from lconvnet.data import batch
from lconvnet.experiments.crosscheck import Certified, check
from lconvnet.experiments.execute import own_images, trained_experiment
from lconvnet.experiments.run_folder import RunFolder
from lconvnet.extras import require
from lconvnet.ops.rounding import rounded_down, rounded_up
from lconvnet.report.pictures import Examples, accuracy_curves, adversarial_grid, singular_value_histograms
from lconvnet.training.evaluation import singular_values


def draw(folders: Sequence[RunFolder], out: Path, *, images: int, overrides: Sequence[str] = ()) -> list[Path]:
    """Write accuracy.png of all runs, and of each run its singular values and `images` test images (0: none).

    Raises ValueError for a run that was not evaluated, or whose images cannot be read.
    """
    titles = _titles([folder.path for folder in folders])
    written = [_write(out / "accuracy.png", accuracy_curves(list(map(read_examples, folders, titles))))]
    for folder, title in zip(folders, titles, strict=True):
        network, shape = _network(folder)
        stem = title.replace("/", "-")
        values = singular_value_histograms(singular_values(network, shape))
        written.append(_write(out / f"{stem}-singular-values.png", values))
        if images:
            written.append(_write(out / f"{stem}-images.png", _nearest(folder, network, images, overrides)))
    return written


def read_examples(folder: RunFolder, title: str) -> Examples:
    """Return the rows of a run's examples.parquet."""
    if not folder.examples.exists():
        raise ValueError(
            f"{folder.path} was not evaluated (no {folder.examples.name}): lconvnet evaluate {folder.path}"
        )
    try:
        table = require("pyarrow.parquet", "data").read_table(folder.examples)
        columns = {name: table[name].to_numpy() for name in table.column_names}
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise ValueError(f"{folder.examples} cannot be read ({error}); evaluate the run again") from error
    lacking = [name for name in ("label", "prediction", "radius") if name not in columns]
    if lacking:
        raise ValueError(f"{folder.examples} has no column {lacking[0]!r}; evaluate the run again")
    return Examples(title, columns)


def _network(folder: RunFolder) -> tuple[nn.Module, tuple[int, int, int]]:
    description = saving.describe(folder.model)
    if description.input_shape is None or len(description.input_shape) != 3:
        raise ValueError(f"{folder.model} does not say the shape of its images; evaluate the run again")
    channels, height, width = description.input_shape
    return saving.load(folder.model), (channels, height, width)


def _nearest(folder: RunFolder, network: nn.Module, count: int, overrides: Sequence[str]) -> Any:
    """The first rightly answered test images with their radius, and the nearer of what DDN and DeepFool find."""
    experiment = trained_experiment(folder, overrides)
    splits = own_images(experiment, folder)
    images, labels = batch(splits.test, range(min(len(splits.test), 10 * count)))
    right = (network(images).argmax(dim=1) == labels).nonzero().flatten()[:count]
    if not len(right):
        raise ValueError(f"{folder.path} answers none of the first test images rightly: there is nothing to draw")
    images, labels = images[right], labels[right]
    bound = lipschitz_bound(network, input_shape=splits.image_shape)
    found = certify(network, images, bound=bound)
    known = Certified(right, images, labels, found.margin, found.radius)
    results = {"ddn": attacks.ddn(network, images, labels), "deepfool": attacks.deepfool(network, images, labels)}
    for name, result in results.items():
        check(network, bound, found.level, known, result, name=name, evidence=folder.evidence)
    adversarial, norm = _shorter(*results.values())
    answers = network(adversarial.nan_to_num()).argmax(dim=1)
    names = splits.class_names
    captions = [
        f"{names[label]}\ncertified {rounded_down(float(radius), 2)}"
        for label, radius in zip(labels, found.radius, strict=True)
    ]
    wrong = [
        f"{names[answer]}\nat {rounded_up(float(length), 2)}" if length < math.inf else "none found"
        for answer, length in zip(answers, norm, strict=True)
    ]
    return adversarial_grid(images, adversarial, captions, wrong)


def _shorter(*results: attacks.AttackResult) -> tuple[Tensor, Tensor]:
    """The nearest success of every image and its norm; NaN and infinity where there is none."""
    norms = torch.stack([torch.where(result.success, result.norm, math.inf) for result in results])
    best, which = norms.min(dim=0)
    adversarial = torch.stack([result.adversarial for result in results])[which, torch.arange(len(which))]
    return torch.where((best < math.inf)[:, None, None, None], adversarial, math.nan), best


def _titles(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        titles = ["/".join(part[-depth:]) for part in parts]
        if len(set(titles)) == len(titles):
            break
    return titles


def _write(path: Path, figure: Any) -> Path:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    atomic.write_bytes(path, buffer.getvalue())
    return path
