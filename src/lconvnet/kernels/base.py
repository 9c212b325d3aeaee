"""A kernel is a module whose ``forward()`` returns the weight of a linear map with norm at most 1."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum
from math import sqrt
from typing import ClassVar, Literal

from torch import Tensor, nn

from lconvnet.ops.derivatives import plain_call
from lconvnet.ops.orthogonalize import Engine


class Promise(Enum):
    """What a kernel promises about the singular values of its linear map, before any bound measures them."""

    ORTHOGONAL = "all singular values are 1"
    LIPSCHITZ = "no singular value exceeds 1"
    APPROXIMATE = "singular values are steered towards at most 1; only a bound tells how well"


class Kernel(nn.Module, ABC):
    """Free parameters in, constrained weight out.

    Attributes:
        promise: the guarantee of the method, under circular padding for convolutions; by default the weakest.
        sound_padding: padding modes under which the promise's upper half (norm at most 1, or the estimate) holds; by
            default only circular.
        bias_fan: a layer draws its bias uniformly within 1 / sqrt(inputs) or 1 / sqrt(outputs) of its weight.
        frozen: the weight keeps its initial value, and so does the bias of its layer.
        engine: the orthogonalisation engine, for kernels that use one. None chooses by device and dtype at each call;
            baking uses the choice for the current parameters.
    """

    promise: ClassVar[Promise] = Promise.APPROXIMATE
    sound_padding: ClassVar[frozenset[str]] = frozenset({"circular"})
    bias_fan: ClassVar[Literal["inputs", "outputs"]] = "inputs"
    frozen: ClassVar[bool] = False
    engine: Engine | None = None

    @abstractmethod
    def forward(self) -> Tensor:
        """The weight: ``(out_channels, in_channels, k, k)`` for a stride-1 convolution, ``(out, in)`` for dense."""

    def reset_parameters(self) -> None:
        """Draw the free parameters again. Raises ValueError if the kernel has some and does not define how."""
        if next(self.parameters(), None) is not None:
            raise ValueError(f"{type(self).__name__} does not say how to draw its parameters: define reset_parameters")


class DenseKernel(Kernel):
    """A kernel of a dense layer: its weight is ``(out_features, in_features)``."""


def draw_orthogonal_(W: Tensor) -> None:
    """Fill matrices ``(..., m, n)``, in place, with Haar distributed semi-orthogonal ones times 1 / sqrt(n).

    The scale does not change an orthogonalised weight. It only changes how far a step of the optimiser turns it: Adam
    moves every entry by about its learning rate. Source: the initial values of Li et al. 2019.

    >>> import torch
    >>> W = torch.empty(2, 3, 4)
    >>> draw_orthogonal_(W)
    >>> torch.allclose(4 * W @ W.mT, torch.eye(3).expand(2, 3, 3), atol=1e-6)
    True
    """
    if W.ndim > 2:
        for part in W.unbind():
            draw_orthogonal_(part)
    elif W.numel():
        nn.init.orthogonal_(W, gain=1 / sqrt(W.shape[-1]))


def draw_uniform_(W: Tensor) -> None:
    """Fill a weight ``(out, in, ...)`` as ``nn.Conv2d`` and ``nn.Linear`` do: uniform within 1 / sqrt(inputs)."""
    nn.init.kaiming_uniform_(W, a=sqrt(5))


def remember(kernel: Kernel, **statistics: Tensor) -> None:
    """Write values into the buffers of these names. Refuses a transform that would lose or mix them up."""
    for name, value in statistics.items():
        try:
            kernel.get_buffer(name).copy_(value.detach())
        except RuntimeError as error:
            if plain_call():
                raise
            raise ValueError(
                f"{type(kernel).__name__} writes {name!r} at every call in training mode, which this transform of "
                "torch.func forbids: call eval() first, or make the buffers arguments (torch.func.functional_call)"
            ) from error


def require_positive(**sizes: int) -> None:
    """Refuse a size that is not a positive integer; the error names it."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name}={size!r} must be a positive integer")


def require_input_size(input_size: tuple[int, int] | None, method: str) -> tuple[int, int]:
    """The image size that a method depends on. Refuses None."""
    if input_size is None:
        raise ValueError(f"input_size=None: {method} depends on the image size, so pass input_size=(height, width)")
    require_positive(height=input_size[0], width=input_size[1])
    return input_size
