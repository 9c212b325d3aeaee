"""Baselines for our networks: unconstrained parts with the signatures of ours, and published networks.

**KW**, Wong, Schmidt, Metzen & Kolter, "Scaling provable adversarial defenses" (NeurIPS 2018): unconstrained
convolutions with zero padding and ReLU, and for CIFAR-10 an input normalisation. That is part of the network here, so
images are in [0, 1] and radii are l2 in pixels. Linear bounds prove their robustness (`lconvnet.bounds.linear`); the
product of the layers' norms proves almost nothing for them.

**QW**, Qian & Wegman, "L2-nonexpansive neural networks" (ICLR 2019), models 3 and 4: one network, which model 4 also
trains on adversarial images. Convolutions and dense layers divide their weight by a bound on its norm
(kernels/rkl2ne.py). Two-sided ReLU and norm-pooling follow, and a separate small dense network per class. So each logit
alone is 1-Lipschitz, a pair of logits has the constant sqrt(2), their difference the constant 2, and the certified
radius is r = min_j (f_i - f_j) / 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn

from lconvnet.kernels.base import require_positive
from lconvnet.layers import Concat, L2NELinear, Normalize, NormPool, RKL2NEConv2d, Sum, TwoSidedReLU
from lconvnet.models.networks import (
    Layers,
    Part,
    dcgan_critic,
    dense_stack,
    image_sides,
    large_convnet,
    padded,
    small_convnet,
)
from lconvnet.ops.numbers import Number, PositiveFloat, PositiveInt

CIFAR10_MEAN = (0.485, 0.456, 0.406)
CIFAR10_STD = (0.225, 0.225, 0.225)
BLOCKS = ((16, 1), (16, 1), (32, 2), (64, 2))  # of KW's ResNet: channels and stride
POOL = 2


def unconstrained_conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    *,
    input_size: int | tuple[int, int] | None = None,
) -> nn.Conv2d:
    """Plain convolution with zero padding and an ordinary stride. Its output has the same size as ours."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=(kernel_size - stride + 1) // 2)


unconstrained_linear = nn.Linear
leaky_relu = partial(nn.LeakyReLU, 0.2)
zero_padded_conv = partial(RKL2NEConv2d, padding_mode="zeros")


def unconstrained_critic(in_channels: int, image_size: int | tuple[int, int], width: int = 64) -> nn.Sequential:
    """The DCGAN discriminator without batch normalisation and sigmoid, the critic of WGAN and WGAN-GP.

    It is `models.dcgan_critic` without constraints and with LeakyReLU(0.2) (Radford et al. 2016). Gulrajani et al. 2017
    (section 4) omit the normalisation because their penalty treats each image alone.

    >>> import torch
    >>> unconstrained_critic(3, 32, width=8)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 1])
    """
    parts = {"conv": unconstrained_conv, "linear": unconstrained_linear, "activation": leaky_relu}
    return dcgan_critic(in_channels, image_size, width=width, **parts)


def kw_small(
    in_channels: int,
    image_size: int | tuple[int, int],
    classes: int,
    *,
    mean: Sequence[Number] | None = None,
    std: Sequence[PositiveFloat] | None = None,
) -> nn.Sequential:
    """Two convolutions (16, 32 channels, 4x4, stride 2), then dense 100 and the classes.

    Args:
        in_channels: channels of the image.
        image_size: side or (height, width), extended by zeros to a multiple of 4, at least 8.
        classes: number of logits.
        mean, std: input normalisation, one number per channel; None for none. The published networks for CIFAR-10 use
            `CIFAR10_MEAN` and `CIFAR10_STD`.

    >>> import torch
    >>> kw_small(3, 32, 10, mean=CIFAR10_MEAN, std=CIFAR10_STD)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    body = small_convnet(in_channels, image_size, classes, **_UNCONSTRAINED)
    return _normalized(mean, std, body)


def kw_large(
    in_channels: int,
    image_size: int | tuple[int, int],
    classes: int,
    *,
    mean: Sequence[Number] | None = None,
    std: Sequence[PositiveFloat] | None = None,
) -> nn.Sequential:
    """Four convolutions (32, 32, 64, 64 channels), then dense 512, 512 and the classes; arguments as in `kw_small`.

    >>> import torch
    >>> kw_large(1, 28, 10)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    body = large_convnet(in_channels, image_size, classes, **_UNCONSTRAINED)
    return _normalized(mean, std, body)


