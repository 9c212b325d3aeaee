"""Estimate, get killed, resume, again and again, in forked processes; run as a module, prints a JSON summary.

    python -m tests.wasserstein.killing FOLDER

FOLDER/whole holds the estimate that nobody touched, FOLDER/time and FOLDER/write those that were killed.
"""

import json
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch import nn

from lconvnet.layers import GroupSort, MaxMin, NearestUpsampling, OrthogonalLinear, OSSNConv2d, SVCMConv2d
from lconvnet.wasserstein import estimate
from tests.training.killing import finished, forked, kill_again_and_again
from tests.wasserstein.forms import Draw

REAL = torch.rand(90, 1, 4, 4, generator=torch.Generator().manual_seed(0))
FAKE = Draw(lambda n, g: torch.rand(n, 1, 4, 4, generator=g).square())


def critic() -> nn.Sequential:
    """Every kind of state: power-iteration buffers, projected weights, orthogonal weights, dropout, biases."""
    torch.manual_seed(0)
    return nn.Sequential(
        NearestUpsampling(2),
        OSSNConv2d(1, 4, 4, 4, input_size=(8, 8)),
        MaxMin(),
        SVCMConv2d(4, 4, 1, input_size=(2, 2)),
        GroupSort(2),
        nn.Dropout(0.2),
        nn.Flatten(),
        OrthogonalLinear(16, 1),
    )


def run(folder: Path) -> None:
    """130 steps with a checkpoint at every ninth, projected after 100 and all of them."""
    options = {"steps": 130, "batch_size": 16, "held_out": 20, "checkpoint_every": 9, "seed": 5}
    estimate(REAL, FAKE, critic=critic(), directory=folder, resume=True, **options)


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)  # threads do not survive a fork
    started = time.perf_counter()
    if not finished(forked(partial(run, folder / "whole"))):
        raise SystemExit("the untouched estimate was killed")
    seconds = time.perf_counter() - started
    killed = {"time": kill_again_and_again(run, folder / "time", 2, seconds)}
    killed["write"] = kill_again_and_again(run, folder / "write", 2, None)
    sys.stdout.write(json.dumps(killed) + "\n")


if __name__ == "__main__":
    main()
