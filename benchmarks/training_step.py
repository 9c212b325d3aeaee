"""Time one training step of a constrained network against the same network without constraint.

Both run in this process and take turns, step by step, so that a slow moment of the machine hits both alike.
A step is forward, loss, backward and Adam, at batch 128, after a warm-up. The two networks differ in their
linear maps only: BCOP and orthonormal dense layers against plain `nn.Conv2d` and `nn.Linear`; both use
MaxMin.

    make bench                                                      # the table, and benchmarks/latest.json
    python benchmarks/training_step.py --steps 3 --out /dev/null    # does it run?
"""

import argparse
import json
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lconvnet import models
from lconvnet.losses import OffsetCrossEntropy
from lconvnet.models import baselines

BATCH = 128
CLASSES = 10
NETWORKS: dict[str, tuple[Callable[..., nn.Module], int, int]] = {
    "small_step": (models.small_convnet, 1, 28),
    "large_step": (models.large_convnet, 3, 32),
}


def training_step(network: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """One step on a fixed batch as a function without arguments."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    loss = OffsetCrossEntropy(eps=1.58)

    def step() -> None:
        optimizer.zero_grad()
        loss(network(images), labels).backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], None]) -> float:
    """Wall time of one call."""
    start = perf_counter()
    step()
    return perf_counter() - start


def compare(row: str, steps: int, warm_up: int) -> dict[str, str | float]:
    """Median seconds of both networks over `steps` interleaved steps, and their ratio."""
    build, channels, size = NETWORKS[row]
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(BATCH, channels, size, size, generator=generator)
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    build = partial(build, channels, size, CLASSES)
    plain = build(conv=baselines.unconstrained_conv, linear=baselines.unconstrained_linear)
    pair = [training_step(network.train(), images, labels) for network in (build(), plain)]
    for _ in range(warm_up):
        for step in pair:
            step()
    times = [[seconds(step) for step in pair] for _ in range(steps)]
    ours, other = (median(column) for column in zip(*times, strict=True))
    return {"row": row, "ratio": ours / other, "ours": ours, "other": other, "unit": "s per step"}


def show(rows: list[dict[str, str | float]], threads: int) -> None:
    """Print the table."""
    table = Table(caption=f"medians, batch {BATCH}, {threads} threads, torch {torch.__version__}")
    for heading in ("network", "BCOP, ms", "unconstrained, ms", "ratio"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for row in rows:
        ours, other = (f"{1000 * float(row[key]):.1f}" for key in ("ours", "other"))
        table.add_row(str(row["row"]), ours, other, f"{float(row['ratio']):.2f}")
    Console().print(table)


def main() -> None:
    """Run both comparisons, print them and write them down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=30, help="timed steps of each network")
    parser.add_argument("--warm-up", type=int, default=5, help="steps before the first timed one")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("latest.json"))
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rows = [compare(row, arguments.steps, arguments.warm_up) for row in NETWORKS]
    show(rows, arguments.threads)
    about = {"torch": torch.__version__, "machine": platform.machine(), "threads": arguments.threads}
    arguments.out.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
