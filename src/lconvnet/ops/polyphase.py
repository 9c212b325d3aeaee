"""A strided convolution is a stride-1 convolution of the pixel-unshuffled image, with a rearranged kernel.

    K'[o, (i, r), q] = K[o, i, s q + r],        r in {0..s-1}^2.

Both have the same singular values, so a stride costs no unshuffling of the image and no looseness in a bound.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lconvnet.ops.circular import memory_format


def to_strided(K: Tensor, stride: int) -> Tensor:
    """Kernel ``(co, ci s^2, k, k)`` on the unshuffled image to ``(co, ci, s k, s k)`` with stride s.

    The channels of the unshuffled image are ordered as in :class:`torch.nn.PixelUnshuffle`. On a CPU the kernel comes
    with its channels last in memory, as the convolutions there take it.

    >>> to_strided(torch.zeros(6, 12, 2, 2), 2).shape
    torch.Size([6, 3, 4, 4])
    """
    if stride == 1:
        return K
    out_channels, channels, k, _ = K.shape
    # taps first, as kernels are made: the gradient then arrives in that order and is not copied again
    phases = K.permute(2, 3, 0, 1).reshape(k, k, out_channels, channels // stride**2, stride, stride)
    if memory_format(K) == torch.contiguous_format:
        return phases.permute(2, 3, 0, 4, 1, 5).reshape(out_channels, -1, stride * k, stride * k)
    last = phases.permute(2, 0, 4, 1, 5, 3).reshape(out_channels, stride * k, stride * k, -1)
    return last.permute(0, 3, 1, 2)


def to_unshuffled(K: Tensor, stride: int | tuple[int, int]) -> Tensor:
    """Inverse of :func:`to_strided`; a side that is no multiple of the stride is filled up with zeros. Strides along
    height and width may differ.

    >>> import torch
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
