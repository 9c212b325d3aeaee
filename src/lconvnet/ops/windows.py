"""Linear functionals of images that each see a small window: coefficients are stored for the window only.

A functional of a convolution's output depends on a window of its input. With P positions on a grid and n functionals at
each, coefficients have the shape ``(B, P, n, C, h, w)``. The window of position (i, j) starts at row
``i stride - offset``; pixels outside the image count as zero. In the dense case there is one position, and its window
is the image.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """Where windows lie: `count` of them along height and width, `size` pixels each, every `stride` pixels. The first
    one starts `offset` pixels before the image."""

    count: Pair
    stride: Pair
    offset: Pair
    size: Pair

    @property
    def positions(self) -> int:
        """Number P of windows."""
        return self.count[0] * self.count[1]

    def before(self, kernel_size: Pair, stride: Pair, padding: Pair) -> Window:
        """The windows of a convolution's input that its output's windows see."""
        return Window(
            self.count,
            _pair(s * t for s, t in zip(self.stride, stride, strict=True)),
            _pair(o * t + p for o, t, p in zip(self.offset, stride, padding, strict=True)),
            _pair((n - 1) * t + k for n, t, k in zip(self.size, stride, kernel_size, strict=True)),
        )


def pixels(shape: Pair) -> Window:
    """One window per pixel of an image."""
    return Window(shape, (1, 1), (0, 0), (1, 1))


def whole(shape: Pair) -> Window:
    """One window that is the image."""
    return Window((1, 1), shape, (0, 0), shape)


def extract(images: Tensor, window: Window) -> Tensor:
    """The windows of ``(B, C, H, W)``, zero outside: ``(B, P, 1, C, h, w)``.

    >>> import torch
    >>> extract(torch.ones(1, 1, 2, 2), Window((1, 1), (2, 2), (1, 1), (3, 3)))[0, 0, 0, 0].tolist()
    [[0.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 1.0, 1.0]]
    """
    axes = zip(window.count, window.stride, window.size, strict=True)
    sides = _pair((count - 1) * stride + size for count, stride, size in axes)
    padded = _placed(images, window.offset, sides)
    cut = padded.unfold(2, window.size[0], window.stride[0]).unfold(3, window.size[1], window.stride[1])
    return cut.flatten(2, 3).transpose(1, 2).unsqueeze(2)


def moved(coefficients: Tensor, window: Window, target: Window) -> Tensor:
    """The coefficients on larger windows at the same positions, or cropped to smaller ones."""
    corner = _pair(b - a for a, b in zip(window.offset, target.offset, strict=True))
    return _placed(coefficients, corner, target.size)


def gathered(coefficients: Tensor, window: Window, sides: Pair) -> Tensor:
    """The coefficients of all positions on the whole image, ``(B, 1, P n, C, H, W)``, without those outside it."""
    starts = [(i, j) for i in range(window.count[0]) for j in range(window.count[1])]
    corners = [
        _pair(n * s - o for n, s, o in zip(start, window.stride, window.offset, strict=True)) for start in starts
    ]
    cut = [_placed(coefficients[:, p], corner, sides) for p, corner in enumerate(corners)]
    return torch.cat(cut, dim=1)[:, None]


def _placed(images: Tensor, corner: Pair, sides: Pair) -> Tensor:
    """Place images at a corner of images of zeros with the given sides. Parts that lie outside are dropped.

    >>> _placed(torch.ones(1, 2), (0, -1), (1, 3)).tolist(), _placed(torch.ones(1, 1), (2, 0), (1, 1)).tolist()
    ([[1.0, 0.0, 0.0]], [[0.0]])
    """
    placed = images.new_zeros(*images.shape[:-2], *sides)
    inside, seen = [], []
    for start, size, side in zip(corner, images.shape[-2:], sides, strict=True):
        first = max(start, 0)
        last = max(min(start + size, side), first)
        inside.append(slice(first, last))
        seen.append(slice(first - start, last - start))
    placed[..., inside[0], inside[1]] = images[..., seen[0], seen[1]]
    return placed


def union(first: Window, second: Window) -> Window:
    """The smallest windows around those of both, at the same positions."""
    offset = _pair(map(max, first.offset, second.offset))
    ends = [max(a.size[i] - a.offset[i] for a in (first, second)) for i in range(2)]
    return Window(first.count, first.stride, offset, _pair(o + e for o, e in zip(offset, ends, strict=True)))


def _pair(values: Iterable[int]) -> Pair:
    first, second = values
    return first, second
