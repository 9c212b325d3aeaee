"""Attack libraries draw from the global generators: seed those for a while, and give them back."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Within the block all global generators follow from `seed`; afterwards they are as they were.

    >>> with seeded(3, torch.device("cpu")):
    ...     first = torch.rand(1).item()
    >>> with seeded(3, torch.device("cpu")):
    ...     torch.rand(1).item() == first
    True
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (the libraries use no other)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            torch.manual_seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
