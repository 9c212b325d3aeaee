"""A convolution on the torus, frequency by frequency (Sedghi, Gupta & Long 2019), and its singular values.

    K_hat(w) = sum_a K[:, :, a] exp(-i <w, a>),        w = 2 pi (u / height, v / width),

on the half plane v <= width / 2; the rest is conjugate because K is real. The image may be smaller than the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

WELL_CONDITIONED = 1e-8
"""Least ratio of the extreme eigenvalues at which a Gram matrix gives the singular values without real loss."""

CHUNKS_PER_WORKER = 4  # at least: then workers finish together even if some matrices take longer
CHUNK_ELEMENTS = 2**19  # at most, so that a chunk fits into the cache; a single matrix may be larger


def phases(size: tuple[int, int], taps: tuple[int, int], step: int) -> Iterator[Tensor]:
    """``exp(-i <w, a>)``, complex, ``(height (width // 2 + 1), kh kw)``: one row per frequency, `step` rows at a time.

    >>> [chunk.real.tolist() for chunk in phases((2, 1), (2, 1), 2)]
    [[[1.0, 1.0], [1.0, -1.0]]]
    """
    rows, columns = _axes(size, taps)
    for start in range(0, len(rows) * len(columns), step):
        places = torch.arange(start, min(start + step, len(rows) * len(columns)))
        u, v = places // len(columns), places % len(columns)
        yield (rows[u, :, None] * columns[v, None, :]).flatten(1)


def _axes(size: tuple[int, int], taps: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The factors of a phase along height and width, frequencies by taps."""
    if min(size) < 1:
        raise ValueError(f"size={size}: an image has at least one pixel")
    height, width = size
    return _powers(height, height, taps[0]), _powers(width, width // 2 + 1, taps[1])


def _powers(period: int, count: int, taps: int) -> Tensor:
    """``exp(-2 pi i u a / period)`` for u < count and a < taps; angles are reduced in integers first."""
    turns = (torch.arange(count)[:, None] * torch.arange(taps)[None, :] + period // 2) % period - period // 2
    angles = 2 * math.pi * (turns.double() / period)
    return torch.complex(torch.cos(angles), -torch.sin(angles))


def by_taps(K: Tensor) -> Tensor:
    """A kernel ``(co, ci, kh, kw)`` as one row per tap, ``(kh kw, co ci)``."""
    return K.flatten(2).permute(2, 0, 1).flatten(1)


def transfer_matrices(K: Tensor, size: tuple[int, int]) -> Tensor:
    """``K_hat``, ``(height (width // 2 + 1), co, ci)``, complex, in the precision of K.

    One product per axis: for few taps this is faster than the Fourier transform of a kernel padded to the image.

    Raises:
        ValueError: for an image without pixels.

    >>> transfer_matrices(torch.ones(1, 1, 2, 1), (2, 1)).real.flatten().tolist()
    [2.0, 0.0]
    """
    taps = by_taps(K).to(K.dtype.to_complex()).unflatten(0, K.shape[2:])
    rows, columns = (axis.to(taps) for axis in _axes(size, (K.shape[2], K.shape[3])))
    return (rows @ (columns @ taps).flatten(1)).reshape(-1, *K.shape[:2])


def circular_singular_values(K: Tensor, size: tuple[int, int]) -> Tensor:
    """All singular values of the circular convolution on an h x w image, descending.

    Args:
        K: kernel ``(co, ci, k, k)``; evaluated in float64.
        size: image size (h, w).

    Returns:
        Float64 tensor of ``h w min(co, ci)`` values, not rounded outward. The error is at most ``1e4 n eps / 2`` of the
        largest, n = min(co, ci), and typically round-off.

    >>> circular_singular_values(torch.ones(1, 1, 2, 2) / 4, (2, 2)).round(decimals=12).tolist()
    [1.0, 0.0, 0.0, 0.0]
    """
    values = map_batch(_singular_values, transfer_matrices(K.double(), size)).unflatten(0, (size[0], -1))
    mirrored = values[:, 1 : (size[1] + 1) // 2]
    return torch.cat([values.flatten(), mirrored.flatten()]).sort(descending=True).values


def _singular_values(A: Tensor) -> Tensor:
    """Singular values of ``(N, m, n)`` matrices, unordered: roots of the eigenvalues of the smaller Gram matrix.

    Several times faster than a decomposition of A. An eigenvalue is off by at most ``n eps`` of the largest, so its
    root by ``n eps cond(A) / 2``. If the condition number exceeds 1e4, A itself is decomposed.
    """
    scale = A.abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    A = A / scale
    S = A @ A.mH if A.shape[-2] <= A.shape[-1] else A.mH @ A
    eigenvalues = torch.linalg.eigvalsh(S)
    doubtful = ~(eigenvalues[:, 0] > WELL_CONDITIONED * eigenvalues[:, -1])
    values = eigenvalues.masked_fill(doubtful[:, None], 1).sqrt()
    return scale[..., 0] * values.index_put((doubtful,), torch.linalg.svdvals(A[doubtful]))


def map_batch(function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """``function(batch)`` for a function that treats the N matrices of ``(N, m, n)`` one by one, one thread each.

    A decomposition of a few hundred rows gains nothing from a second thread, so the threads share the batch. An
    accelerator has batched routines, and a gradient is recorded in the calling thread: both get one call.
    """
    workers = torch.get_num_threads()
    if workers == 1 or batch.requires_grad or batch.device.type != "cpu" or len(batch) < 2:
        return function(batch)
    size = min(-(-len(batch) // (CHUNKS_PER_WORKER * workers)), CHUNK_ELEMENTS // max(1, batch[0].numel()))
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return torch.cat(list(pool.map(function, batch.split(max(1, size)))))
    finally:
        torch.set_num_threads(workers)  # each worker has its own setting, but later threads would inherit it
