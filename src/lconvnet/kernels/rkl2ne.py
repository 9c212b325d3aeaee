"""Reshaped kernel L2 norm estimate, RK-L2NE (Qian & Wegman 2019, as used by Li et al. 2019).

    K = W / (k f),      f = sqrt(min(|W W^T|_inf, |W^T W|_inf)) >= |W|_2,       W reshaped to co x ci k^2

where ``|.|_inf`` is the largest absolute row sum. It is rigorous under circular and zero padding, loose, and needs no
iteration. A dense weight is the case k = 1.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from lconvnet.kernels.base import DenseKernel, Kernel, Promise, draw_uniform_, require_positive
from lconvnet.ops.products import square, unit_scaled


class _DividedByNormEstimate(Kernel):
    promise: ClassVar[Promise] = Promise.LIPSCHITZ

    def __init__(self, shape: tuple[int, ...], device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw W as PyTorch does."""
        draw_uniform_(self.W)

    def forward(self) -> Tensor:
        # f squares the entries, so these are scaled by a power of two, which cancels in the quotient
        W = self.W.to(torch.promote_types(self.W.dtype, torch.float32))
        W = unit_scaled(W.flatten(1)).view_as(W)
        f = norm_estimate(W)
        return W / (f * W.shape[-1] if W.ndim > 2 else f)


class RKL2NE(_DividedByNormEstimate):
    """1-Lipschitz convolution kernel ``(out_channels, in_channels, k, k)`` divided by a bound on its reshaped norm.

    Args:
        in_channels, out_channels: channels ci and co.
        kernel_size: side k of the kernel.
        input_size: ignored, because the bound holds at every size; all kernels accept it.

    >>> RKL2NE(3, 8, 3)().shape
    torch.Size([8, 3, 3, 3])
    """

    sound_padding: ClassVar[frozenset[str]] = frozenset({"circular", "zeros"})

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        input_size: tuple[int, int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        require_positive(in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size)
        super().__init__((out_channels, in_channels, kernel_size, kernel_size), device, dtype)


class L2NE(_DividedByNormEstimate, DenseKernel):
    """1-Lipschitz dense weight ``(out_features, in_features)`` divided by a bound on its norm.

    >>> L2NE(8, 4)().shape
    torch.Size([4, 8])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        require_positive(in_features=in_features, out_features=out_features)
        super().__init__((out_features, in_features), device, dtype)


def norm_estimate(W: Tensor) -> Tensor:
    """The larger of 1/2 and f of the module's formula, an upper bound on the norm of W reshaped to ``(out, rest)``.

    >>> round(float(norm_estimate(torch.ones(2, 3))) ** 2, 4)
    6.0
    """
    with torch.autocast(W.device.type, enabled=False):
        flat = W.flatten(1)
        norms = [gram.abs().sum(1).amax() for gram in (square(flat), square(flat.mT))]
        return torch.minimum(*norms).clamp_min(1 / 4).sqrt()
