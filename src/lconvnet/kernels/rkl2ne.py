"""Reshaped kernel L2 norm estimate, RK-L2NE (Qian & Wegman 2019, as used by Li et al. 2019).

    K = W / (k f),      f = sqrt(min(|W W^T|_inf, |W^T W|_inf)) >= |W|_2,       W reshaped to co x ci k^2

with ``|.|_inf`` the largest absolute row sum. Rigorous under circular and zero padding, loose, no iteration. A dense
weight is the case k = 1.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from lconvnet.kernels.base import DenseKernel, Kernel, Promise, draw_uniform_, require_positive
from lconvnet.ops.products import square, unit_scaled


class RKL2NE(Kernel):
    """1-Lipschitz convolution kernel ``(out_channels, in_channels, k, k)`` divided by a bound on its reshaped norm.

    Args:
        in_channels, out_channels: channels ci and co.
        kernel_size: side k of the kernel.
        input_size: accepted so that all kernels are built alike; the bound holds at every size.

    >>> RKL2NE(3, 8, 3)().shape
    torch.Size([8, 3, 3, 3])
    """

    promise: ClassVar[Promise] = Promise.LIPSCHITZ
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
        super().__init__()
        require_positive(in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size)
        shape = (out_channels, in_channels, kernel_size, kernel_size)
        self.W = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw W as PyTorch does."""
        draw_uniform_(self.W)

    def forward(self) -> Tensor:
        W = _accurate(self.W)
        return W / (norm_estimate(W) * W.shape[-1])


class L2NE(DenseKernel):
    """1-Lipschitz dense weight ``(out_features, in_features)`` divided by the same bound on its norm.

    >>> L2NE(8, 4)().shape
    torch.Size([4, 8])
    """

    promise: ClassVar[Promise] = Promise.LIPSCHITZ

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_positive(in_features=in_features, out_features=out_features)
        self.W = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw W as PyTorch does."""
        draw_uniform_(self.W)

    def forward(self) -> Tensor:
        W = _accurate(self.W)
        return W / norm_estimate(W)


def norm_estimate(W: Tensor) -> Tensor:
    """f of the head of this file, an upper bound on the norm of W reshaped to ``(out, rest)``, or 1/2 if that is more.

    >>> round(float(norm_estimate(torch.ones(2, 3))) ** 2, 4)
    6.0
    """
    with torch.autocast(W.device.type, enabled=False):
        flat = W.flatten(1)
        norms = [gram.abs().sum(1).amax() for gram in (square(flat), square(flat.mT))]
        return torch.minimum(*norms).clamp_min(1 / 4).sqrt()


def _accurate(W: Tensor) -> Tensor:
    """W in at least float32, times a power of two on which its quotient by f does not depend: f squares its entries."""
    W = W.to(torch.promote_types(W.dtype, torch.float32))
    return unit_scaled(W.flatten(1)).view_as(W)
