"""Singular value clipping and masking, SVCM (Sedghi, Gupta & Long 2019, as used by Li et al. 2019).

The kernel is trained freely and projected in place from time to time. One pass clips the singular values of the
transfer matrices at the layer's image size to at most 1, returns to the image domain and keeps the k x k support. The
two projections alternate, so the result satisfies both only approximately: certificates must divide by a bound.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from lconvnet.kernels.base import Kernel, Promise, draw_uniform_, require_input_size, require_positive
from lconvnet.ops.fourier import transfer_matrices


def clip_and_mask(K: Tensor, size: tuple[int, int]) -> Tensor:
    """One pass: singular values above 1 on the h x w frequency grid become 1; taps outside the support become 0."""
    U, s, Vh = torch.linalg.svd(transfer_matrices(K, size), full_matrices=False)
    clipped = ((U * s.clamp_max(1).unsqueeze(-2)) @ Vh).unflatten(0, (size[0], -1))
    return torch.fft.irfft2(clipped.permute(2, 3, 0, 1), s=size)[..., : K.shape[-2], : K.shape[-1]]


class SVCM(Kernel):
    """Free convolution kernel ``(out_channels, in_channels, k, k)`` with a projection towards norm at most 1.

    Args:
        in_channels, out_channels: channels ci and co.
        kernel_size: side k of the kernel.
        input_size: height and width of the image the stride-1 convolution sees; required, at least k.
        passes: alternations per projection.

    Raises:
        ValueError: if ``input_size`` is missing or smaller than the kernel.

    >>> SVCM(3, 8, 3, input_size=(8, 8))().shape
    torch.Size([8, 3, 3, 3])
    """

    promise: ClassVar[Promise] = Promise.APPROXIMATE

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        input_size: tuple[int, int] | None = None,
        passes: int = 50,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_positive(in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size, passes=passes)
        self.size = require_input_size(input_size, "SVCM")
        if min(self.size) < kernel_size:
            raise ValueError(f"input_size={self.size} is smaller than kernel_size={kernel_size}: use a smaller kernel")
        self.passes = passes
        shape = (out_channels, in_channels, kernel_size, kernel_size)
        self.W = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw W as PyTorch does, and project it."""
        draw_uniform_(self.W)
        if not self.W.is_meta:
            self.project_()

    @torch.no_grad()
    def project_(self) -> None:
        """Alternate the two projections ``passes`` times on the raw kernel, in place and without a gradient."""
        K = self.W.detach()
        for _ in range(self.passes):
            K = clip_and_mask(K, self.size)
        self.W.copy_(K)

    def forward(self) -> Tensor:
        return self.W
