"""Convolutions whose weight comes from a kernel.

A stride s is an invertible downsampling followed by a stride-1 convolution of size k / s on s^2 times the channels
(Li et al. 2019, section 4). It runs as one ordinary strided convolution with the rearranged kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lconvnet.kernels import BCOP, OSSN, RKL2NE, RKO, SVCM, FixedBCOP, Kernel
from lconvnet.kernels.base import require_positive
from lconvnet.layers.constrained import ConstrainedLayer, built, one_call
from lconvnet.ops import circular


def _side(name: str, value: int | tuple[int, int]) -> int:
    """A square size as one integer."""
    sides = value if isinstance(value, tuple) else (value, value)
    if len(sides) != 2 or sides[0] != sides[1]:
        raise ValueError(f"{name}={value!r} must be square: kernels and strides are the same along both axes")
    require_positive(**{name: sides[0]})
    return sides[0]


class LipschitzConv2d(ConstrainedLayer):
    """Two-dimensional convolution with the norm that its kernel promises.

        y[o, p] = b[o] + sum_{i, a} K[o, i, a] x[i, s p + a - s floor(k / 2s)]

    Args:
        in_channels, out_channels: channels.
        kernel_size: side k, a multiple of ``stride``.
        stride: s; the image sides must be multiples of it.
        padding_mode: "circular" (orthogonal kernels stay orthogonal) or "zeros" (norm at most 1 if the kernel's method
            is sound under zero padding). Reflect and replicate padding increase the norm and are refused.
        bias: whether to learn an additive bias.
        kernel: constructor of the kernel, called with the sizes of the equivalent stride-1 convolution.
        input_size: image side or (height, width), needed by kernels that depend on it (OSSN, SVCM).
        device, dtype: as in ``torch.nn``.

    Shapes: ``(B, in_channels, h, w)`` to ``(B, out_channels, h / s, w / s)``.

    Raises:
        ValueError: for an impossible size or an unsound padding, and in ``forward`` for an image of the wrong shape.

    >>> LipschitzConv2d(3, 8, 4, stride=2)(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 8, 16, 16])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        *,
        padding_mode: str = "circular",
        bias: bool = True,
        kernel: Callable[..., Kernel] = BCOP,
        input_size: int | tuple[int, int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        k, s = _side("kernel_size", kernel_size), _side("stride", stride)
        if k % s:
            raise ValueError(f"kernel_size={k} must be a multiple of stride={s}: use kernel_size={-(-k // s) * s}")
        if padding_mode not in ("circular", "zeros"):
            raise ValueError(
                f"padding_mode={padding_mode!r} is not sound (it can increase the norm): use 'circular' or 'zeros'"
            )
        made = built(
            kernel,
            in_channels * s**2,
            out_channels,
            k // s,
            input_size=_downsampled(input_size, s),
            device=device,
            dtype=dtype,
        )
        if padding_mode not in made.sound_padding:
            raise ValueError(
                f"padding_mode={padding_mode!r} is not sound with {type(made).__name__}, "
                f"which controls the norm on the torus only: use 'circular', or another kernel"
            )
        super().__init__(made, in_channels * k**2, out_channels, bias)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.padding_mode = k, s, padding_mode

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the equivalent stride-1 kernel: ``(out_channels, in_channels s^2, k / s, k / s)``."""
        taps = self.kernel_size // self.stride
        return self.out_channels, self.in_channels * self.stride**2, taps, taps

    @property
    def padding(self) -> tuple[int, int]:
        """Pixels added before and after, along both axes."""
        return circular.padding(self.kernel_size, self.stride)

    @one_call
    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        weight = self.current_weight()
        on_torus = self.padding_mode == "circular"
        if on_torus and circular.is_conv2x2(x, weight, self.stride):
            return circular.conv2x2(x, weight, self.bias, self.stride)
        K = circular.to_strided(weight, self.stride)
        if on_torus:
            return circular.conv2d(x, K, self.bias, self.stride)
        before, after = self.padding
        return F.conv2d(F.pad(x, (before, after, before, after)), K, self.bias, self.stride)

    def _check(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"{type(self).__name__}: input of shape {tuple(x.shape)}: "
                f"expected (B, {self.in_channels}, height, width)"
            )
        height, width = x.shape[-2:]
        if height % self.stride or width % self.stride or min(height, width) < self.kernel_size:
            raise ValueError(
                f"{type(self).__name__}: image of {height}x{width} pixels: both sides must be multiples of "
                f"stride={self.stride} and at least kernel_size={self.kernel_size}; pad the image with zeros first "
                "(nn.ZeroPad2d)"
            )

    def bake(self) -> nn.Module:
        before, after = self.padding
        inside = before if before == after else 0
        conv = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            padding=inside,
            padding_mode="circular" if inside and self.padding_mode == "circular" else "zeros",
            bias=self.bias is not None,
            device="meta",  # draws no random numbers
        )
        self.fill(conv, circular.to_strided(self.exact_weight(), self.stride))
        if before == after:
            return conv
        pad = nn.CircularPad2d if self.padding_mode == "circular" else nn.ZeroPad2d
        return nn.Sequential(pad((before, after, before, after)), conv)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding_mode={self.padding_mode!r}"
        )


def _downsampled(input_size: int | tuple[int, int] | None, stride: int) -> tuple[int, int] | None:
    if input_size is None:
        return None
    height, width = input_size if isinstance(input_size, tuple) else (input_size, input_size)
    if height % stride or width % stride:
        raise ValueError(f"input_size={input_size!r} must be a multiple of stride={stride}: pad the image first")
    return height // stride, width // stride


BCOPConv2d = partial(LipschitzConv2d, kernel=BCOP)
FixedBCOPConv2d = partial(LipschitzConv2d, kernel=FixedBCOP)
RKOConv2d = partial(LipschitzConv2d, kernel=RKO)
OSSNConv2d = partial(LipschitzConv2d, kernel=OSSN)
SVCMConv2d = partial(LipschitzConv2d, kernel=SVCM)
RKL2NEConv2d = partial(LipschitzConv2d, kernel=RKL2NE)
