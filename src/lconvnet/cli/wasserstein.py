"""The command `lconvnet wasserstein`: a certified lower bound on the distance between two distributions."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from torch.optim import RMSprop

from lconvnet import saving, wasserstein
from lconvnet.cli import options, output
from lconvnet.experiments.estimation import distribution
from lconvnet.ops.rounding import decimal, decimals, rounded_down, rounded_up
from lconvnet.tasks.estimates import draw
from lconvnet.tasks.wasserstein import RATE

FEW = 1000  # below so many held-out samples, a wide interval is blamed on their number
SIDE = "A folder of images, a .parquet or .npy file, a generator's .safetensors, or the name of a data set."
Support = Annotated[
    tuple[str, str] | None,
    typer.Option("--support", metavar="LOW HIGH", help="Numbers that every value is known to lie between."),
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder for checkpoint, record.json, critic and pictures.")]


def wasserstein_command(
    real: Annotated[str, typer.Argument(metavar="A", help=SIDE)],
    fake: Annotated[str, typer.Argument(metavar="B", help=SIDE)],
    out: Out = None,
    resume: options.Resume = False,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Optimiser steps of the critic.")] = 2000,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Samples of each side in a step.")] = 64,
    rate: Annotated[
        float, typer.Option("--lr", parser=options.number, metavar="RATE", help="Peak learning rate of RMSprop.")
    ] = RATE,
    seed: Annotated[int, typer.Option("--seed", help="Of weights, held-out samples and batches.")] = 0,
    confidence: Annotated[
        float, typer.Option("--confidence", parser=options.number, metavar="C", help="Of the interval.")
    ] = 0.95,
    support: Support = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a 1-Lipschitz critic and print a certified lower bound on the Wasserstein-1 distance of A and B."""
    output.configure_logging(quiet)
    if not rate > 0:
        raise ValueError(f"--lr {rate}: must be positive")
    optimizer = partial(RMSprop, lr=rate)
    found = wasserstein.estimate(
        distribution(real), distribution(fake), steps=steps, batch_size=batch_size, optimizer=optimizer, seed=seed,
        confidence=confidence, support=_pair(support), directory=out, resume=resume, progress=not quiet,
    )  # fmt: skip
    files = [] if out is None else write(found, out)
    show(found, files, output.PlainConsole(stderr=as_json))
    if as_json:
        facts = {name: value for name, value in found.to_dict().items() if name not in ("history", "settings")}
        output.show_json({**facts, "files": [str(path) for path in files]})


def write(found: wasserstein.Estimate, out: Path) -> list[Path]:
    """Write the critic and the pictures beside the record; return the paths."""
    shape = tuple(found.samples[0].shape[1:])
    image_shape = (shape[0], shape[1], shape[2]) if len(shape) == 3 else None
    critic = out / "critic.safetensors"
    saving.save(found.critic, critic, bound=found.bound, input_shape=image_shape)
    return [out / "record.json", critic, *draw(found, out)]


def show(found: wasserstein.Estimate, files: list[Path], console: Console) -> None:
    """Show the estimate, its assumptions, and the files written."""
    confidence, count = decimal((1 + found.confidence) / 2), " and ".join(map(str, found.held_out))
    if found.guaranteed:
        least = interval(found.guaranteed)[0]
        console.print(f"W1 >= {least} with confidence {confidence}, for any number of independent samples")
    low, high = interval(found.interval)
    console.print(
        f"W1 >= {low} with confidence {confidence}, assuming {found.assumes}; "
        f"estimate {down(found.lower_bound)}, interval [{low}, {high}] at {decimal(found.confidence)}"
    )
    few = (
        f" (below {FEW}: few samples make the interval wide, more make it narrow)" if min(found.held_out) < FEW else ""
    )
    console.print(f"{found.units}; held out {count}{few}; on training batches {down(found.training)}")
    console.print(f"Lipschitz bound {rounded_up(found.lipschitz, 9)} ({found.level})")
    if files:
        console.print(f"wrote {', '.join(map(str, files))}")


def down(value: float) -> str:
    """Six digits of a distance, rounded downward."""
    return rounded_down(value, decimals(value))


def interval(ends: tuple[float, float]) -> tuple[str, str]:
    """Six digits of the larger end of an interval, rounded outward."""
    digits = decimals(ends[1])
    return rounded_down(ends[0], digits), rounded_up(ends[1], digits)


def _pair(texts: tuple[str, str] | None) -> tuple[float, float] | None:
    return None if texts is None else (options.number(texts[0]), options.number(texts[1]))
