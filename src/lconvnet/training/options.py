"""The options that every task shares, and the place in which they run a training."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lconvnet.ops.images import is_finite_number
from lconvnet.training.engine import Measures
from lconvnet.training.folder import TrainingFolder
from lconvnet.training.processes import Precision, configured, is_first_process, is_joint

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Options:
    """Options of every training; see `lconvnet.fit`.

    `settings` holds the options that decide the result. A resume may change the others.
    """

    directory: str | Path | None = None
    resume: bool = False
    checkpoint_every: int = 500
    accelerator: str = "auto"
    devices: int = 1
    precision: Precision = "32-true"
    clip_gradient: float | None = None
    ema: float | None = None
    progress: bool = True
    tensorboard: bool = False
    on_epoch: Callable[[Any], None] | None = None
    on_step: Callable[[int, Measures], None] | None = None

    def __post_init__(self) -> None:
        require_counts(checkpoint_every=self.checkpoint_every, devices=self.devices)
        if self.clip_gradient is not None and not (is_finite_number(self.clip_gradient) and self.clip_gradient > 0):
            raise ValueError(f"clip_gradient={self.clip_gradient!r}: must be a positive norm, such as 1.0, or None")
        if self.ema is not None and not (is_finite_number(self.ema) and 0 < self.ema < 1):
            raise ValueError(f"ema={self.ema!r}: must be a decay strictly between 0 and 1, such as 0.999, or None")
        for name in ("clip_gradient", "ema"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, float(value))  # of a tensor or an array, too

    @property
    def settings(self) -> dict[str, Any]:
        """The options that decide the result and differ from their defaults."""
        found = {"precision": self.precision, "clip_gradient": self.clip_gradient, "ema": self.ema}
        return {name: value for name, value in found.items() if value not in (None, "32-true")}


def require_counts(**counts: int) -> None:
    """Raise `ValueError`, with the name, for a value that is not a positive integer."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: must be an integer of at least 1")


def require_seed(seed: int) -> None:
    """Raise `ValueError` unless a seed is an integer."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed={seed!r}: must be an integer")


@dataclass(frozen=True)
class Place:
    """The place of a run: its launcher, its device and its folder (on the first process, if the run has one)."""

    options: Options
    fabric: "Fabric"
    device: torch.device
    folder: TrainingFolder | None


@contextlib.contextmanager
def opened(options: Options, *networks: nn.Module) -> Iterator[Place]:
    """Lock the run folder, and restore the global random state at the end.

    Networks stay on their device, or on the device of each process if there are several. Raises `ValueError` if the
    folder holds a run and `resume` is not set.
    """
    device = next((parameter.device for network in networks for parameter in network.parameters()), None)
    accelerator = options.accelerator if device is None else device.type
    fabric = configured(accelerator, options.precision, options.devices)
    device = fabric.device if device is None or is_joint(fabric) else device
    first = options.directory is not None and is_first_process()
    folder = TrainingFolder(Path(options.directory)) if first and options.directory is not None else None
    generators = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=generators), folder.locked() if folder else contextlib.nullcontext():
        if folder and not options.resume:
            folder.refuse_if_started()
        for network in networks:
            fabric.strategy.precision.convert_module(network).to(device)
        yield Place(options, fabric, device, folder)
