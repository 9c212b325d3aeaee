"""Convolution (cross-correlation) on the torus, and its exact adjoint.

    y[o, p] = sum_{i, a} K[o, i, a] x[i, p + a - c],        c = floor(k / 2), indices modulo the image size,

that is, ``k // 2`` pixels are borrowed before and ``(k - 1) // 2`` after.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def padding(kernel_size: int) -> tuple[int, int]:
    """Pixels borrowed before and after: ``(k // 2, k // 2 - (k even))``.

    >>> padding(3), padding(2)
    ((1, 1), (1, 0))
    """
    return kernel_size // 2, (kernel_size - 1) // 2


class _CircularPad(torch.autograd.Function):
    """The adjoint adds the borders back in place, which is several times faster than recording slices and copies."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, before: int, after: int) -> Tensor:
        ctx.widths = before, after
        for dim in (-2, -1):
            size = x.shape[dim]
            x = torch.cat([x.narrow(dim, size - before, before), x, x.narrow(dim, 0, after)], dim)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        before, after = ctx.widths
        for dim in (-1, -2):
            size = grad.shape[dim] - before - after
            inner = grad.narrow(dim, before, size).clone()
            inner.narrow(dim, size - before, before).add_(grad.narrow(dim, 0, before))
            inner.narrow(dim, 0, after).add_(grad.narrow(dim, before + size, after))
            grad = inner
        return grad, None, None


def pad(x: Tensor, before: int, after: int) -> Tensor:
    """Continue an image (B, C, h, w) periodically by ``before`` and ``after`` pixels along both axes.

    >>> pad(torch.arange(4.0).reshape(1, 1, 2, 2), 1, 0)[0, 0].tolist()
    [[3.0, 2.0, 3.0], [1.0, 0.0, 1.0], [3.0, 2.0, 3.0]]
    """
    return _CircularPad.apply(x, before, after) if before or after else x


def conv2d(x: Tensor, K: Tensor) -> Tensor:
    """Circular convolution of ``x`` (B, ci, h, w) with ``K`` (co, ci, k, k): shape (B, co, h, w)."""
    before, after = padding(K.shape[-1])
    return F.conv2d(pad(x, before, after), K)


def conv2d_adjoint(y: Tensor, K: Tensor) -> Tensor:
    """Adjoint of :func:`conv2d`: ``<conv2d(x, K), y> = <x, conv2d_adjoint(y, K)>``.

    ``y`` is (B, co, h, w), the result (B, ci, h, w): a convolution with the transposed, flipped kernel, and the padding
    exchanged.
    """
    before, after = padding(K.shape[-1])
    return F.conv2d(pad(y, after, before), K.transpose(0, 1).flip(2, 3))
