"""The networks of the paper (Li et al. 2019, appendix) as functions of their parts.

``conv`` is called as ``conv(in_channels, out_channels, kernel_size, stride, input_size=(h, w))``, ``linear`` as
``linear(in_features, out_features)`` and ``activation`` without arguments. Every network is an ``nn.Sequential``. The
paper's dense layers are ``OrthogonalLinear``; the default is as orthogonal, trains as well and costs a fraction.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from lconvnet.kernels.base import require_positive
from lconvnet.layers import BCOPConv2d, CholeskyLinear, MaxMin
from lconvnet.models.common import Part, conv_stack, dcgan_layout, dense_stack

SMALL = ((16, 4, 2), (32, 4, 2))
LARGE = ((32, 3, 1), (32, 4, 2), (64, 3, 1), (64, 4, 2))


def mlp(
    in_features: int,
    classes: int,
    widths: Sequence[int] = (1024, 1024, 1024),
    *,
    linear: Part = CholeskyLinear,
    activation: Part = MaxMin,
) -> nn.Sequential:
    """Fully connected network; with the default widths the paper's FC-3. Images are flattened first.

    >>> import torch
    >>> mlp(784, 10, widths=(16, 16))(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    require_positive(in_features=in_features)
    dense = dense_stack(in_features, tuple(widths), classes, linear=linear, activation=activation)
    return nn.Sequential(OrderedDict(flatten=nn.Flatten()) | dense)


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
        image_size: side or (height, width); extended by zeros to a multiple of 4, and to 8 at least.
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

    Args:
        in_channels: channels of the image.
        image_size: side or (height, width); extended by zeros to a multiple of 4, and to 8 at least.
        classes: number of logits.

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
        image_size: side or (height, width); extended by zeros to a multiple of 16, and to 32 at least.
        classes: number of outputs, 1 for a critic.
        width: channels of the first convolution, doubled by each of the others.

    >>> dcgan_critic(3, 32).linear1
    LipschitzLinear(
      2048, 1
      (kernel): Orthogonal()
    )
    """
    layers, features = conv_stack(in_channels, image_size, dcgan_layout(width), conv=conv, activation=activation)
    return nn.Sequential(layers | dense_stack(features, (), classes, linear=linear, activation=activation))
