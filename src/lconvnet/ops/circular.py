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
    """One copy of the image in each direction, and the borders by themselves."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, before: int, after: int) -> Tensor:
        ctx.widths = before, after
        height, width = x.shape[-2:]
        y = x.new_empty(*x.shape[:-2], height + before + after, width + before + after)
        rows = y.narrow(-2, before, height)
        rows.narrow(-1, before, width).copy_(x)
        rows.narrow(-1, 0, before).copy_(x.narrow(-1, width - before, before))
        rows.narrow(-1, before + width, after).copy_(x.narrow(-1, 0, after))
        y.narrow(-2, 0, before).copy_(rows.narrow(-2, height - before, before))
        y.narrow(-2, before + height, after).copy_(rows.narrow(-2, 0, after))
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        before, after = ctx.widths
        height = grad.shape[-2] - before - after
        inner = _fold_columns(grad.narrow(-2, before, height), before, after)
        if before:
            top = _fold_columns(grad.narrow(-2, 0, before), before, after)
            inner.narrow(-2, height - before, before).add_(top)
        if after:
            bottom = _fold_columns(grad.narrow(-2, before + height, after), before, after)
            inner.narrow(-2, 0, after).add_(bottom)
        return inner, None, None


def _fold_columns(grad: Tensor, before: int, after: int) -> Tensor:
    """Adjoint of the padding along the last axis, as a fresh tensor."""
    width = grad.shape[-1] - before - after
    inner = grad.narrow(-1, before, width).clone(memory_format=torch.contiguous_format)
    inner.narrow(-1, width - before, before).add_(grad.narrow(-1, 0, before))
    inner.narrow(-1, 0, after).add_(grad.narrow(-1, before + width, after))
    return inner


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
