"""Unconstrained parts with the signatures of ours, for comparison of accuracy and speed, and a critic of them."""

from __future__ import annotations

from functools import partial

from torch import nn

from lconvnet.models.common import conv_stack, dcgan_layout, dense_stack


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
leaky_relu = partial(nn.LeakyReLU, 0.2)


def unconstrained_critic(in_channels: int, image_size: int | tuple[int, int], width: int = 64) -> nn.Sequential:
    """The DCGAN discriminator without batch normalisation and sigmoid: what WGAN and WGAN-GP train.

    Four 4x4 convolutions of stride 2 with `width`, 2, 4 and 8 times as many channels, LeakyReLU(0.2) after each, one
    dense output (Radford et al. 2016). Gulrajani et al. 2017 (section 4) leave the normalisation out, for their
    penalty is about one image at a time.

    Args:
        in_channels: channels of the image.
        image_size: side or (height, width); extended by zeros to a multiple of 16, and to 32 at least.
        width: channels of the first convolution; 64 is `models.dcgan_critic` without constraints.

    >>> import torch
    >>> unconstrained_critic(3, 32, width=8)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 1])
    """
    layers, features = conv_stack(
        in_channels, image_size, dcgan_layout(width), conv=unconstrained_conv, activation=leaky_relu
    )
    return nn.Sequential(layers | dense_stack(features, (), 1, linear=unconstrained_linear, activation=leaky_relu))
