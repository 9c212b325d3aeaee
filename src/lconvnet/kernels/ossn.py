"""One-sided spectral normalisation of a convolution, OSSN (Gouk et al. 2018; Li et al. 2019, section 5).

    v = T^T u / |T^T u|,   u = T v / |T v|,   s = <u, T v>,   K = W / max(1, s)

with T the circular convolution by W at the layer's image size. ``s`` is a lower bound on the norm, so the result may
exceed 1 slightly: certificates must divide by a bound of the baked network.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lconvnet.kernels.base import require_input_size, require_positive
from lconvnet.kernels.power_iteration import PowerIterated, generic
from lconvnet.ops import circular


class OSSN(PowerIterated):
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
        """One pixel, which has every frequency, with another value in every channel."""
        _, channels, height, width = u.shape
        return F.pad(generic(channels, u).view(1, channels, 1, 1), (0, width - 1, 0, height - 1))
