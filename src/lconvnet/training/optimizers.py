"""The optimisers of configurations as values: `optimizer(parameters)` returns a torch optimiser.

In Python any callable with that signature can replace them, such as `partial(torch.optim.AdamW, lr=1e-3)`.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Annotated

import torch
from pydantic import Strict
from torch import nn
from torch.optim import Optimizer

from lconvnet.ops.numbers import Fraction, NonNegativeFloat, PositiveFloat


@dataclass(frozen=True)
class Adam:
    """Adam; `betas` are the decay rates of the two moments."""

    lr: PositiveFloat = 1e-3
    betas: Annotated[tuple[Fraction, Fraction], Strict(False)] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.0

    def __call__(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        return torch.optim.Adam(parameters, **asdict(self))


@dataclass(frozen=True)
class Sgd:
    """Stochastic gradient descent with momentum."""

    lr: PositiveFloat = 0.1
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 0.0

    def __post_init__(self) -> None:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov is true with momentum 0.0; give a momentum or set nesterov to false")

    def __call__(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        return torch.optim.SGD(parameters, **asdict(self))


@dataclass(frozen=True)
class Rmsprop:
    """RMSprop; `alpha` is the decay rate of the squared gradient."""

    lr: PositiveFloat = 1e-3
    alpha: Fraction = 0.99
    momentum: Fraction = 0.0
    weight_decay: NonNegativeFloat = 0.0

    def __call__(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        return torch.optim.RMSprop(parameters, **asdict(self))
