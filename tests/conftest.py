"""Shared fixtures: seeds, reference values, real data."""

from pathlib import Path

import numpy as np
import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


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
