"""The main job in small: train a certified classifier of digits, and say what it certifies.

    make demo    # or: python examples/demo.py

Trains the paper's Small BCOP network on the 5,000 MNIST digits embedded in the environment, bakes it, bounds
its Lipschitz constant, certifies the held-out test images, prints a table and draws accuracy against radius.
Everything goes to demo/. A second run goes on where the first one stopped, and trains nothing if all is done.
"""

import itertools
import logging
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import lconvnet as lc
from lconvnet.ops.rounding import percent_down, rounded_up
from lconvnet.training import CheckpointError, Interrupted, schedules

FOLDER = Path("demo")
EPOCHS = 30
TRAINED_FOR = 1.58  # the l2 radius of the paper's MNIST tables
RADII = (0.3, 0.5, 1.0, 1.58)


def train(splits: lc.data.Splits) -> nn.Sequential:
    """The baked network of the epoch that is best on validation images; goes on after an interruption."""
    for number in itertools.count(1):  # a run of other settings is left alone, and the next folder is taken
        torch.manual_seed(0)
        model = lc.models.small_convnet(splits.image_shape[0], splits.image_shape[1:], splits.classes)
        try:
            lc.fit(
                model,
                splits,
                loss=lc.losses.OffsetCrossEntropy(eps=TRAINED_FOR),
                epochs=EPOCHS,
                optimizer=partial(torch.optim.Adam, lr=3e-3),
                schedule=schedules.one_cycle(),
                eps=(TRAINED_FOR,),
                directory=FOLDER / f"run-{number}",
                resume=True,
            )
        except CheckpointError:
            continue
        break
    return lc.bake(model)


def headline(bound: lc.Bound, count: int) -> str:
    """What the numbers are about; the bound is rounded up, so that the text stays true."""
    return f"Small BCOP, {count:,} test digits, Lipschitz constant ≤ {rounded_up(bound.upper, 6)}"


def print_table(console: Console, certificates: lc.Certificates, labels: Tensor, bound: lc.Bound) -> None:
    """Clean accuracy, then certified accuracy at every radius."""
    console.print(headline(bound, len(labels)))
    table = Table("accuracy", "l2 radius", "of the images")
    clean = (certificates.label == labels).double().mean().item()
    table.add_row("clean", "0", f"{clean:.1%}")
    for eps in RADII:
        table.add_row("certified", f"{eps:g}", percent_down(lc.certified_accuracy(certificates, labels, eps)))
    console.print(table)


def draw(path: Path, certificates: lc.Certificates, labels: Tensor, bound: lc.Bound) -> None:
    """Certified accuracy against radius: no l2 perturbation of that size brings accuracy below the curve."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    radii = torch.linspace(0, 3, 301).tolist()
    axes.plot(radii, [lc.certified_accuracy(certificates, labels, eps) for eps in radii], linewidth=2)
    for eps in RADII:
        value = lc.certified_accuracy(certificates, labels, eps)
        axes.plot(eps, value, "o", color="tab:blue")
        offset = {
            "xytext": (-3, -6),
            "textcoords": "offset points",
            "ha": "right",
            "va": "top",
            "fontsize": 9,
        }
        axes.annotate(percent_down(value), (eps, value), **offset)
    axes.set(xlabel="l2 radius, pixels in [0, 1]", ylabel="certified accuracy", xlim=(0, 3), ylim=(0, 1))
    axes.set_title(headline(bound, len(labels)), fontsize=11)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Train, certify, show."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    plt.switch_backend("agg")
    console = Console()
    splits = lc.data.load("digits")
    try:
        network = train(splits)
    except Interrupted as stop:
        console.print(f"{stop}: `make demo` again does so")
        raise SystemExit(3) from None
    bound = lc.lipschitz_bound(network, input_shape=splits.image_shape)
    images, labels = lc.data.batch(splits.test, range(len(splits.test)))
    certificates = lc.certify(network, images, bound=bound)
    lc.save(network, FOLDER / "model.safetensors", bound=bound, input_shape=splits.image_shape)
    picture = FOLDER / "certified_accuracy.png"
    draw(picture, certificates, labels, bound)
    print_table(console, certificates, labels, bound)
    console.print(f"Picture: {picture}   Network: {FOLDER / 'model.safetensors'}")


if __name__ == "__main__":
    main()
