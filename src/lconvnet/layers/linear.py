"""Dense layers whose weight comes from a kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lconvnet.kernels import L2NE, Kernel, Orthogonal, SpectralNorm
from lconvnet.layers.constrained import ConstrainedLayer, built, one_call
from lconvnet.ops.orthogonalize import LINEAR, orthogonal_linear
from lconvnet.ops.whitening import cholesky

FULL = (torch.float32, torch.float64)  # dtypes in which factors are computed


class LipschitzLinear(ConstrainedLayer):
    """``y = W x + b`` with the norm that its kernel promises.

    Args:
        in_features, out_features: sizes.
        bias: whether to learn an additive bias.
        kernel: constructor of the kernel, called with ``(in_features, out_features)``.
        device, dtype: as in ``torch.nn``.

    Shapes: ``(..., in_features)`` to ``(..., out_features)``.

    >>> LipschitzLinear(8, 4)(torch.zeros(2, 8)).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        kernel: Callable[..., Kernel] = Orthogonal,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        made = built(kernel, in_features, out_features, device=device, dtype=dtype)
        super().__init__(made, in_features, out_features, bias)
        self.in_features, self.out_features = in_features, out_features

    @one_call
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ValueError(
                f"{type(self).__name__}: input of shape {tuple(x.shape)}: expected (..., {self.in_features})"
            )
        if _is_known(self.kernel) and self.kernel.V.dtype in FULL:  # then no factor is formed
            with self.naming_what_is_not_finite():
                return orthogonal_linear(x, self.checked(self.kernel.V), self.bias, self.kernel.engine)
        return F.linear(x, self.current_weight(), self.bias)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.out_features, self.in_features

    def bake(self) -> nn.Module:
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")  # draws nothing
        self.fill(plain, self.exact_weight())
        return plain

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}"


def _is_known(kernel: nn.Module) -> TypeGuard[Orthogonal]:
    """Whether a call of the kernel only makes the factor of its V by an engine of ours."""
    # `altered` would tell, too, but the compiler cannot follow it
    changed = kernel._forward_hooks or kernel._forward_pre_hooks or "forward" in vars(kernel)
    return type(kernel) is Orthogonal and not changed and any(kernel.engine is engine for engine in (None, *LINEAR))


OrthogonalLinear = partial(LipschitzLinear, kernel=Orthogonal)
CholeskyLinear = partial(LipschitzLinear, kernel=partial(Orthogonal, engine=cholesky))
SpectralNormLinear = partial(LipschitzLinear, kernel=SpectralNorm)
L2NELinear = partial(LipschitzLinear, kernel=L2NE)
