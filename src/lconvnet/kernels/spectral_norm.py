"""One-sided spectral normalisation of a dense weight (Gouk et al. 2018).

    v = W^T u / |W^T u|,   u = W v / |W v|,   s = <u, W v>,   weight = W / max(1, s)

``s`` is a lower bound on the norm, so the result may exceed 1 slightly: certificates must divide by a bound.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lconvnet.kernels.base import DenseKernel, Promise, draw_uniform_, remember, require_positive
from lconvnet.ops.products import unit_scaled

WARM_UP = 50  # power iterations at construction, so that an untrained layer is normalised too


class SpectralNorm(DenseKernel):
    """Dense weight ``(out_features, in_features)`` divided by its estimated norm where that exceeds 1.

    In training mode every call runs ``iterations`` power iterations and stores the divisor; in eval mode the stored
    divisor is used and nothing changes.

    Args:
        in_features, out_features: sizes of the dense layer.
        iterations: power iterations per training step.

    >>> SpectralNorm(4, 3)().shape
    torch.Size([3, 4])
    """

    promise: ClassVar[Promise] = Promise.APPROXIMATE
    u: Tensor
    factor: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        iterations: int = 10,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_positive(in_features=in_features, out_features=out_features, iterations=iterations)
        self.iterations = iterations
        self.W = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        self.register_buffer("u", torch.empty(out_features, device=device, dtype=dtype))
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
        W, u, v = unit_scaled(self.W.detach()), self.u, self.u
        for _ in range(iterations):
            v = F.normalize(W.mT @ u, dim=0)
            u = F.normalize(W @ v, dim=0)
        remember(self, u=u)
        return u @ (self.W @ v)

    def forward(self) -> Tensor:
        if not self.training:
            return self.W / self.factor
        with torch.autocast(self.W.device.type, enabled=False):
            factor = self._estimate(self.iterations).clamp_min(1)
            remember(self, factor=factor)
            return self.W / factor
