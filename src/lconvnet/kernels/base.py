"""A kernel is a module whose ``forward()`` returns the weight of a linear map with norm at most 1."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum
from typing import ClassVar

from torch import Tensor, nn


class Promise(Enum):
    """What a kernel says about the singular values of its linear map, before any bound has measured them."""

    ORTHOGONAL = "all singular values are 1"
    LIPSCHITZ = "no singular value exceeds 1"
    APPROXIMATE = "singular values are steered towards at most 1; only a bound tells how well"


class Kernel(nn.Module, ABC):
    """Free parameters in, constrained weight out.

    Attributes:
        promise: the guarantee of the method, under circular padding for convolutions.
        sound_padding: padding modes under which the promise's upper half (norm at most 1, or the estimate) holds.
    """

    promise: ClassVar[Promise]
    sound_padding: ClassVar[frozenset[str]] = frozenset({"circular", "zeros"})

    @abstractmethod
    def forward(self) -> Tensor:
        """The weight: ``(out_channels, in_channels, k, k)`` for a stride-1 convolution, ``(out, in)`` for dense."""


class DenseKernel(Kernel):
    """A kernel of a dense layer, which may apply its weight without forming it."""

    @abstractmethod
    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """``x W^T + b`` with W the weight: ``(..., in)`` to ``(..., out)``."""


def require_positive(**sizes: int) -> None:
    """Refuse a size that is not a positive integer, by its name."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name}={size!r} must be a positive integer")


def require_input_size(input_size: tuple[int, int] | None, method: str) -> tuple[int, int]:
    """Refuse to guess the image size where a method depends on it."""
    if input_size is None:
        raise ValueError(f"input_size=None: {method} depends on the image size, so pass input_size=(height, width)")
    require_positive(height=input_size[0], width=input_size[1])
    return input_size
