"""A data set and a model small enough to train in a tenth of a second."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lconvnet.data import Splits, load
from lconvnet.losses import OffsetCrossEntropy
from lconvnet.models import mlp
from lconvnet.training import Record, fit


@pytest.fixture(scope="session")
def digits() -> Splits:
    """420 training and 60 validation images of real digits."""
    return load("digits", limit=600)


@pytest.fixture
def model() -> nn.Sequential:
    return small_model()


@pytest.fixture
def small() -> Callable[..., nn.Sequential]:
    return small_model


def small_model(seed: int = 0) -> nn.Sequential:
    """A 1-Lipschitz network with one hidden layer, its weights from `seed`, the global state untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return mlp(784, 10, widths=(16,))


@pytest.fixture
def train(digits: Splits) -> Callable[..., Record]:
    """`fit` on the digits with small defaults; keywords replace them."""

    def run(model: nn.Module | None = None, **options: Any) -> Record:
        defaults: dict[str, Any] = {
            "data": digits,
            "loss": OffsetCrossEntropy(0.3),
            "epochs": 2,
            "batch_size": 64,
        }
        defaults |= {"accelerator": "cpu", "tensorboard": False, "checkpoint_every": 3}
        return fit(small_model() if model is None else model, **(defaults | options))

    return run
