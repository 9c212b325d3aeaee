"""Dense layers whose weight comes from a kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lconvnet.kernels import L2NE, DenseKernel, Orthogonal, SpectralNorm
from lconvnet.layers.constrained import ConstrainedLayer
from lconvnet.ops.whitening import cholesky


class LipschitzLinear(ConstrainedLayer):
    """``y = W x + b`` with the norm that its kernel promises.

    Args:
        in_features, out_features: sizes.
        bias: whether to learn an additive bias.
        kernel: constructor of the kernel, called with ``(in_features, out_features)``.
        device, dtype: as in ``torch.nn``.

    Shapes: ``(..., in_features)`` to ``(..., out_features)``.

    >>> import torch
    >>> LipschitzLinear(8, 4)(torch.zeros(2, 8)).shape
    torch.Size([2, 4])
    """

    kernel: DenseKernel

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        kernel: Callable[..., DenseKernel] = Orthogonal,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        built = kernel(in_features, out_features, device=device, dtype=dtype)
        super().__init__(built, in_features, out_features, bias)
        self.in_features, self.out_features = in_features, out_features

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ValueError(f"input of shape {tuple(x.shape)}: expected (..., {self.in_features})")
        if self.weight_may_learn:
            return self.kernel.linear(x, self.bias)
        return F.linear(x, self.weight, self.bias)

    def bake(self) -> nn.Module:
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None)
        self.fill(plain, self.exact_weight())
        return plain

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}"


OrthogonalLinear = partial(LipschitzLinear, kernel=Orthogonal)
CholeskyLinear = partial(LipschitzLinear, kernel=partial(Orthogonal, engine=cholesky))
SpectralNormLinear = partial(LipschitzLinear, kernel=SpectralNorm)
L2NELinear = partial(LipschitzLinear, kernel=L2NE)
