"""The networks of the paper (Li et al. 2019, appendix) as functions of their parts, and a generator for the critic.

The functions call ``conv(in_channels, out_channels, kernel_size, stride, input_size=(h, w))``,
``linear(in_features, out_features)`` and ``activation()``. Every network is an ``nn.Sequential``. Zeros extend images
to sides that every stride divides, which is an isometry. The paper's dense layers are ``OrthogonalLinear``; the default
is as orthogonal, trains as well and costs a fraction.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import mul

from torch import Tensor, nn

from lconvnet.kernels.base import require_positive
from lconvnet.layers import BCOPConv2d, CholeskyLinear, MaxMin
from lconvnet.ops.numbers import PositiveInt

Part = Callable[..., nn.Module]
Layers = OrderedDict[str, nn.Module]

SMALL = ((16, 4, 2), (32, 4, 2))
LARGE = ((32, 3, 1), (32, 4, 2), (64, 3, 1), (64, 4, 2))
START = 4  # side of the image to which a generator projects its latent vector


def mlp(
    in_features: int,
    classes: int,
    widths: Sequence[PositiveInt] = (1024, 1024, 1024),
    *,
    linear: Part = CholeskyLinear,
    activation: Part = MaxMin,
) -> nn.Sequential:
    """Fully connected network on flattened images; with the default widths, the paper's FC-3.

    >>> import torch
    >>> mlp(784, 10, widths=(16, 16))(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    require_positive(in_features=in_features)
    dense = dense_stack(in_features, tuple(widths), classes, linear=linear, activation=activation)
    return nn.Sequential(Layers(flatten=nn.Flatten()) | dense)


def small_convnet(
    in_channels: int,
    image_size: int | tuple[int, int],
    classes: int,
    *,
    conv: Part = BCOPConv2d,
    linear: Part = CholeskyLinear,
    activation: Part = MaxMin,
) -> nn.Sequential:
    """The paper's Small network: 16 and 32 channels with 4x4 kernels of stride 2, then dense 100 and the classes.

    Args:
        in_channels: channels of the image.
        image_size: side or (height, width), extended by zeros to a multiple of 4, at least 8.
        classes: number of logits.

    >>> import torch
    >>> small_convnet(1, 28, 10)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    layers, features = conv_stack(in_channels, image_size, SMALL, conv=conv, activation=activation)
    return nn.Sequential(layers | dense_stack(features, (100,), classes, linear=linear, activation=activation))


def large_convnet(
    in_channels: int,
    image_size: int | tuple[int, int],
    classes: int,
    *,
    conv: Part = BCOPConv2d,
    linear: Part = CholeskyLinear,
    activation: Part = MaxMin,
) -> nn.Sequential:
    """The paper's Large network: four convolutions (32, 32, 64, 64 channels), then dense 512, 512 and the classes.

    Arguments as in `small_convnet`.

    >>> import torch
    >>> large_convnet(3, 8, 10)(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 10])
    """
    layers, features = conv_stack(in_channels, image_size, LARGE, conv=conv, activation=activation)
    return nn.Sequential(layers | dense_stack(features, (512, 512), classes, linear=linear, activation=activation))


def dcgan_critic(
    in_channels: int,
    image_size: int | tuple[int, int],
    classes: int = 1,
    *,
    width: int = 64,
    conv: Part = BCOPConv2d,
    linear: Part = CholeskyLinear,
    activation: Part = MaxMin,
) -> nn.Sequential:
    """The paper's critic: four 4x4 convolutions of stride 2 (64, 128, 256, 512 channels) and one dense output.

    Args:
        in_channels: channels of the image.
        image_size: side or (height, width), extended by zeros to a multiple of 16, at least 32.
        classes: number of outputs, 1 for a critic.
        width: channels of the first convolution; each further one doubles them (Radford et al. 2016).

    >>> dcgan_critic(3, 32).linear1
    LipschitzLinear(
      2048, 1
      (kernel): Orthogonal()
    )
    """
    require_positive(width=width)
    layout = tuple((width * factor, 4, 2) for factor in (1, 2, 4, 8))
    layers, features = conv_stack(in_channels, image_size, layout, conv=conv, activation=activation)
    return nn.Sequential(layers | dense_stack(features, (), classes, linear=linear, activation=activation))


class DCGANGenerator(nn.Sequential):
    r"""Latent vectors to images: a projection to 4×4, then transposed 4×4 convolutions of stride 2.

    With $n = \log_2(\text{image size}/4)$ doublings the projection has $2^{n-1}\,$`width` channels, and every doubling
    halves them. Batch normalisation and ReLU follow all but the last convolution (Radford, Metz & Chintala, ICLR 2016,
    figure 1, which is `width=128` at 64×64). The last activation is a sigmoid because images are in [0, 1] here; in the
    paper it is tanh, for images in [-1, 1]. Since $(1+\tanh a)/2 = \mathrm{sigmoid}(2a)$, the images are the same and
    distances between them are half as large.

    In training mode an image depends on its whole batch, in eval mode only on its latent vector.

    Args:
        latent: dimension of the latent vectors, which are standard normal.
        channels: 1 or 3, channels of the images.
        image_size: side of the images, a power of two of at least 8; 32 and 64 in the paper.
        width: channels before the last convolution.

    Shapes: ``(B, latent)`` to ``(B, channels, image_size, image_size)``. Raises `ValueError` for anything else.

    >>> import torch
    >>> images = DCGANGenerator(latent=16, width=8)(torch.randn(2, 16))
    >>> images.shape, bool((images >= 0).all() and (images <= 1).all())
    (torch.Size([2, 3, 32, 32]), True)
    """

    def __init__(self, latent: int = 128, channels: int = 3, image_size: int = 32, width: int = 64) -> None:
        require_positive(latent=latent, channels=channels, image_size=image_size, width=width)
        if channels not in (1, 3):
            raise ValueError(f"channels={channels}: an image is grey (1) or coloured (3)")
        if image_size < 2 * START or image_size & (image_size - 1):
            raise ValueError(f"image_size={image_size}: must be a power of two from 8 on; 32 and 64 are usual")
        super().__init__(_upsampling(latent, channels, (image_size // START).bit_length() - 1, width))
        self.latent, self.channels, self.image_size, self.width = latent, channels, image_size, width

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width of an image."""
        return self.channels, self.image_size, self.image_size

    def forward(self, latents: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        if latents.ndim != 2 or latents.shape[1] != self.latent:
            raise ValueError(f"latents of shape {tuple(latents.shape)}: expected (B, {self.latent})")
        return super().forward(latents)


def _upsampling(latent: int, channels: int, doublings: int, width: int) -> Layers:
    """The layers by name, without biases before a batch normalisation, which would cancel them."""
    wide = width * 2 ** (doublings - 1)
    layers = Layers(unflatten=nn.Unflatten(1, (latent, 1, 1)))
    layers["project"] = nn.ConvTranspose2d(latent, wide, START, bias=False)
    for index in range(1, doublings + 1):
        layers[f"norm{index}"], layers[f"relu{index}"] = nn.BatchNorm2d(wide), nn.ReLU()
        last = index == doublings
        out = channels if last else wide // 2
        layers[f"conv{index}"] = nn.ConvTranspose2d(wide, out, 4, stride=2, padding=1, bias=last)
        wide //= 2
    layers["sigmoid"] = nn.Sigmoid()
    return layers


def image_sides(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width from one side or two. Refuses what is not an image size."""
    height, width = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    require_positive(image_height=height, image_width=width)
    return height, width


def padded(image_size: int | tuple[int, int], multiple: int, smallest: int) -> tuple[Layers, tuple[int, int]]:
    """Extend images to multiples of a side, at least `smallest`: the padding layer, if needed, and the new sides."""
    sides = image_sides(image_size)
    height, width = (-(-max(side, smallest) // multiple) * multiple for side in sides)
    rows, columns = height - sides[0], width - sides[1]
    pad = nn.ZeroPad2d((columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
    return Layers(pad=pad) if rows or columns else Layers(), (height, width)


def conv_stack(
    in_channels: int,
    image_size: int | tuple[int, int],
    layout: tuple[tuple[int, int, int], ...],
    *,
    conv: Part,
    activation: Part,
) -> tuple[Layers, int]:
    """Convolutions given as (channels, kernel size, stride), an activation after each, and a flattening.

    Returns:
        The named layers and the number of output features.
    """
    require_positive(in_channels=in_channels)
    strides = [1, *accumulate((stride for _, _, stride in layout), mul)]
    smallest = max(kernel_size * before for (_, kernel_size, _), before in zip(layout, strides, strict=False))
    layers, (height, width) = padded(image_size, strides[-1], smallest)
    for index, (channels, kernel_size, stride) in enumerate(layout, start=1):
        layers[f"conv{index}"] = conv(in_channels, channels, kernel_size, stride, input_size=(height, width))
        layers[f"conv{index}_activation"] = activation()
        in_channels, height, width = channels, height // stride, width // stride
    layers["flatten"] = nn.Flatten()
    return layers, in_channels * height * width


def dense_stack(features: int, widths: tuple[int, ...], classes: int, *, linear: Part, activation: Part) -> Layers:
    """Dense layers of the given widths, an activation after each, and a last one to the classes."""
    require_positive(classes=classes)
    layers = Layers()
    for index, width in enumerate(widths, start=1):
        layers[f"linear{index}"] = linear(features, width)
        layers[f"linear{index}_activation"] = activation()
        features = width
    layers[f"linear{len(widths) + 1}"] = linear(features, classes)
    return layers
