"""A convolution on the torus, frequency by frequency (Sedghi, Gupta & Long 2019).

    K_hat(w) = sum_a K[:, :, a] exp(-i <w, a>),        w = 2 pi (u / height, v / width),

on the half plane v <= width / 2; the rest is conjugate, as K is real. No image is too small for a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor


def phases(size: tuple[int, int], taps: tuple[int, int], step: int) -> Iterator[Tensor]:
    """``exp(-i <w, a>)``, one row a frequency and one column a tap: ``(height (width // 2 + 1), kh kw)``, complex, so
    many rows at a time.

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
    """A kernel ``(co, ci, kh, kw)`` as one row a tap, ``(kh kw, co ci)``."""
    return K.flatten(2).permute(2, 0, 1).flatten(1)


def transfer_matrices(K: Tensor, size: tuple[int, int]) -> Tensor:
    """``K_hat``, ``(height (width // 2 + 1), co, ci)``, complex, of the precision of K: one axis after the other.

    For the few taps of a kernel, two products are faster than the transform of a kernel filled up to the image.

    Raises:
        ValueError: for an image without pixels.

    >>> transfer_matrices(torch.ones(1, 1, 2, 1), (2, 1)).real.flatten().tolist()
    [2.0, 0.0]
    """
    taps = by_taps(K).to(K.dtype.to_complex()).unflatten(0, K.shape[2:])
    rows, columns = (axis.to(taps) for axis in _axes(size, (K.shape[2], K.shape[3])))
    return (rows @ (columns @ taps).flatten(1)).reshape(-1, *K.shape[:2])
