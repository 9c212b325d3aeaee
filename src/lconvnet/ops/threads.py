"""Many small matrices, one thread each.

A decomposition of a few hundred rows gains nothing from a second thread, so a batch of them is spread over the threads
instead: one worker for each that torch may use, every one of them restricted to a single thread.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

CHUNKS_PER_WORKER = 32
"""Enough that the workers end together, and that what a few large matrices need on the way stays near the processor."""


def map_batch(function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """``function(batch)`` for a function that treats the N matrices of ``(N, m, n)`` one by one.

    An accelerator has its own batched routines and a gradient is recorded in the calling thread: both get one call.
    """
    workers = torch.get_num_threads()
    if workers == 1 or batch.requires_grad or batch.device.type != "cpu" or len(batch) < 2:
        return function(batch)
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return torch.cat(list(pool.map(function, batch.chunk(CHUNKS_PER_WORKER * workers))))
    finally:
        torch.set_num_threads(workers)  # a worker's setting is its own, but later threads would inherit it
