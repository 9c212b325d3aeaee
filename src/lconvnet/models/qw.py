"""The networks of Qian & Wegman, "L2-nonexpansive neural networks" (ICLR 2019): QW, their models 3 and 4.

Convolutions and dense layers whose weight is divided by a bound on its norm (kernels/rkl2ne.py), two-sided ReLU,
norm-pooling, and then a small dense network of its own for every class. So each logit alone is 1-Lipschitz, a pair of
logits has the constant sqrt(2), their difference the constant 2, and the certified radius is

    r = min_j (f_i - f_j) / 2.

Models 3 and 4 are one network, model 4 trained on adversarial images as well.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

from torch import nn

from lconvnet.kernels.base import require_positive
from lconvnet.layers import Concat, L2NELinear, NormPool, RKL2NEConv2d, TwoSidedReLU
from lconvnet.models.common import Part, image_sides, padded_sides, zero_padding

POOL = 2
zero_padded_conv = partial(RKL2NEConv2d, padding_mode="zeros")


def qw_convnet(
    in_channels: int,
    image_size: int | tuple[int, int],
    classes: int,
    channels: Sequence[int] = (32, 64),
    hidden: int = 32,
    kernel_size: int = 5,
    *,
    conv: Part = zero_padded_conv,
    linear: Part = L2NELinear,
) -> nn.Sequential:
    """Convolutions with two-sided ReLU and 2x2 norm-pooling, then a hidden dense layer for every class.

    Args:
        in_channels: channels of the image.
        image_size: side or (height, width); extended by zeros so that every pooling divides it.
        classes: number of logits.
        channels: of each convolution, before the activation doubles them.
        hidden: width of each class's hidden layer, before the activation doubles it.
        kernel_size: of the convolutions.

    >>> import torch
    >>> qw_convnet(1, 28, 10, channels=(4, 8), hidden=6)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    require_positive(in_channels=in_channels, classes=classes, hidden=hidden)
    multiple = POOL ** len(channels)
    sides = image_sides(image_size)
    height, width = padded = padded_sides(sides, multiple, kernel_size * multiple // POOL)
    layers = zero_padding(sides, padded)
    for index, count in enumerate(channels, start=1):
        layers[f"conv{index}"] = conv(in_channels, count, kernel_size, 1, input_size=(height, width))
        layers[f"conv{index}_activation"] = TwoSidedReLU()
        layers[f"conv{index}_pool"] = NormPool(POOL)
        in_channels, height, width = 2 * count, height // POOL, width // POOL
    layers["flatten"] = nn.Flatten()
    layers["classes"] = Concat(*(_logit(in_channels * height * width, hidden, linear) for _ in range(classes)))
    return nn.Sequential(layers)


def _logit(features: int, hidden: int, linear: Part) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(linear1=linear(features, hidden), activation=TwoSidedReLU(), linear2=linear(2 * hidden, 1))
    )
