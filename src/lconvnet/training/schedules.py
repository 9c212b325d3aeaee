r"""Learning-rate schedules as values: `schedule(optimizer, epochs, steps_per_epoch)` returns a torch scheduler.

Each is a closed form in the number of optimiser steps done, and is stepped once after every optimiser step. The
learning rate given to the optimiser is the peak. Any callable with the same signature that returns an `LRScheduler`
can replace them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from lconvnet.ops.numbers import Number, OpenFraction

Schedule = Callable[[Optimizer, int, int], LRScheduler]


@dataclass(frozen=True)
class Constant:
    """The optimiser's learning rate throughout."""

    def __call__(self, optimizer: Optimizer, epochs: int, steps_per_epoch: int) -> LRScheduler:
        return LambdaLR(optimizer, lambda _: 1.0)


@dataclass(frozen=True)
class Exponential:
    r"""$\mathrm{lr}\,\gamma^e$ in epoch $e = 1, 2, \ldots$: $e = 1 + \lfloor t/n\rfloor$ at step $t$, $n$ per epoch.

    The paper's schedule: after 200 epochs the rate is 1/2,150 of its start. The first epoch is epoch 1, so gamma lowers
    the rate from the first step on. Raises `ValueError` unless gamma is positive.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    >>> scheduler = Exponential(0.5)(optimizer, epochs=2, steps_per_epoch=2)
    >>> scheduler.get_last_lr()
    [0.5]
    >>> for step in range(2):
    ...     optimizer.step(); scheduler.step()
    >>> scheduler.get_last_lr()
    [0.25]
    """

    gamma: Annotated[Number, Field(gt=0, le=1)] = 0.96235062639

    def __post_init__(self) -> None:
        if not 0 < self.gamma < math.inf:
            raise ValueError(f"gamma={self.gamma!r}: must be positive and finite; 1 keeps the learning rate")

    def __call__(self, optimizer: Optimizer, epochs: int, steps_per_epoch: int) -> LRScheduler:
        return LambdaLR(optimizer, lambda step: self.gamma ** (1 + step // steps_per_epoch))


@dataclass(frozen=True)
class OneCycle:
    r"""Cosine from `start` to 1 over the first `warmup` part of the steps, then cosine down to `end` (times the peak).

    With $t$ steps done of $T$ and $a = \mathrm{warmup}\cdot T - 1$: rises for $t\le a$, then falls until $t = T-1$.
    Source: Smith & Topin 2018. The constants are those of torch's `OneCycleLR`, which it equals without momentum
    cycling. Raises `ValueError` unless 0 < warmup < 1 and both ends are positive.
    """

    warmup: OpenFraction = 0.3
    start: float = 1 / 25
    end: float = 1 / 25e4

    def __post_init__(self) -> None:
        if not 0 < self.warmup < 1:
            raise ValueError(f"warmup={self.warmup!r}: must lie strictly between 0 and 1; 0.3 is the usual choice")
        for name in ("start", "end"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be a positive fraction of the peak rate")

    def __call__(self, optimizer: Optimizer, epochs: int, steps_per_epoch: int) -> LRScheduler:
        total = epochs * steps_per_epoch
        return LambdaLR(optimizer, lambda step: self.factor(step, total))

    def factor(self, step: int, total: int) -> float:
        """The fraction of the peak after `step` of `total` steps."""
        top = max(self.warmup * total - 1, 0.0)
        if step < top:
            return _cosine(self.start, 1.0, step / top)
        fall = max(total - 1 - top, 1.0)
        return _cosine(1.0, self.end, min((step - top) / fall, 1.0))


def _cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * part))


constant, exponential, one_cycle = Constant, Exponential, OneCycle
