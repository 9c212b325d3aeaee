"""One-sided spectral normalisation by power iteration (Gouk et al. 2018; OSSN in Li et al. 2019, section 5).

    v = T^T u / |T^T u|,   u = T v / |T v|,   s = <u, T v>,   K = W / max(1, s)

where T is the linear map with weight W: a matrix, or the circular convolution by W at the layer's image size. ``s`` is
a lower bound on the norm of T, so the norm of K may exceed 1 slightly: certificates must divide by a bound of the baked
network.

A circular convolution maps every Fourier mode to itself. So an iterate that is exactly constant over the image stays
constant for ever, even if another mode grows. Each call therefore starts a little away from the last iterate, in a
direction that contains every mode. If no other mode has grown, the iterations undo this.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lconvnet.kernels.base import (
    DenseKernel,
    Kernel,
    Promise,
    draw_uniform_,
    remember,
    require_input_size,
    require_positive,
)
from lconvnet.ops import circular
from lconvnet.ops.products import unit_scaled

WARM_UP = 50  # power iterations at construction, so that an untrained layer is normalised, too
NUDGE = 1e-3  # distance from the last iterate at which a call starts; the estimate loses at most its square


class PowerIterated(Kernel):
    """Weight ``W`` divided by its estimated norm if that exceeds 1.

    In training mode every call runs ``iterations`` power iterations and stores the divisor. Eval mode uses the stored
    divisor and changes nothing. The gradient flows through ``s`` with u and v held constant.
    """

    promise: ClassVar[Promise] = Promise.APPROXIMATE
    u: Tensor
    factor: Tensor

    def __init__(
        self,
        weight_shape: tuple[int, ...],
        output_shape: tuple[int, ...],
        iterations: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.iterations = iterations
        self.W = nn.Parameter(torch.empty(weight_shape, device=device, dtype=dtype))
        self.register_buffer("u", torch.empty(output_shape, device=device, dtype=dtype))
        self.register_buffer("factor", torch.ones((), device=device, dtype=dtype))
        self.reset_parameters()

    @staticmethod
    @abstractmethod
    def _apply_map(v: Tensor, W: Tensor) -> Tensor:
        """T v."""

    @staticmethod
    @abstractmethod
    def _apply_adjoint(u: Tensor, W: Tensor) -> Tensor:
        """T^T u."""

    @staticmethod
    @abstractmethod
    def _direction(u: Tensor) -> Tensor:
        """A direction shaped like u, of norm at most 1, with a part in every mode of T."""

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw W as PyTorch does, and estimate its norm."""
        draw_uniform_(self.W)
        self.u.normal_()
        if not self.W.is_meta:  # a meta tensor has no numbers
            self.factor.copy_(self._estimate(WARM_UP).clamp_min(1))

    def _estimate(self, iterations: int) -> Tensor:
        W = unit_scaled(self.W.detach().flatten(1)).view_as(self.W)
        v = u = _unit(self.u) + NUDGE * self._direction(self.u)
        for _ in range(iterations):
            v = _unit(self._apply_adjoint(u, W))
            u = _unit(self._apply_map(v, W))
        remember(self, u=u)
        return (u * self._apply_map(v, self.W)).sum()

    def forward(self) -> Tensor:
        if not self.training:
            return self.W / self.factor
        with torch.autocast(self.W.device.type, enabled=False):
            factor = self._estimate(self.iterations).clamp_min(1)
            remember(self, factor=factor)
            return self.W / factor


class OSSN(PowerIterated):
    """Convolution kernel ``(out_channels, in_channels, k, k)``, normalised by power iteration.

    Args:
        in_channels, out_channels: channels ci and co.
        kernel_size: side k of the kernel.
        input_size: height and width of the image the stride-1 convolution sees; required.
        iterations: power iterations per training step.

    Raises:
        ValueError: if ``input_size`` is missing.

    >>> OSSN(3, 8, 3, input_size=(8, 8))().shape
    torch.Size([8, 3, 3, 3])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        input_size: tuple[int, int] | None = None,
        iterations: int = 10,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        require_positive(
            in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size, iterations=iterations
        )
        size = require_input_size(input_size, "OSSN")
        shape = out_channels, in_channels, kernel_size, kernel_size
        super().__init__(shape, (1, out_channels, *size), iterations, device, dtype)

    @staticmethod
    def _apply_map(v: Tensor, W: Tensor) -> Tensor:
        return circular.conv2d(v, W)

    @staticmethod
    def _apply_adjoint(u: Tensor, W: Tensor) -> Tensor:
        return circular.conv2d_adjoint(u, W)

    @staticmethod
    def _direction(u: Tensor) -> Tensor:
        """One pixel, which contains every frequency, with a different value in every channel."""
        _, channels, height, width = u.shape
        return F.pad(_generic(channels, u).view(1, channels, 1, 1), (0, width - 1, 0, height - 1))


class SpectralNorm(PowerIterated, DenseKernel):
    """Dense weight ``(out_features, in_features)``, normalised by power iteration.

    Args:
        in_features, out_features: sizes of the dense layer.
        iterations: power iterations per training step.

    >>> SpectralNorm(4, 3)().shape
    torch.Size([3, 4])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        iterations: int = 10,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        require_positive(in_features=in_features, out_features=out_features, iterations=iterations)
        super().__init__((out_features, in_features), (out_features,), iterations, device, dtype)

    @staticmethod
    def _apply_map(v: Tensor, W: Tensor) -> Tensor:
        return W @ v

    @staticmethod
    def _apply_adjoint(u: Tensor, W: Tensor) -> Tensor:
        return W.mT @ u

    @staticmethod
    def _direction(u: Tensor) -> Tensor:
        return _generic(len(u), u)


def _generic(n: int, like: Tensor) -> Tensor:
    """A vector (n) without structure, of norm at most 1: sin 1, sin 2, ... over the root of n."""
    return torch.arange(1, n + 1, device=like.device, dtype=like.dtype).sin() / n**0.5


def _unit(x: Tensor) -> Tensor:
    return x / x.norm().clamp_min(torch.finfo(x.dtype).tiny)
