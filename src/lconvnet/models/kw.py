"""The networks of Wong, Schmidt, Metzen & Kolter, "Scaling provable adversarial defenses" (NeurIPS 2018): KW.

Unconstrained convolutions with zero padding, ReLU, and for CIFAR-10 an input normalisation, which is part of the
network here: images are in [0, 1], and radii are l2 in pixels. Small and Large are `models.small_convnet` and
`models.large_convnet` with those parts. Linear bounds prove their robustness (`lconvnet.bounds.linear`); the product of
the norms of the layers proves hardly anything for them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from lconvnet.layers import Normalize, Sum
from lconvnet.models.baselines import unconstrained_conv, unconstrained_linear
from lconvnet.models.common import dense_stack, image_sides
from lconvnet.models.networks import large_convnet, small_convnet

CIFAR10_MEAN = (0.485, 0.456, 0.406)
CIFAR10_STD = (0.225, 0.225, 0.225)
BLOCKS = ((16, 1), (16, 1), (32, 2), (64, 2))


def kw_small(
    in_channels: int,
    image_size: int | tuple[int, int],
    classes: int,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Sequential:
    """Two convolutions (16, 32 channels, 4x4, stride 2) and dense layers 100 and the classes.

    Args:
        in_channels: channels of the image.
        image_size: side or (height, width); extended by zeros to a multiple of 4, and to 8 at least.
        classes: number of logits.
        mean, std: input normalisation, one number a channel, `CIFAR10_MEAN` and `CIFAR10_STD` in the published networks
            for CIFAR-10; None for none.

    >>> import torch
    >>> kw_small(3, 32, 10, mean=CIFAR10_MEAN, std=CIFAR10_STD)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    body = small_convnet(
        in_channels, image_size, classes, conv=unconstrained_conv, linear=unconstrained_linear, activation=nn.ReLU
    )
    return _normalized(mean, std, body)


def kw_large(
    in_channels: int,
    image_size: int | tuple[int, int],
    classes: int,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Sequential:
    """Four convolutions (32, 32, 64, 64 channels) and dense layers 512, 512 and the classes; arguments as `kw_small`.

    >>> import torch
    >>> kw_large(1, 28, 10)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    body = large_convnet(
        in_channels, image_size, classes, conv=unconstrained_conv, linear=unconstrained_linear, activation=nn.ReLU
    )
    return _normalized(mean, std, body)


def kw_resnet(
    in_channels: int,
    image_size: int | tuple[int, int],
    classes: int,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Sequential:
    """A 3x3 convolution, four residual blocks (16, 16, 32, 64 channels; the last two halve the image), dense 1000 and
    the classes; arguments as `kw_small`, image sides multiples of 4.

    A block is ``relu(shortcut(x) + conv(relu(conv(x))))``, its shortcut a 1x1 convolution, or a 2x2 one of stride 2.

    >>> import torch
    >>> kw_resnet(3, 8, 10)(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 10])
    """
    height, width = image_sides(image_size)
    if height % 4 or width % 4:
        raise ValueError(f"image_size={image_size!r}: the two strides of a KW ResNet need multiples of 4")
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=nn.Conv2d(in_channels, 16, 3, padding=1), relu=nn.ReLU())
    before = 16
    for index, (channels, stride) in enumerate(BLOCKS, start=1):
        layers[f"block{index}"] = _block(before, channels, stride)
        layers[f"block{index}_relu"] = nn.ReLU()
        before = channels
    layers["flatten"] = nn.Flatten()
    features = before * (height // 4) * (width // 4)
    layers |= dense_stack(features, (1000,), classes, linear=unconstrained_linear, activation=nn.ReLU)
    return _normalized(mean, std, nn.Sequential(layers))


def _block(before: int, channels: int, stride: int) -> Sum:
    """Shortcut first, then the two convolutions; the first one is 4x4 where it halves the image."""
    body: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(before, channels, stride + 2, stride, padding=1),
        relu=nn.ReLU(),
        conv2=nn.Conv2d(channels, channels, 3, padding=1),
    )
    shortcut: OrderedDict[str, nn.Module] = OrderedDict(conv=nn.Conv2d(before, channels, stride, stride))
    return Sum(nn.Sequential(shortcut), nn.Sequential(body))


def _normalized(mean: Sequence[float] | None, std: Sequence[float] | None, body: nn.Sequential) -> nn.Sequential:
    if mean is None and std is None:
        return body
    if mean is None or std is None:
        raise ValueError(f"mean={mean!r}, std={std!r}: give both or neither")
    layers: OrderedDict[str, nn.Module] = OrderedDict(normalize=Normalize(mean, std))
    return nn.Sequential(layers | OrderedDict(body.named_children()))
