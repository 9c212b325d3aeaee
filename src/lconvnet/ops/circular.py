"""Convolution (cross-correlation) on the torus, its exact adjoint, and strides as a rearrangement of the kernel.

    y[o, p] = sum_{i, a} K[o, i, a] x[i, s p + a - b],        b = s floor(k / 2s), indices modulo the image size,

for a stride s that divides k. The image is extended by ``s (k/s // 2)`` pixels before and ``s ((k/s - 1) // 2)`` after.
On the torus the adjoint is again a padded convolution. So the gradient of the image pads the smaller gradient of the
output and never forms the gradient of the padded image.

A strided convolution is one of stride 1 on the pixel-unshuffled image, with the rearranged kernel

    K'[o, (i, r), q] = K[o, i, s q + r],        r in {0..s-1}^2.

Both have the same singular values, so a stride needs no unshuffling and makes no bound looser.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lconvnet.ops.derivatives import plain_call


def padding(kernel_size: int, stride: int = 1) -> tuple[int, int]:
    """Pixels added before and after.

    >>> padding(3), padding(2), padding(4, stride=2)
    ((1, 1), (1, 0), (2, 0))
    """
    taps = kernel_size // stride
    return stride * (taps // 2), stride * ((taps - 1) // 2)


def memory_format(x: Tensor) -> torch.memory_format:
    """Channels last on a CPU: its convolutions would otherwise copy into that layout and back."""
    return torch.channels_last if x.device.type == "cpu" else torch.contiguous_format


def pad(x: Tensor, before: int, after: int) -> Tensor:
    """Continue an image (B, C, h, w) periodically by ``before`` and ``after`` pixels along both axes, in one copy.

    >>> pad(torch.arange(4.0).reshape(1, 1, 2, 2), 1, 0)[0, 0].tolist()
    [[3.0, 2.0, 3.0], [1.0, 0.0, 1.0], [3.0, 2.0, 3.0]]
    """
    if not plain_call(x):
        return _continued(_continued(x, before, after, 2), before, after, 3)
    layout = memory_format(x)
    if not before and not after:
        return x.contiguous(memory_format=layout)
    batch, channels, height, width = x.shape
    shape = (batch, channels, height + before + after, width + before + after)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
    rows = y.narrow(2, before, height)
    rows.narrow(3, before, width).copy_(x)
    rows.narrow(3, 0, before).copy_(x.narrow(3, width - before, before))
    rows.narrow(3, before + width, after).copy_(x.narrow(3, 0, after))
    y.narrow(2, 0, before).copy_(rows.narrow(2, height - before, before))
    y.narrow(2, before + height, after).copy_(rows.narrow(2, 0, after))
    return y


def _continued(x: Tensor, before: int, after: int, dim: int) -> Tensor:
    """One axis of :func:`pad`, without writing in place."""
    return torch.cat([x.narrow(dim, x.shape[dim] - before, before), x, x.narrow(dim, 0, after)], dim)


class _Conv2d(torch.autograd.Function):
    """Also returns the padded image, so that a second derivative can pass from it to the image."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, K: Tensor, bias: Tensor | None, stride: int) -> tuple[Tensor, Tensor]:
        padded = pad(x, *padding(K.shape[-1], stride))
        ctx.save_for_backward(padded, K)
        ctx.set_materialize_grads(False)
        ctx.stride = stride
        return F.conv2d(padded, K, bias, stride), padded

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_padded: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        padded, K = ctx.saved_tensors
        image, *parameters = ctx.needs_input_grad[:3]
        dx = _image_gradient(grad, grad_padded, K, ctx.stride) if image else None
        return dx, *_parameter_gradients(grad, padded, K, ctx.stride, parameters), None