def kw_resnet(
    in_channels: int,
    image_size: int | tuple[int, int],
    classes: int,
    *,
    mean: Sequence[Number] | None = None,
    std: Sequence[PositiveFloat] | None = None,
) -> nn.Sequential:
    """A 3x3 convolution, four residual blocks (16, 16, 32, 64 channels; the last two halve the image), dense 1000 and
    the classes; arguments as in `kw_small`, image sides multiples of 4.

    A block is ``relu(shortcut(x) + conv(relu(conv(x))))``. Its shortcut is a 1x1 convolution, or a 2x2 one of stride 2.

    >>> import torch
    >>> kw_resnet(3, 8, 10)(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 10])
    """
    height, width = image_sides(image_size)
    if height % 4 or width % 4:
        raise ValueError(f"image_size={image_size!r}: the two strides of a KW ResNet need multiples of 4")
    layers = Layers(conv=nn.Conv2d(in_channels, 16, 3, padding=1), relu=nn.ReLU())
    before = 16
    for index, (channels, stride) in enumerate(BLOCKS, start=1):
        layers[f"block{index}"] = _block(before, channels, stride)
        layers[f"block{index}_relu"] = nn.ReLU()
        before = channels
    layers["flatten"] = nn.Flatten()
    features = before * (height // 4) * (width // 4)
    layers |= dense_stack(features, (1000,), classes, linear=unconstrained_linear, activation=nn.ReLU)
    return _normalized(mean, std, nn.Sequential(layers))


_UNCONSTRAINED = {"conv": unconstrained_conv, "linear": unconstrained_linear, "activation": nn.ReLU}


def _block(before: int, channels: int, stride: int) -> Sum:
    """Shortcut first, then the two convolutions, the first of them 4x4 if it halves the image."""
    body = Layers(conv1=nn.Conv2d(before, channels, stride + 2, stride, padding=1), relu=nn.ReLU())
    body["conv2"] = nn.Conv2d(channels, channels, 3, padding=1)
    shortcut = Layers(conv=nn.Conv2d(before, channels, stride, stride))  # initialised last
    return Sum(nn.Sequential(shortcut), nn.Sequential(body))


def _normalized(mean: Sequence[float] | None, std: Sequence[float] | None, body: nn.Sequential) -> nn.Sequential:
    if mean is None and std is None:
        return body
    if mean is None or std is None:
        raise ValueError(f"mean={mean!r}, std={std!r}: give both or neither")
    return nn.Sequential(Layers(normalize=Normalize(mean, std)) | Layers(body.named_children()))


def qw_convnet(
    in_channels: int,
    image_size: int | tuple[int, int],
    classes: int,
    channels: Sequence[PositiveInt] = (32, 64),
    hidden: PositiveInt = 32,
    kernel_size: PositiveInt = 5,
    *,
    conv: Part = zero_padded_conv,
    linear: Part = L2NELinear,
) -> nn.Sequential:
    """Convolutions with two-sided ReLU and 2x2 norm-pooling, then one hidden dense layer per class.

    Args:
        in_channels: channels of the image.
        image_size: side or (height, width), extended by zeros so that every pooling divides it.
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
    layers, (height, width) = padded(image_size, multiple, kernel_size * multiple // POOL)
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
        Layers(linear1=linear(features, hidden), activation=TwoSidedReLU(), linear2=linear(2 * hidden, 1))
    )
