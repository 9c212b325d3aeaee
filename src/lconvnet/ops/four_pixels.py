"""Circular convolution of 2 x 2 taps on the torus of 2 x 2 pixels, where signs make it four products.

The characters of Z_2 x Z_2 are ``chi_f(p) = (-1)^{f . p}``. With ``S = (chi_f(p))``, for which ``S S^T = 4 I``,

    y[p] = b + sum_a K[a] x[p + a - 1]      becomes      (S y)_f = 4 b [f = 0] + (sum_a chi_f(a - 1) K[a]) (S x)_f,

one product of matrices a frequency in place of four. A critic's last convolution is one of these.
"""

from __future__ import annotations

import torch
from torch import Tensor


def covers(x: Tensor, K: Tensor, stride: int) -> bool:
    """Whether an image (B, ci, h, w), unshuffled by a stride, has 2 x 2 pixels and the kernel as many taps.

    >>> x = torch.zeros(1, 3, 4, 4)
    >>> covers(x, torch.zeros(8, 12, 2, 2), stride=2), covers(x, torch.zeros(8, 3, 2, 2), stride=1)
    (True, False)
    """
    return x.shape[-2:] == (2 * stride, 2 * stride) and K.shape[-2:] == (2, 2)


def conv2d(x: Tensor, K: Tensor, bias: Tensor | None = None, stride: int = 1) -> Tensor:
    """The map of :func:`lconvnet.ops.circular.conv2d` where :func:`covers` holds, K being of the unshuffled image.

    Any number of derivatives; under autocast its products are in half precision.

    Args:
        x: ``(B, ci, 2 s, 2 s)``.
        K: ``(co, ci s^2, 2, 2)``, channels ordered as in :class:`torch.nn.PixelUnshuffle`.
        bias: ``(co,)`` or None.
        stride: s.

    Returns:
        ``(B, co, 2, 2)``, in memory pixels first.

    >>> conv2d(torch.arange(4.0).reshape(1, 1, 2, 2), torch.ones(1, 1, 2, 2)).flatten().tolist()
    [6.0, 6.0, 6.0, 6.0]
    """
    out_channels, channels = K.shape[:2]
    batch = x.shape[0]  # not len(x), which a recorded graph takes for a constant
    pixels = x.reshape(batch, channels // stride**2, 2, stride, 2, stride).permute(2, 4, 0, 1, 3, 5)
    S = _signs(x)
    u = _mix(S, pixels, batch, channels)
    A = _mix(S.flip(1), K.permute(2, 3, 0, 1), out_channels, channels)
    y = _mix(S / 4, u @ A.mT, batch, out_channels)
    y = y if bias is None else y + bias.to(y.dtype)
    return y.reshape(2, 2, batch, out_channels).permute(2, 3, 0, 1)


def _signs(like: Tensor) -> Tensor:
    """The matrix S, made on the device so that nothing is copied to it."""
    index = torch.arange(4, device=like.device)
    common = index[:, None] & index
    return (1 - 2 * ((common ^ (common >> 1)) & 1)).to(like.dtype)


def _mix(S: Tensor, pixels: Tensor, rows: int, columns: int) -> Tensor:
    """Combine four matrices, the first axis (or the first two of size 2), with the rows of S."""
    return (S @ pixels.reshape(4, -1)).reshape(4, rows, columns)
