"""One-sided spectral normalisation of a convolution, OSSN (Gouk et al. 2018; Li et al. 2019, section 5).

    v = T^T u / |T^T u|,   u = T v / |T v|,   s = <u, T v>,   K = W / max(1, s)

with T the circular convolution by W at the layer's image size. ``s`` is a lower bound on the norm, so the result may
exceed 1 slightly: certificates must divide by a bound of the baked network.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from lconvnet.kernels.base import Kernel, Promise, draw_uniform_, remember, require_input_size, require_positive
from lconvnet.ops import circular
from lconvnet.ops.products import unit_scaled

WARM_UP = 50  # power iterations at construction, so that an untrained layer is normalised too


class OSSN(Kernel):
    """Convolution kernel ``(out_channels, in_channels, k, k)`` divided by its estimated norm where that exceeds 1.

    In training mode every call runs ``iterations`` power iterations and stores the divisor; in eval mode the stored
    divisor is used and nothing changes. The gradient flows through ``s`` with u and v held constant.

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

    promise: ClassVar[Promise] = Promise.APPROXIMATE
    sound_padding: ClassVar[frozenset[str]] = frozenset({"circular"})
    u: Tensor
    factor: Tensor

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
        super().__init__()
        require_positive(
            in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size, iterations=iterations
        )
        size = require_input_size(input_size, "OSSN")
        self.iterations = iterations
        shape = (out_channels, in_channels, kernel_size, kernel_size)
        self.W = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.register_buffer("u", torch.empty(1, out_channels, *size, device=device, dtype=dtype))
        self.register_buffer("factor", torch.ones((), device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw W as PyTorch does, and estimate its norm."""
        draw_uniform_(self.W)
        self.u.normal_()
        if not self.W.is_meta:  # where there are no numbers to estimate
            self.factor.copy_(self._estimate(WARM_UP).clamp_min(1))

    def _estimate(self, iterations: int) -> Tensor:
        W, u, v = unit_scaled(self.W.detach().flatten(1)).view_as(self.W), self.u, self.u
        for _ in range(iterations):
            v = _unit(circular.conv2d_adjoint(u, W))
            u = _unit(circular.conv2d(v, W))
        remember(self, u=u)
        return (u * circular.conv2d(v, self.W)).sum()

    def forward(self) -> Tensor:
        if not self.training:
            return self.W / self.factor
        with torch.autocast(self.W.device.type, enabled=False):
            factor = self._estimate(self.iterations).clamp_min(1)
            remember(self, factor=factor)
            return self.W / factor


def _unit(x: Tensor) -> Tensor:
    return x / x.norm().clamp_min(torch.finfo(x.dtype).tiny)
