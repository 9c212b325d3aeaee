"""What the networks share: callables for their parts, and image sizes that any stride accepts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import accumulate
from operator import mul

from torch import nn

from lconvnet.kernels.base import require_positive

Part = Callable[..., nn.Module]


def dcgan_layout(width: int) -> tuple[tuple[int, int, int], ...]:
    """Four 4x4 convolutions of stride 2 with `width`, 2, 4 and 8 times as many channels (Radford et al. 2016)."""
    require_positive(width=width)
    return tuple((width * factor, 4, 2) for factor in (1, 2, 4, 8))


def image_sides(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width from one side or two, refusing what is no image."""
    height, width = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    require_positive(image_height=height, image_width=width)
    return height, width


def padded_sides(sides: tuple[int, int], multiple: int, smallest: int) -> tuple[int, int]:
    """The sides rounded up to a multiple that is at least the smallest one every kernel fits into."""
    height, width = (-(-max(side, smallest) // multiple) * multiple for side in sides)
    return height, width


def zero_padding(sides: tuple[int, int], padded: tuple[int, int]) -> OrderedDict[str, nn.Module]:
    """The layer that extends an image by zeros, an isometry, where its sides need it; else nothing."""
    rows, columns = padded[0] - sides[0], padded[1] - sides[1]
    if not rows and not columns:
        return OrderedDict()
    pad = nn.ZeroPad2d((columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
    return OrderedDict(pad=pad)


def conv_stack(
    in_channels: int,
    image_size: int | tuple[int, int],
    layout: tuple[tuple[int, int, int], ...],
    *,
    conv: Part,
    activation: Part,
) -> tuple[OrderedDict[str, nn.Module], int]:
    """Convolutions given as (channels, kernel size, stride), an activation after each, and a flattening.

    Returns:
        The named layers and the number of features they end with.
    """
    require_positive(in_channels=in_channels)
    strides = [1, *accumulate((stride for _, _, stride in layout), mul)]
    smallest = max(kernel_size * before for (_, kernel_size, _), before in zip(layout, strides, strict=False))
    sides = image_sides(image_size)
    padded = padded_sides(sides, strides[-1], smallest)
    layers = zero_padding(sides, padded)
    height, width = padded
    for index, (channels, kernel_size, stride) in enumerate(layout, start=1):
        layers[f"conv{index}"] = conv(in_channels, channels, kernel_size, stride, input_size=(height, width))
        layers[f"conv{index}_activation"] = activation()
        in_channels, height, width = channels, height // stride, width // stride
    layers["flatten"] = nn.Flatten()
    return layers, in_channels * height * width


def dense_stack(
    features: int, widths: tuple[int, ...], classes: int, *, linear: Part, activation: Part
) -> OrderedDict[str, nn.Module]:
    """Dense layers of the given widths, an activation after each, and a last one to the classes."""
    require_positive(classes=classes)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, width in enumerate(widths, start=1):
        layers[f"linear{index}"] = linear(features, width)
        layers[f"linear{index}_activation"] = activation()
        features = width
    layers[f"linear{len(widths) + 1}"] = linear(features, classes)
    return layers
