"""Orthonormal dense weights (Anil, Lucas & Grosse 2019; the dense layer of every network of Li et al. 2019).

    W = polar(V),       V in R^{out x in},

orthonormal rows if out <= in, orthonormal columns otherwise. With the Björck engine this is Björck orthonormalisation;
the Cholesky engine makes the Cholesky dense layer (Hu et al. 2023): as orthogonal, cheaper, another function of V.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from lconvnet.kernels.base import DenseKernel, Promise, draw_orthogonal_, require_positive
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
