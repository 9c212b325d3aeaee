"""The networks that are compared: the same functions of `lconvnet.models`, with other linear maps inside.

All use the same MaxMin, the same layout and the same biases. Peers run with their default parameters and circular
padding; a 4x4 kernel of stride 2 gets one pixel on either side there, where ours borrows two before.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import peers
from lconvnet import models
from lconvnet.kernels import BCOP, Orthogonal
from lconvnet.layers import BCOPConv2d, LipschitzConv2d, LipschitzLinear
from lconvnet.models import baselines
from lconvnet.ops import circular
from lconvnet.ops.polynomials import bjorck

CLASSES = 10
Part = Callable[..., nn.Module]


@dataclass(frozen=True)
class Method:
    """A way to make linear maps.

    Attributes:
        name: for legends and notes.
        conv: as `lconvnet.models` calls it: ``conv(in, out, kernel_size, stride, input_size=(h, w))``.
        linear: ``linear(in, out)``; None is the default of the network.
    """

    name: str
    conv: Part
    linear: Part | None = None


@dataclass(frozen=True)
class Architecture:
    """A network of the paper for images of one shape."""

    build: Callable[..., nn.Sequential]
    channels: int
    size: int
    outputs: int = CLASSES

    def network(self, method: Method, device: str = "cpu") -> nn.Sequential:
        """The network with the linear maps of a method, in training mode."""
        parts = {"conv": method.conv} | ({} if method.linear is None else {"linear": method.linear})
        return self.build(self.channels, self.size, self.outputs, **parts).to(device).train()

    def batch(self, count: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
        """Random images and labels, always the same."""
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(count, self.channels, self.size, self.size, generator=generator)
        return images.to(device), torch.randint(self.outputs, (count,), generator=generator).to(device)


def circular_conv(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, *, input_size: object = None
) -> nn.Module:
    """What baking leaves of a circular convolution, with random weights."""
    before, after = circular.padding(kernel_size, stride)
    if before == after:
        return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=before, padding_mode="circular")
    pad = nn.CircularPad2d((before, after, before, after))
    return nn.Sequential(pad, nn.Conv2d(in_channels, out_channels, kernel_size, stride))


def _symmetric(conv: Part) -> Part:
    """A peer's convolution, called as ours is, with circular padding by the same number on either side."""

    def build(
        in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, *, input_size: object = None
    ) -> nn.Module:
        padding = (kernel_size - stride + 1) // 2
        return conv(in_channels, out_channels, kernel_size, stride, padding=padding, padding_mode="circular")

    return build


def orthogonium() -> Method:
    """Adaptive orthogonal convolutions (Boissin et al. 2025) and the dense layers of the same library."""
    layers = peers.load("orthogonium")
    return Method(peers.title("orthogonium"), _symmetric(layers.AdaptiveOrthoConv2d), layers.OrthoLinear)


def torchlip() -> Method:
    """The Björck layers of deel-torchlip: RKO convolutions, which are 1-Lipschitz but not orthogonal."""
    layers = peers.load("deel-torchlip")
    return Method(peers.title("deel-torchlip"), _symmetric(layers.SpectralConv2d), layers.SpectralLinear)


SMALL = Architecture(models.small_convnet, 1, 28)
LARGE = Architecture(models.large_convnet, 3, 32)
SMALL_ON_CIFAR = Architecture(models.small_convnet, 3, 32)
CRITIC = Architecture(models.dcgan_critic, 3, 32, outputs=1)

OURS = Method("lconvnet BCOP", BCOPConv2d)
UNCONSTRAINED = Method("unconstrained", baselines.unconstrained_conv, baselines.unconstrained_linear)
PLAIN = Method("plain", circular_conv, nn.Linear)

_recorded = partial(bjorck, order=1, iterations=20)
BJORCK20 = Method(
    "Björck, 20 recorded steps",
    partial(LipschitzConv2d, kernel=partial(BCOP, engine=_recorded)),
    partial(LipschitzLinear, kernel=partial(Orthogonal, engine=_recorded)),
)
