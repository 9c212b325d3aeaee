"""Unconstrained parts with the signatures of ours, for comparison of accuracy and speed."""

from __future__ import annotations

from torch import nn


def unconstrained_conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    *,
    input_size: int | tuple[int, int] | None = None,
) -> nn.Conv2d:
    """Plain convolution with zero padding and its native stride, halving or keeping the image size as ours does."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=(kernel_size - stride + 1) // 2)


unconstrained_linear = nn.Linear
