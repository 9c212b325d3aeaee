"""One thread for each process of the tests, and shared fixtures: seeds, reference values, real data."""

import os

# Before torch starts its threads; processes that tests start inherit it. Two workers then keep two cores busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _quiet_again():
    """A command writes its log to the stream of its test, which is closed when that is over."""
    logger = logging.getLogger("lconvnet")
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    folder = SHARED / "reference"
    if not folder.is_dir():
        pytest.skip("the reference values of the original code are not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def data_dir() -> Path:
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("the real images are not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def reference(reference_dir: Path):
    """``reference("case/name")`` as a float64 tensor."""
    arrays = np.load(reference_dir / "layers.npz")
    return lambda name: torch.from_numpy(arrays[name]).double()


@pytest.fixture
def any_rate(monkeypatch):
    """Lets a test take a learning rate at which weights stand still, or overflow at once."""
    monkeypatch.setattr("lconvnet.training.checks.LEAST", 0.0)
    monkeypatch.setattr("lconvnet.training.checks.MOST", math.inf)
