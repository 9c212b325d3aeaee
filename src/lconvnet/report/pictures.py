"""Pictures of runs: accuracy by radius, singular values of every layer, images beside their nearest adversary.

Every figure is a matplotlib `Figure` (extra `plots`) and a pure function of numbers. Only `draw` reads run folders and
writes files.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lconvnet import atomic, attacks, saving
from lconvnet.bounds import lipschitz_bound
from lconvnet.certify import certify
from lconvnet.data import batch
from lconvnet.experiments.robustness import Certified, check
from lconvnet.experiments.run_folder import RunFolder
from lconvnet.experiments.trained_on import own_images, trained_experiment
from lconvnet.extras import require
from lconvnet.ops.rounding import rounded_down, rounded_up
from lconvnet.training.evaluation import singular_values

POINTS = 201
BINS = 60


@dataclass(frozen=True)
class Examples:
    """A run's examples.parquet as a pandas frame, one row per test image, and the run's name in the legend."""

    title: str
    frame: Any

    @property
    def correct(self) -> Any:
        """Which images are answered rightly."""
        return self.frame["label"] == self.frame["prediction"]

    def certified(self, eps: float) -> float:
        """Fraction that is correct with a radius above eps."""
        return float((self.correct & (self.frame["radius"] > eps)).mean())

    def attacks(self) -> list[str]:
        """Attacks by the shortest perturbation as `NAME`, attacks within a ball as `NAME@EPS`, in l2."""
        names = [name.removesuffix(" norm") for name in self.frame.columns if name.endswith(" norm")]
        return [name for name in names if "-linf" not in name]

    def part(self, name: str) -> str:
        """A note with the number of attacked images, if not all were attacked: then their accuracy is not that of
        all."""
        given = self.frame[f"{name} success"].notna()
        return "" if given.all() else f" (first {given.sum()})"

    def attacked(self, name: str, eps: float) -> float:
        """Fraction of the attacked images that is correct and not fooled within eps."""
        given, fooled = self.frame[f"{name} success"].notna(), self.frame[f"{name} norm"] <= eps
        return float((self.correct & ~fooled)[given].mean())


def draw(folders: Sequence[RunFolder], out: Path, *, images: int, overrides: Sequence[str] = ()) -> list[Path]:
    """Write accuracy.png of all runs, and of each run its singular values and `images` test images (0: none).

    Raises ValueError for a run that was not evaluated, or whose images cannot be read.
    """
    titles = _titles([folder.path for folder in folders])
    written = [_write(out / "accuracy.png", accuracy_curves(list(map(read_examples, folders, titles))))]
    for folder, title in zip(folders, titles, strict=True):
        shape, network = saving.describe(folder.model).input_shape, saving.load(folder.model)
        if shape is None or len(shape) != 3:
            raise ValueError(f"{folder.model} does not say the shape of its images; evaluate the run again")
        channels, height, width = shape
        stem = title.replace("/", "-")
        values = singular_value_histograms(singular_values(network, (channels, height, width)))
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
        frame = require("pyarrow.parquet", "data").read_table(folder.examples).to_pandas()
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise ValueError(f"{folder.examples} cannot be read ({error}); evaluate the run again") from error
    lacking = [name for name in ("label", "prediction", "radius") if name not in frame]
    if lacking:
        raise ValueError(f"{folder.examples} has no column {lacking[0]!r}; evaluate the run again")
    return Examples(title, frame)


def accuracy_curves(runs: Sequence[Examples]) -> Any:
    """Certified accuracy (lines), and accuracy left by every attack, by l2 radius, one colour per run.

    The true robust accuracy of a run lies between its line and its attacks. Attacks that look for the shortest
    perturbation give a broken line; attacks within a ball give a marker at its radius.
    """
    figure, grid = _figure(7.5, 5.4)
    axes = grid[0, 0]
    limit = 1.1 * max(float(np.quantile(run.frame["radius"], 0.99)) for run in runs)
    radii = np.linspace(0, limit or 1.0, POINTS)
    for number, run in enumerate(runs):
        colour = f"C{number % 10}"
        axes.plot(radii, [run.certified(eps) for eps in radii], color=colour, label=f"{run.title}: certified")
        for place, name in enumerate(run.attacks()):
            attack, _, eps = name.partition("@")
            label = f"{run.title}: under {attack}{run.part(name)}"
            if eps:
                marker = "ovs^Dx*P"[place % 8]
                axes.plot(float(eps), run.attacked(name, float(eps)), marker, color=colour, label=f"{label} at {eps}")
            else:
                style = ["--", ":", "-."][place % 3]
                axes.plot(radii, [run.attacked(name, r) for r in radii], style, color=colour, label=label)
    axes.set(xlabel="l2 radius over pixels in [0, 1]", ylabel="accuracy", xlim=(0, None), ylim=(0, 1))
    axes.grid(alpha=0.3)
    figure.legend(fontsize="small", loc="outside lower center", ncols=2)
    return figure


def singular_value_histograms(layers: Mapping[str, Tensor]) -> Any:
    """One histogram per layer, all on one axis from 0: an orthogonal layer is a single bar at 1."""
    high = max(1.05, max(float(values.max()) for values in layers.values()))
    figure, axes = _figure(6.5, 1.2 + 1.1 * len(layers), rows=len(layers))
    for place, (name, values) in zip(axes[:, 0], layers.items(), strict=True):
        place.hist(values.numpy(), bins=BINS, range=(0, high))
        low, top = rounded_down(float(values.min()), 9), rounded_up(float(values.max()), 9)
        place.set_title(f"{name}: {len(values)} singular values in [{low}, {top}]", fontsize="small", loc="left")
        place.set_yscale("log")
        place.set_ylim(bottom=0.8)
        place.set_xlim(0, high)
        place.set_ylabel("count", fontsize="small")
    axes[-1, 0].set_xlabel("singular value")
    return figure


def adversarial_grid(
    images: Tensor, adversarial: Tensor, captions: Sequence[str], adversarial_captions: Sequence[str]
) -> Any:
    """Rows of images above the nearest adversary found for them, and the difference.

    Args:
        images: ``(N, C, H, W)`` in [0, 1].
        adversarial: the same shape; NaN if none was found.
        captions: under each image, such as its certified radius.
        adversarial_captions: under each adversary.
    """
    count = len(images)
    figure, axes = _figure(1.5 * count + 0.6, 5.6, rows=3, columns=count)
    difference = adversarial - images
    scale = float(difference.nan_to_num().abs().max()) or 1.0
    lines = (
        (images, captions),
        (adversarial, adversarial_captions),
        (difference / (2 * scale) + 0.5, ["difference"] * count),
    )
    for row, (pictures, words) in zip(axes, lines, strict=True):
        for place, picture, caption in zip(row, pictures, words, strict=True):
            place.set_axis_off()
            if bool(torch.isfinite(picture).all()):
                shown = picture.permute(1, 2, 0).clamp(0, 1).numpy()
                place.imshow(shown if shown.shape[2] == 3 else shown[..., 0], cmap="gray", vmin=0, vmax=1)
            place.set_title(caption, fontsize=8)
    return figure


def _nearest(folder: RunFolder, network: nn.Module, count: int, overrides: Sequence[str]) -> Any:
    """The first rightly answered test images with their radius, and the nearer adversary of DDN and DeepFool."""
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
    # The nearest success of every image and its norm; NaN and infinity if there is none.
    norms = torch.stack([torch.where(result.success, result.norm, math.inf) for result in results.values()])
    norm, which = norms.min(dim=0)
    each = torch.stack([result.adversarial for result in results.values()])[which, torch.arange(len(which))]
    adversarial = torch.where((norm < math.inf)[:, None, None, None], each, math.nan)
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


def _titles(paths: Sequence[Path]) -> list[str]:
    """The shortest endings of the paths that tell them apart."""
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


def _figure(width: float, height: float, *, rows: int = 1, columns: int = 1) -> tuple[Any, np.ndarray]:
    """A figure and its axes, an array of `rows` x `columns`."""
    figure = require("matplotlib.figure", "plots").Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)
