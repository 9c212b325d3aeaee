"""Block convolution orthogonal parametrisation, BCOP (Li et al. 2019, section 4 and algorithm 1).

    K = H [] B(P_1, Q_1) [] ... [] B(P_{k-1}, Q_{k-1}),       P_j = R_j R_j^T of rank floor(c / 2), c = max(ci, co)

where H is the polar factor of a free matrix and R_j an orthonormal basis of the columns of a free one. The circular
convolution is orthogonal at every image size; under zero padding its norm is at most 1.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from lconvnet.kernels.base import Kernel, Promise, draw_orthogonal_, require_positive
from lconvnet.ops.block_conv import block_orthogonal_kernel
from lconvnet.ops.orthogonalize import Engine, orthogonalize


class BCOP(Kernel):
    """Orthogonal convolution kernel ``(out_channels, in_channels, k, k)``, any k >= 1 and any channel ratio.

    Args:
        in_channels, out_channels: channels ci and co.
        kernel_size: side k of the kernel; an even k pads one more pixel before than after.
        input_size: ignored, because the construction holds at every size; all kernels accept it.
        engine: orthogonalisation engine of H, by default chosen by device and dtype.

    Parameters:
        H: ``(min(ci, co), c)``, for the channel mixing factor.
        R: ``(2(k - 1), c, floor(c / 2))``, for the bases of the projectors P_1, Q_1, P_2, ...

    >>> BCOP(3, 8, 3)().shape
    torch.Size([8, 3, 3, 3])
    """

    promise: ClassVar[Promise] = Promise.ORTHOGONAL
    sound_padding: ClassVar[frozenset[str]] = frozenset({"circular", "zeros"})
    bias_fan: ClassVar[Literal["inputs", "outputs"]] = "outputs"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        input_size: tuple[int, int] | None = None,
        engine: Engine | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_positive(in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size)
        thin, wide = sorted((in_channels, out_channels))
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.engine = engine
        self.H = nn.Parameter(torch.empty(thin, wide, device=device, dtype=dtype))
        self.R = nn.Parameter(torch.empty(2 * (kernel_size - 1), wide, wide // 2, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every free matrix orthogonal times 1 / sqrt(c)."""
        draw_orthogonal_(self.H)
        draw_orthogonal_(self.R.mT)

    def forward(self) -> Tensor:
        H = orthogonalize(self.H, self.engine)
        with torch.autocast(H.device.type, enabled=False):
            X = block_orthogonal_kernel(H, self.R.to(H.dtype))
        # X is (k, k, thin, wide) with the vertical tap second, because the published kernel exchanges the two axes
        return X.permute(3, 2, 1, 0) if self.in_channels <= self.out_channels else X.permute(2, 3, 1, 0)


class FixedBCOP(BCOP):
    """BCOP frozen at its random initial value, the paper's control for the effect of training the kernel.

    A layer with this kernel freezes its bias, too.
    """

    frozen: ClassVar[bool] = True

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.requires_grad_(False)
