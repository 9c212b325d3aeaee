"""Reshaped kernel L2 norm estimate, RK-L2NE (Qian & Wegman 2019, as used by Li et al. 2019).

    K = W / (k f),      f = sqrt(min(|W W^T|_inf, |W^T W|_inf)) >= |W|_2,       W reshaped to co x ci k^2

with ``|.|_inf`` the largest absolute row sum. Rigorous under circular and zero padding, loose, no iteration.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from lconvnet.kernels.base import Kernel, Promise, require_positive


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
        nn.init.orthogonal_(self.W)

    def forward(self) -> Tensor:
        with torch.autocast(self.W.device.type, enabled=False):
            W = self.W.to(torch.promote_types(self.W.dtype, torch.float32))
            flat = W.flatten(1)
            norms = [gram.abs().sum(1).amax() for gram in (flat @ flat.mT, flat.mT @ flat)]
            bound = torch.minimum(*norms).clamp_min(torch.finfo(W.dtype).tiny).sqrt()
            return W / (bound * W.shape[-1])
