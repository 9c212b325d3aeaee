"""Resampling that moves, repeats or pools pixels, and scaling: distances grow by at most a known constant."""

from __future__ import annotations

from math import isfinite

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lconvnet.kernels.base import require_positive


class InvertibleDownsampling(nn.Module):
    """``(B, C, h, w)`` to ``(B, C s^2, h / s, w / s)``: an isometry (Jacobsen et al. 2018), channels as PixelUnshuffle.

    >>> import torch
    >>> InvertibleDownsampling(2)(torch.zeros(1, 3, 4, 4)).shape
    torch.Size([1, 12, 2, 2])
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        require_positive(factor=factor)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, self.factor)

    def extra_repr(self) -> str:
        return f"factor={self.factor}"


class InvertibleUpsampling(nn.Module):
    """``(B, C s^2, h, w)`` to ``(B, C, h s, w s)``: the inverse of :class:`InvertibleDownsampling`.

    >>> import torch
    >>> InvertibleUpsampling(2)(torch.zeros(1, 12, 2, 2)).shape
    torch.Size([1, 3, 4, 4])
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        require_positive(factor=factor)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(x, self.factor)

    def extra_repr(self) -> str:
        return f"factor={self.factor}"


class NearestUpsampling(nn.Module):
    r"""Every pixel as factor x factor equal ones: ``(B, C, h, w)`` to ``(B, C, h s, w s)``.

    Multiplies every l2 distance by exactly s, for each squared difference occurs s^2 times; that factor enters the
    Lipschitz bound. The paper's CIFAR-10 critics begin with s = 2.

    >>> import torch
    >>> NearestUpsampling(2)(torch.tensor([[[[1.0, 2.0]]]])).tolist()
    [[[[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]]]]
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        require_positive(factor=factor)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.factor, dim=2).repeat_interleave(self.factor, dim=3)

    def extra_repr(self) -> str:
        return f"factor={self.factor}"


class NormPool(nn.Module):
    """The l2 norm of each s x s window, windows side by side: ``(B, C, h, w)`` to ``(B, C, h / s, w / s)``.

    1-Lipschitz, for a norm is and the windows share no pixel (norm-pooling of Qian & Wegman 2019).

    >>> import torch
    >>> NormPool(2)(torch.tensor([[[[3.0, 0.0], [0.0, 4.0]]]])).item()
    5.0
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        require_positive(factor=factor)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        windows = F.pixel_unshuffle(x, self.factor).unflatten(1, (-1, self.factor * self.factor))
        return torch.linalg.vector_norm(windows, dim=2)

    def extra_repr(self) -> str:
        return f"factor={self.factor}"


class Scale(nn.Module):
    """Multiplication by a constant; its absolute value enters the Lipschitz bound.

    >>> import torch
    >>> Scale(0.5)(torch.tensor([2.0])).tolist()
    [1.0]
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        if not isfinite(factor):
            raise ValueError(f"factor={factor!r} must be finite")
        self.factor = float(factor)

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x

    def extra_repr(self) -> str:
        return f"factor={self.factor}"
