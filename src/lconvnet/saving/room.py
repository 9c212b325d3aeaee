"""How much memory one image takes in a saved network, from shapes alone, before anything is computed."""

from __future__ import annotations

import weakref
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from lconvnet import allowance

EACH = 16
"""Bytes of a number: two images in float64, as they are when a network is read and certified."""


def require_room(network: nn.Module, input_shape: tuple[int, ...], size: int, what: str) -> None:
    """Raise `ValueError` where an image in a network of `size` bytes takes more than is allowed.

    What is counted is what is alive at once, with the patches that a convolution lays out as a matrix. Where the image
    does not fit, nothing more would be computed either.
    """
    held = 0

    def need(numbers: int) -> None:
        allowance.require(EACH * (held + numbers), size, f"{what}: an image of shape {tuple(input_shape)} in it")

    def let_go(numbers: int) -> None:
        nonlocal held
        held -= numbers

    def enter(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal held
        if isinstance(output, Tensor):
            need(output.numel() + _patches(module, output))
            held += output.numel()
            weakref.finalize(output, let_go, output.numel())

    with ExitStack() as hooks, torch.no_grad(), suppress(RuntimeError, IndexError, TypeError, AttributeError):
        for module in network.modules():
            if not isinstance(module, nn.Sequential | nn.ModuleList):
                hooks.enter_context(module.register_forward_hook(enter))
        _shapes(network, input_shape)


def outputs(network: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape of one output, from shapes alone; None where they do not tell.

    >>> outputs(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), (1, 2, 2))
    (3,)
    """
    with torch.no_grad(), suppress(RuntimeError, IndexError, TypeError, AttributeError):
        return tuple(_shapes(network, input_shape).shape[1:])
    return None


def _shapes(network: nn.Module, input_shape: tuple[int, ...]) -> Tensor:
    """The output of one image, without its numbers."""
    held = {name: value.to("meta") for name, value in network.state_dict().items()}
    dtype = next((value.dtype for value in held.values() if value.is_floating_point()), None)
    return torch.func.functional_call(network, held, (torch.empty(1, *input_shape, device="meta", dtype=dtype),))


def _patches(module: nn.Module, output: Tensor) -> int:
    """Numbers of the matrix that a convolution multiplies with."""
    return module.weight[0].numel() * output[0, 0].numel() if isinstance(module, nn.Conv2d) else 0
