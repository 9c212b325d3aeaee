"""Convolution (cross-correlation) on the torus, and its exact adjoint.

    y[o, p] = sum_{i, a} K[o, i, a] x[i, p + a - c],        c = floor(k / 2), indices modulo the image size,

that is, ``k // 2`` pixels are borrowed before and ``(k - 1) // 2`` after.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def padding(kernel_size: int) -> tuple[int, int]:
    """Pixels borrowed before and after: ``(k // 2, k // 2 - (k even))``.

    >>> padding(3), padding(2)
    ((1, 1), (1, 0))
    """
    return kernel_size // 2, (kernel_size - 1) // 2


def conv2d(x: Tensor, K: Tensor) -> Tensor:
    """Circular convolution of ``x`` (B, ci, h, w) with ``K`` (co, ci, k, k): shape (B, co, h, w)."""
    before, after = padding(K.shape[-1])
    return F.conv2d(F.pad(x, (before, after, before, after), mode="circular"), K)


def conv2d_adjoint(y: Tensor, K: Tensor) -> Tensor:
    """Adjoint of :func:`conv2d`: ``<conv2d(x, K), y> = <x, conv2d_adjoint(y, K)>``.

    ``y`` is (B, co, h, w), the result (B, ci, h, w): a convolution with the transposed, flipped kernel, and the padding
    exchanged.
    """
    before, after = padding(K.shape[-1])
    return F.conv2d(F.pad(y, (after, before, after, before), mode="circular"), K.transpose(0, 1).flip(2, 3))