def _image_gradient(grad: Tensor | None, grad_padded: Tensor | None, K: Tensor, stride: int) -> Tensor | None:
    dx = None if grad is None else conv2d_adjoint(grad, K, stride)
    if grad_padded is None:
        return dx
    before, after = padding(K.shape[-1], stride)
    height, width = grad_padded.shape[-2:]
    image = grad_padded[..., before : height - after, before : width - after]
    folded = torch.func.vjp(lambda x: pad(x, before, after), image)[1](grad_padded)[0]
    return folded if dx is None else dx + folded


def _parameter_gradients(
    grad: Tensor | None, padded: Tensor, K: Tensor, stride: int, wanted: list[bool]
) -> tuple[Tensor | None, Tensor | None]:
    if grad is None or not any(wanted):
        return None, None
    if plain_call(grad):
        grad = grad.contiguous(memory_format=memory_format(grad))
    strides, nothing, ones = [stride, stride], [0, 0], [1, 1]
    _, dK, dbias = torch.ops.aten.convolution_backward(
        grad, padded, K, [K.shape[0]], strides, nothing, ones, False, nothing, 1, [False, *wanted]
    )
    return dK, dbias


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast an argument of a convolution as autocast does."""
    return x if x.dtype == torch.float64 else x.to(dtype)


def conv2d(x: Tensor, K: Tensor, bias: Tensor | None = None, stride: int = 1) -> Tensor:
    """Circular convolution.

    Args:
        x: ``(B, ci, h, w)``, sides at least k and multiples of the stride.
        K: ``(co, ci, k, k)``, k a multiple of the stride.
        bias: ``(co,)`` or None.
        stride: s.

    Returns:
        ``(B, co, h / s, w / s)``; on a CPU, channels last in memory.

    >>> conv2d(torch.arange(4.0).reshape(1, 1, 2, 2), torch.ones(1, 1, 2, 2)).flatten().tolist()
    [6.0, 6.0, 6.0, 6.0]
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, K, bias = _cast(x, dtype), _cast(K, dtype), None if bias is None else _cast(bias, dtype)
    sides = padding(K.shape[-1], stride)
    if not any(sides) or not plain_call(x, K, bias):
        return F.conv2d(pad(x, *sides), K, bias, stride)
    return _Conv2d.apply(x, K, bias, stride)[0]


