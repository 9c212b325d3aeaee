"""Pictures of an estimate: its training, and the images that the critic ranks most real and most fake.

Every function returns a matplotlib `Figure` (extra `plots`); `draw` writes them.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from torch import Tensor

from lconvnet import atomic
from lconvnet.extras import require
from lconvnet.ops.rounding import decimal, decimals, rounded_down
from lconvnet.tasks.estimates import Estimate

SHOWN = 8  # images of a row


def draw(estimate: Estimate, folder: Path) -> list[Path]:
    """Write training.png, and for images ranking.png, into `folder`; the paths."""
    figures = {"training.png": training_curve(estimate)}
    if is_images(estimate):
        figures["ranking.png"] = ranking(estimate)
    for name, figure in figures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        atomic.write_bytes(folder / name, buffer.getvalue())
    return [folder / name for name in figures]


def is_images(estimate: Estimate) -> bool:
    """Whether the samples are grey or colour images `(N, 1 or 3, H, W)`."""
    shape = estimate.samples[0].shape
    return len(shape) == 4 and shape[1] in (1, 3)


def training_curve(estimate: Estimate) -> Any:
    """The critic's difference on training batches over the steps, beside what held-out samples certify in the end."""
    figure = require("matplotlib.figure", "plots").Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    steps, values = zip(*estimate.history, strict=True)
    axes.plot(steps, values, label="training batches (not certified)")
    low, high = estimate.interval
    found = rounded_down(estimate.lower_bound, decimals(estimate.lower_bound, 4))
    axes.axhspan(low, high, alpha=0.25, color="C1", label=f"interval at {decimal(estimate.confidence)}")
    axes.axhline(estimate.lower_bound, color="C1", label=f"held out, over L: {found}")
    axes.set(xlabel="step", ylabel="mean difference of the critic", xlim=(0, steps[-1]))
    axes.set_title(estimate.units, fontsize="small", loc="left")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def ranking(estimate: Estimate) -> Any:
    """Of either side the held-out images with the largest and the smallest values of the critic (over L)."""
    count = min(SHOWN, *estimate.held_out)
    figure = require("matplotlib.figure", "plots").Figure(figsize=(1.1 * count + 0.2, 7.2), layout="constrained")
    parts = figure.subfigures(4)
    for place, (number, side) in enumerate((number, side) for number in (0, 1) for side in ("real", "fake")):
        order = estimate.values[number].argsort(descending=side == "real")[:count]
        parts[place].suptitle(f"{('real', 'fake')[number]}, ranked most {side}", fontsize="medium")
        _row(parts[place], estimate.samples[number][order], estimate.values[number][order])
    return figure


def _row(figure: Any, images: Tensor, values: Tensor) -> None:
    low, high = (float(end) for end in images.aminmax())
    low, high = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)  # other ranges are stretched
    for axes, image, value in zip(figure.subplots(1, len(images), squeeze=False)[0], images, values, strict=True):
        picture = ((image.float().cpu() - low) / (high - low)).permute(1, 2, 0).numpy()
        axes.imshow(picture if picture.shape[2] == 3 else picture[..., 0], cmap="gray", vmin=0, vmax=1)
        axes.set_title(f"{float(value):.4g}", fontsize="small")
        axes.set_axis_off()
