"""Input normalisation as a layer, so that images stay in [0, 1] and radii in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import torch
from torch import Tensor, fx, nn


def _normalized(x: Tensor, mean: list[float], std: list[float]) -> Tensor:
    if x.ndim != 4 or x.shape[1] != len(mean):
        raise ValueError(f"Normalize: input of shape {list(x.shape)}: expected (B, {len(mean)}, height, width)")
    return (x - _column(mean, x)) / _column(std, x)


def _column(values: list[float], like: Tensor) -> Tensor:
    """One number a channel; ``torch.tensor`` would go through float32 where it is scripted."""
    return torch.stack([torch.full((1, 1), value, dtype=like.dtype, device=like.device) for value in values])


fx.wrap("_normalized")  # one call for torch.fx, whose values have no sizes to check


class Normalize(nn.Module):
    r"""``y_c = (x_c - mean_c) / std_c`` for each channel c; multiplies l2 distances by at most ``1 / min_c std_c``.

    Args:
        mean, std: one number a channel, std positive.

    Shapes: ``(B, C, H, W)`` to the same. Raises `ValueError` for lists of different lengths and a std that is not
    positive, and in ``forward`` for another number of channels.

    >>> import torch
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