def conv2d_adjoint(y: Tensor, K: Tensor, stride: int = 1) -> Tensor:
    """Adjoint of :func:`conv2d` without bias: ``<conv2d(x, K), y> = <x, conv2d_adjoint(y, K)>``.

    ``y`` is (B, co, h / s, w / s) and the result (B, ci, h, w). It is the transposed convolution of ``y`` with the two
    paddings exchanged, cropped by the k - s extra rows and columns at either end.
    """
    before, after = padding(K.shape[-1], stride)
    return F.conv_transpose2d(pad(y, after // stride, before // stride), K, stride=stride, padding=K.shape[-1] - stride)


def to_strided(K: Tensor, stride: int) -> Tensor:
    """Kernel ``(co, ci s^2, k, k)`` on the unshuffled image to ``(co, ci, s k, s k)`` with stride s.

    Channels of the unshuffled image are ordered as in :class:`torch.nn.PixelUnshuffle`. On a CPU the result is channels
    last in memory, the layout that convolutions expect there.

    >>> to_strided(torch.zeros(6, 12, 2, 2), 2).shape
    torch.Size([6, 3, 4, 4])
    """
    if stride == 1:
        return K
    out_channels, channels, k, _ = K.shape
    # taps first, the order in which kernels are built: the gradient then arrives in that order and needs no copy
    phases = K.permute(2, 3, 0, 1).reshape(k, k, out_channels, channels // stride**2, stride, stride)
    if memory_format(K) == torch.contiguous_format:
        return phases.permute(2, 3, 0, 4, 1, 5).reshape(out_channels, -1, stride * k, stride * k)
    last = phases.permute(2, 0, 4, 1, 5, 3).reshape(out_channels, stride * k, stride * k, -1)
    return last.permute(0, 3, 1, 2)


def to_unshuffled(K: Tensor, stride: int | tuple[int, int]) -> Tensor:
    """Inverse of :func:`to_strided`. The two strides may differ; zeros extend each side to a multiple of its stride.

    >>> to_unshuffled(torch.zeros(6, 3, 3, 3), 2).shape, to_unshuffled(torch.zeros(6, 3, 3, 3), (1, 2)).shape
    (torch.Size([6, 12, 2, 2]), torch.Size([6, 6, 3, 2]))
    """
    down, across = stride if isinstance(stride, tuple) else (stride, stride)
    if max(down, across) == 1:
        return K
    K = F.pad(K, (0, -K.shape[-1] % across, 0, -K.shape[-2] % down))
    out_channels, in_channels, height, width = K.shape
    blocks = K.reshape(out_channels, in_channels, height // down, down, width // across, across)
    unshuffled = blocks.permute(0, 1, 3, 5, 2, 4)
    return unshuffled.reshape(out_channels, in_channels * down * across, height // down, width // across)


def is_conv2x2(x: Tensor, K: Tensor, stride: int) -> bool:
    """Whether an image (B, ci, h, w) unshuffled by a stride has 2 x 2 pixels, and the kernel 2 x 2 taps.

    >>> x = torch.zeros(1, 3, 4, 4)
    >>> is_conv2x2(x, torch.zeros(8, 12, 2, 2), stride=2), is_conv2x2(x, torch.zeros(8, 3, 2, 2), stride=1)
    (True, False)
    """
    return x.shape[-2:] == (2 * stride, 2 * stride) and K.shape[-2:] == (2, 2)


def conv2x2(x: Tensor, K: Tensor, bias: Tensor | None = None, stride: int = 1) -> Tensor:
    """:func:`conv2d` on the torus of 2 x 2 pixels: four matrix products, after a change of signs.

    The characters of Z_2 x Z_2 are ``chi_f(p) = (-1)^{f . p}``. With ``S = (chi_f(p))``, for which ``S S^T = 4 I``,

        y[p] = b + sum_a K[a] x[p + a - 1]    becomes    (S y)_f = 4 b [f = 0] + (sum_a chi_f(a - 1) K[a]) (S x)_f,

    one product per frequency. A critic's last convolution has this size. It can be differentiated any number of times;
    under autocast the products are in half precision.

    Args:
        x: ``(B, ci, 2 s, 2 s)``.
        K: ``(co, ci s^2, 2, 2)``, the kernel on the unshuffled image.
        bias: ``(co,)`` or None.
        stride: s.

    Returns:
        ``(B, co, 2, 2)``, pixels first in memory.

    >>> conv2x2(torch.arange(4.0).reshape(1, 1, 2, 2), torch.ones(1, 1, 2, 2)).flatten().tolist()
    [6.0, 6.0, 6.0, 6.0]
    """
    out_channels, channels = K.shape[:2]
    batch = x.shape[0]  # not len(x): a recorded graph would treat it as a constant
    pixels = x.reshape(batch, channels // stride**2, 2, stride, 2, stride).permute(2, 4, 0, 1, 3, 5)
    S = _signs(x)
    u = _mix(S, pixels, batch, channels)
    A = _mix(S.flip(1), K.permute(2, 3, 0, 1), out_channels, channels)
    y = _mix(S / 4, u @ A.mT, batch, out_channels)
    y = y if bias is None else y + bias.to(y.dtype)
    return y.reshape(2, 2, batch, out_channels).permute(2, 3, 0, 1)


def _signs(like: Tensor) -> Tensor:
    """The matrix S, built on the device so that nothing is copied to it."""
    index = torch.arange(4, device=like.device)
    common = index[:, None] & index
    return (1 - 2 * ((common ^ (common >> 1)) & 1)).to(like.dtype)


def _mix(S: Tensor, pixels: Tensor, rows: int, columns: int) -> Tensor:
    """Combine four matrices, the first axis (or the first two of size 2), with the rows of S."""
    return (S @ pixels.reshape(4, -1)).reshape(4, rows, columns)
