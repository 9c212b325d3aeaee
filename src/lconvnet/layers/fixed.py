"""Layers without parameters and with a known Lipschitz constant: they move, repeat and pool pixels, scale, normalise,
and join branches."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from lconvnet.kernels.base import require_positive


class _WithFactor(nn.Module):
    """A layer with one positive integer as its argument."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        require_positive(factor=factor)
        self.factor = factor

    def extra_repr(self) -> str:
        return f"factor={self.factor}"


class InvertibleDownsampling(_WithFactor):
    """``(B, C, h, w)`` to ``(B, C s^2, h / s, w / s)``, an isometry (Jacobsen et al. 2018). Channels as PixelUnshuffle.

    >>> InvertibleDownsampling(2)(torch.zeros(1, 3, 4, 4)).shape
    torch.Size([1, 12, 2, 2])
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, self.factor)


class InvertibleUpsampling(_WithFactor):
    """``(B, C s^2, h, w)`` to ``(B, C, h s, w s)``: the inverse of :class:`InvertibleDownsampling`.

    >>> InvertibleUpsampling(2)(torch.zeros(1, 12, 2, 2)).shape
    torch.Size([1, 3, 4, 4])
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(x, self.factor)


class NearestUpsampling(_WithFactor):
    r"""Repeat every pixel s x s times: ``(B, C, h, w)`` to ``(B, C, h s, w s)``.

    It multiplies every l2 distance by exactly s, because each squared difference occurs s^2 times; s enters the
    Lipschitz bound. The paper's CIFAR-10 critics begin with s = 2.

    >>> NearestUpsampling(2)(torch.tensor([[[[1.0, 2.0]]]])).tolist()
    [[[[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]]]]
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.factor, dim=2).repeat_interleave(self.factor, dim=3)


class NormPool(_WithFactor):
    """The l2 norm of each s x s window, without overlap: ``(B, C, h, w)`` to ``(B, C, h / s, w / s)``.

    It is 1-Lipschitz because a norm is and the windows share no pixel (norm-pooling of Qian & Wegman 2019).

    >>> NormPool(2)(torch.tensor([[[[3.0, 0.0], [0.0, 4.0]]]])).item()
    5.0
    """

    def forward(self, x: Tensor) -> Tensor:
        windows = F.pixel_unshuffle(x, self.factor).unflatten(1, (-1, self.factor * self.factor))
        return torch.linalg.vector_norm(windows, dim=2)


class Scale(nn.Module):
    """Multiplication by a constant; its absolute value enters the Lipschitz bound.

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


def _normalized(x: Tensor, mean: list[float], std: list[float]) -> Tensor:
    if x.ndim != 4 or x.shape[1] != len(mean):
        raise ValueError(f"Normalize: input of shape {list(x.shape)}: expected (B, {len(mean)}, height, width)")
    return (x - _column(mean, x)) / _column(std, x)


def _column(values: list[float], like: Tensor) -> Tensor:
    """One number per channel; a scripted ``torch.tensor`` would round to float32."""
    return torch.stack([torch.full((1, 1), value, dtype=like.dtype, device=like.device) for value in values])


fx.wrap("_normalized")  # torch.fx records one call, because its values have no sizes to check


class Normalize(nn.Module):
    r"""``y_c = (x_c - mean_c) / std_c`` for each channel c. As a layer it keeps images in [0, 1] and radii in pixels.

    It multiplies l2 distances by at most ``1 / min_c std_c``.

    Args:
        mean, std: one number per channel, std positive.

    Shapes: ``(B, C, H, W)`` to the same. Raises `ValueError` if the lengths differ or a std is not positive, and in
    ``forward`` for another number of channels.

    >>> Normalize((0.5,), (0.25,))(torch.ones(1, 1, 1, 1)).item()
    2.0
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(f"mean={self.mean}, std={self.std}: give one number of each for every channel")
        if not all(map(isfinite, self.mean)) or not all(0 < s < float("inf") for s in self.std):
            raise ValueError(f"mean={self.mean}, std={self.std}: both must be finite, std positive")

    def forward(self, x: Tensor) -> Tensor:
        return _normalized(x, self.mean, self.std)  # pyright: ignore[reportArgumentType]

    def extra_repr(self) -> str:
        return f"mean={self.mean}, std={self.std}"


class Sum(nn.Module):
    """``y = sum_b f_b(x)``: a residual block if one branch is the shortcut.

    The Lipschitz constant is at most the sum of those of the branches.

    >>> Sum(nn.Identity(), nn.Identity())(torch.ones(1, 1)).item()
    2.0
    """

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = _branches(branches)

    def forward(self, x: Tensor) -> Tensor:
        total = x
        for index, branch in enumerate(self.branches):
            total = total + branch(x) if index else branch(x)
        return total


class Concat(nn.Module):
    """``y = (f_1(x), ..., f_n(x))`` along the channels.

    The Lipschitz constant is at most the root of the sum of squares of those of the branches.

    >>> Concat(nn.Identity(), nn.ReLU())(torch.ones(1, 1)).tolist()
    [[1.0, 1.0]]
    """

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = _branches(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def _branches(branches: tuple[nn.Module, ...]) -> nn.ModuleList:
    if not branches:
        raise ValueError("branches is empty: give at least one module")
    return nn.ModuleList(branches)
