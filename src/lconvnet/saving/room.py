"""How much memory one image takes in a saved network, from shapes alone, before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lconvnet import allowance

EACH = 32
"""Bytes of a number: two images in float64, alone and in a batch, as they are when a network is read and certified."""

PATCH = 16
"""Bytes of a number in a patch: two images in float64."""


def require_room(network: nn.Module, input_shape: tuple[int, ...], size: int, what: str) -> None:
    """Raise `ValueError` where an image in a network of `size` bytes takes more than is allowed, or shapes do not tell.

    What is counted is what is alive at once of all that torch computes, whichever module asks for it, with the patches
    that a convolution lays out as a matrix.
    """
    about = f"{what}: an image of shape {tuple(input_shape)} in it"
    counting = _Counting(size, about)
    counting.need(EACH * math.prod(input_shape))
    try:
        with counting:
            _shapes(network, input_shape)
    except counting.TooLargeError as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # the same
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{about} does not fit, or takes memory that shapes do not tell: {reason}") from None


def outputs(network: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape of one output, from shapes alone; None where they do not tell.

    >>> outputs(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), (1, 2, 2))
    (3,)
    """
    with suppress(Exception):  # whatever a foreign forward pass raises for an input without values
        return tuple(_shapes(network, input_shape).shape[1:])
    return None


@torch.no_grad()
def _shapes(network: nn.Module, input_shape: tuple[int, ...]) -> Tensor:
    """The output of one image, without its numbers."""
    tensors = chain(network.named_parameters(), network.named_buffers())
    held = {name: value.to("meta") for name, value in tensors}
    dtype = next((value.dtype for value in held.values() if value.is_floating_point()), None)
    return torch.func.functional_call(network, held, (torch.empty(1, *input_shape, device="meta", dtype=dtype),))


class _Counting(TorchDispatchMode):
    """Hears of every operation, and refuses what would be alive at once where that is too much."""

    class TooLargeError(ValueError):
        """More than is allowed."""

    def __init__(self, size: int, what: str) -> None:
        super().__init__()
        self.size, self.what = size, what
        self.alive: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.alive = {storage: held for storage, held in self.alive.items() if not storage.expired()}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.alive[StorageWeakRef(storage)] = len(storage) // tensor.element_size()
        self.need(EACH * sum(self.alive.values()) + PATCH * _patches(func, args, result))
        return result

    def need(self, size: int) -> None:
        """Raise `TooLargeError` for so many bytes."""
        allowance.require(size, self.size, self.what, self.TooLargeError)


def _patches(function: Any, args: Any, result: Any) -> int:
    """Numbers of the matrix that a convolution multiplies with: a patch for each pixel of the smaller side.

    Of groups that of the next one is made before that of the last one is given back.
    """
    if function is not torch.ops.aten.convolution.default:
        return 0
    image, weight, transposed, groups = args[0], args[1], args[6], args[8]
    return min(groups, 2) * weight[0].numel() * math.prod((image if transposed else result).shape[2:])
