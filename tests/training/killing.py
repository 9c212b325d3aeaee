"""Train, get killed, resume, again and again, in forked processes; run as a script, prints a JSON summary.

    python killing.py FOLDER --by-time 10 --by-write 10 --data digits|mnist

FOLDER/whole holds the run that nobody touched, FOLDER/time and FOLDER/write those that were killed. Forking after the
imports keeps a kill at a tenth of a second instead of five.
"""

import argparse
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning_fabric  # noqa: F401 - a training imports both, and every forked one would do so again
import torch
import torch._dynamo
from torch import Tensor, nn

from lconvnet.data import Splits, crop_and_flip, load
from lconvnet.layers import GroupSort, MaxMin, OrthogonalLinear, OSSNConv2d, SVCMConv2d
from lconvnet.losses import OffsetCrossEntropy
from lconvnet.models import small_convnet
from lconvnet.training import fit, schedules


def jittered(logits: Tensor, labels: Tensor) -> Tensor:
    """A loss that draws from the global generator, as dropout would: a resume must replay that too."""
    return OffsetCrossEntropy(0.5)(logits + 0.01 * torch.randn_like(logits), labels)


def tiny() -> nn.Sequential:
    """Every kind of state: power-iteration buffers, projected weights, orthogonal weights, biases."""
    torch.manual_seed(0)
    return nn.Sequential(
        OSSNConv2d(1, 4, 4, 4, input_size=(28, 28)),
        MaxMin(),
        SVCMConv2d(4, 4, 3, input_size=(7, 7)),
        GroupSort(2),
        nn.Flatten(),
        OrthogonalLinear(4 * 7 * 7, 10),
    )


def train_tiny(splits: Splits, folder: Path) -> None:
    """Three epochs of six steps with everything switched on."""
    options: dict[str, Any] = {
        "optimizer": partial(torch.optim.Adam, lr=0.02),
        "schedule": schedules.one_cycle(),
        "eps": (0.1, 0.2),
    }
    options["augment"] = partial(crop_and_flip, padding=1)
    fit(tiny(), splits, loss=jittered, epochs=3, batch_size=70, directory=folder, resume=True, project_every=2,
        checkpoint_every=2, seed=7, accelerator="cpu", tensorboard=False, **options)  # fmt: skip


def train_mnist(splits: Splits, folder: Path) -> None:
    """One epoch of Small BCOP on a part of MNIST."""
    torch.manual_seed(0)
    model = small_convnet(1, 28, 10)
    fit(model, splits, loss=OffsetCrossEntropy(1.58), epochs=1, directory=folder, resume=True, checkpoint_every=20,
        accelerator="cpu", tensorboard=False)  # fmt: skip


def forked(work: Callable[[], None], prepare: Callable[[], None] = lambda: None) -> int:
    """Start `work` in a forked process; its id."""
    child = os.fork()
    if child:
        return child
    try:
        prepare()
        work()
        os._exit(0)
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        os._exit(1)


def kill_before_write(number: int) -> None:
    """Make this process kill itself with the new file written but not yet in its place, at the `number`th write."""
    left, replace = [number], os.replace

    def replace_or_die(source: Any, target: Any) -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = replace_or_die  # pyright: ignore[reportAttributeAccessIssue]


def finished(child: int) -> bool:
    """Wait; whether the process ended by itself (True) or by SIGKILL (False)."""
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a child failed")
    return os.WIFEXITED(status)


def kill_by_time(work: Callable[[], None], delay: float) -> bool:
    """Kill `work` after `delay` seconds; whether it was done before."""
    child = forked(work)
    end = time.perf_counter() + delay
    while time.perf_counter() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if status:
                raise SystemExit("a child failed")
            return True
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return finished(child)


def kill_again_and_again(train: Callable[[Path], None], folder: Path, kills: int, seconds: float | None) -> int:
    """Kill at random times spread over `seconds`, or (None) in the middle of random writes; then let it end."""
    choose, done, count = random.Random(0), False, 0
    work = partial(train, folder)
    while count < kills and not done:
        if seconds is None:
            done = finished(forked(work, partial(kill_before_write, choose.randint(2, 6))))
        else:
            done = kill_by_time(work, choose.uniform(0.02, 1.5 * seconds / (kills + 1)))
        count += not done
    if not finished(forked(work)):
        raise SystemExit("the last resume was killed")
    return count


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--by-time", type=int, default=3)
    parser.add_argument("--by-write", type=int, default=0)
    parser.add_argument("--data", choices=("digits", "mnist"), default="digits")
    options = parser.parse_args()
    torch.set_num_threads(1)  # threads do not survive a fork
    splits = load(options.data, limit={"digits": 600, "mnist": 12000}[options.data])
    train = partial(train_tiny if options.data == "digits" else train_mnist, splits)
    started = time.perf_counter()
    if not finished(forked(partial(train, options.folder / "whole"))):
        raise SystemExit("the untouched run was killed")
    seconds = time.perf_counter() - started
    killed = {"time": kill_again_and_again(train, options.folder / "time", options.by_time, seconds)}
    if options.by_write:
        killed["write"] = kill_again_and_again(train, options.folder / "write", options.by_write, None)
    sys.stdout.write(json.dumps({**killed, "seconds": round(seconds, 2)}) + "\n")


if __name__ == "__main__":
    main()
