"""Many small matrices, one thread each.

A decomposition of a few hundred rows gains nothing from a second thread, so a batch of them is spread over the threads
instead: one worker for each that torch may use, every one of them restricted to a single thread.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

CHUNKS_PER_WORKER = 4
"""At least, so that the workers end together where some matrices take longer."""

CHUNK_ELEMENTS = 2**19
"""At most, so that what a chunk needs on the way stays near the processor; a matrix may be larger."""


def map_batch(function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """``function(batch)`` for a function that treats the N matrices of ``(N, m, n)`` one by one.

    An accelerator has its own batched routines and a gradient is recorded in the calling thread: both get one call.
    """
    workers = torch.get_num_threads()
    if workers == 1 or batch.requires_grad or batch.device.type != "cpu" or len(batch) < 2:
        return function(batch)
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return torch.cat(list(pool.map(function, batch.split(_chunk_size(batch, workers)))))
    finally:
        torch.set_num_threads(workers)  # a worker's setting is its own, but later threads would inherit it


def _chunk_size(batch: Tensor, workers: int) -> int:
    """Matrices in a chunk."""
    return max(1, min(-(-len(batch) // (CHUNKS_PER_WORKER * workers)), CHUNK_ELEMENTS // max(1, batch[0].numel())))
