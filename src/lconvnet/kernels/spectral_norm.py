"""One-sided spectral normalisation of a dense weight (Gouk et al. 2018).

    v = W^T u / |W^T u|,   u = W v / |W v|,   s = <u, W v>,   weight = W / max(1, s)

``s`` is a lower bound on the norm, so the result may exceed 1 slightly: certificates must divide by a bound.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lconvnet.kernels.base import DenseKernel, require_positive
from lconvnet.kernels.power_iteration import PowerIterated, generic


class SpectralNorm(PowerIterated, DenseKernel):
    """Dense weight ``(out_features, in_features)`` divided by its estimated norm where that exceeds 1.

    In training mode every call runs ``iterations`` power iterations and stores the divisor; in eval mode the stored
    divisor is used and nothing changes.

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
        return generic(len(u), u)
