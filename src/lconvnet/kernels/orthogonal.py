"""Weights from one orthogonal matrix: the polar factor of a free one, or the result of another engine.

- Dense layers, ``W = polar(V)`` with V in R^{out x in} (Anil, Lucas & Grosse 2019; all networks of Li et al. 2019):
  orthonormal rows if out <= in, orthonormal columns otherwise. With the Björck engine this is Björck
  orthonormalisation; with the Cholesky engine it is the Cholesky dense layer (Hu et al. 2023), which is as orthogonal
  and cheaper but another function of V.
- Reshaped kernel orthogonalisation, RKO, ``K = polar(W) / k`` with W in R^{co x ci k^2} (Li et al. 2019, section 5;
  Miyato et al. 2018 for the reshaping). Cutting an image into k x k patches repeats each pixel at most k^2 times, so
  this map has norm at most k. The convolution is 1-Lipschitz under circular and zero padding, and orthogonal only if
  k = 1.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from lconvnet.kernels.base import DenseKernel, Kernel, Promise, draw_orthogonal_, require_positive
from lconvnet.ops.orthogonalize import Engine, orthogonalize


class Orthogonal(DenseKernel):
    """Semi-orthogonal weight ``(out_features, in_features)``.

    Args:
        in_features, out_features: sizes of the dense layer.
        engine: orthogonalisation engine, by default chosen by device and dtype.

    >>> W = Orthogonal(4, 3)()
    >>> torch.allclose(W @ W.mT, torch.eye(3), atol=1e-6)
    True
    """

    promise: ClassVar[Promise] = Promise.ORTHOGONAL

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        engine: Engine | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_positive(in_features=in_features, out_features=out_features)
        self.engine = engine
        self.V = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw V orthogonal times 1 / sqrt(in_features)."""
        draw_orthogonal_(self.V)

    def forward(self) -> Tensor:
        return orthogonalize(self.V, self.engine)


class RKO(Kernel):
    """1-Lipschitz convolution kernel ``(out_channels, in_channels, k, k)`` from one orthogonal matrix.

    Args:
        in_channels, out_channels: channels ci and co.
        kernel_size: side k of the kernel.
        input_size: ignored, because the bound holds at every size; all kernels accept it.
        engine: orthogonalisation engine, by default chosen by device and dtype.

    >>> RKO(3, 8, 3)().shape
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
        engine: Engine | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_positive(in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size)
        self.in_channels, self.kernel_size, self.engine = in_channels, kernel_size, engine
        self.W = nn.Parameter(torch.empty(out_channels, in_channels * kernel_size**2, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw W orthogonal times 1 / sqrt(ci k^2)."""
        draw_orthogonal_(self.W)

    def forward(self) -> Tensor:
        k = self.kernel_size
        return orthogonalize(self.W, self.engine).unflatten(1, (self.in_channels, k, k)) / k
