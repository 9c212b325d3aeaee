"""Train as one of several processes; options are a JSON object, the first process prints a JSON summary.

    python together.py '{"devices": 2, "directory": "out", "trouble": {"call": 5, "rank": 1, "what": "SIGTERM"}}'

`trouble` comes in the middle of step number `call` of this process, to the process `rank` or (without it) to all.
"""

import atexit
import json
import logging
import math
import os
import signal
import sys
import time
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lconvnet import atomic
from lconvnet.data import crop_and_flip, load
from lconvnet.layers import MaxMin, OrthogonalLinear, OSSNConv2d
from lconvnet.losses import OffsetCrossEntropy
from lconvnet.models import small_convnet
from lconvnet.training import Diverged, Interrupted, fit, is_first_process


def model(name: str) -> nn.Sequential:
    """Small, or a network that has power-iteration buffers."""
    torch.manual_seed(0)
    if name == "small":
        return small_convnet(1, 28, 10)
    conv = OSSNConv2d(1, 4, 4, 4, input_size=(28, 28))
    return nn.Sequential(conv, MaxMin(), nn.Flatten(), OrthogonalLinear(4 * 7 * 7, 10))


class TroubledLoss:
    """A loss that draws from the global generator, as dropout would, and in which something happens at one call."""

    def __init__(self, noise: float, call: int = 0, rank: int | None = None, what: str = "") -> None:
        self.noise, self.left, self.what = noise, call, what
        self.mine = rank is None or rank == int(os.environ.get("LOCAL_RANK", "0"))

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss = OffsetCrossEntropy(0.5)(logits + self.noise * torch.randn_like(logits), labels)
        if len(labels) <= 10:  # it is being tried, by one image of each class
            return loss
        self.left -= 1
        return self.happen(loss) if self.left == 0 and self.mine else loss

    def happen(self, loss: Tensor) -> Tensor:
        if self.what == "disk full":
            atomic._write_new = full
        elif self.what == "nan":
            return loss * math.nan
        elif self.what == "stuck, the first one killed":
            if os.environ["LOCAL_RANK"] == "0":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
        else:
            os.kill(os.getpid(), signal.Signals[self.what])
        return loss


def full(path: Any, data: bytes) -> None:
    raise OSError(28, "No space left on device")


def train(options: dict[str, Any]) -> dict[str, Any]:
    given = dict(options)
    trouble, noise = given.pop("trouble", {}), given.pop("noise", 0.01)
    other = given.pop("other_images", False) and os.environ.get("LOCAL_RANK") == "1"
    given["augment"] = partial(crop_and_flip, padding=1) if given.pop("augment", True) else None
    if sgd := given.pop("sgd", None):
        given["optimizer"] = partial(torch.optim.SGD, lr=sgd)
    splits = load("digits", limit=590 if other else 600)
    trained = model(given.pop("model", "tiny"))
    defaults = {"epochs": 3, "batch_size": 64, "eps": (0.1, 0.2), "checkpoint_every": 2, "accelerator": "cpu"}
    record = fit(trained, splits, loss=TroubledLoss(noise, **trouble), tensorboard=False, **(defaults | given))
    sums = {name: float(value.double().sum()) for name, value in trained.state_dict().items()}
    return {"epochs": [epoch.to_dict() for epoch in record.epochs], "sums": sums, "versions": record.versions}


def still_connected() -> None:
    """Called at the end of the process, after what the training has registered for it."""
    if torch.distributed.is_initialized():
        sys.stderr.write("still connected when the interpreter ends\n")


def main() -> None:
    atexit.register(still_connected)
    logging.getLogger("lconvnet").addHandler(logging.StreamHandler())
    logging.getLogger("lconvnet").setLevel(logging.INFO)
    options = json.loads(sys.argv[1])
    again = options.pop("again", False)
    try:
        summary = train(options)
        if again and train(options) != summary:
            sys.exit("the second training differs from the first")
    except (Interrupted, ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        if isinstance(error, Diverged):
            try:
                train(options)
            except ValueError as second:
                sys.stderr.write(f"again: {second}\n")
        sys.exit(3 if isinstance(error, Interrupted) else 2)
    if is_first_process():
        sys.stdout.write(json.dumps(summary) + "\n")


if __name__ == "__main__":
    main()
