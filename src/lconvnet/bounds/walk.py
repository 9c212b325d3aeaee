"""From a (nested) ``nn.Sequential`` to the list of its operations, refusing what has no rule."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from lconvnet.bounds.convolution import check_convolution
from lconvnet.bounds.rules import RULES, check_sorting
from lconvnet.bounds.types import Operation
from lconvnet.layers import (
    ConstrainedLayer,
    FullSort,
    GroupSort,
    InvertibleDownsampling,
    InvertibleUpsampling,
    MaxMin,
    NearestUpsampling,
    Normalize,
    NormPool,
)

ON_IMAGES = (
    nn.Conv2d,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    InvertibleDownsampling,
    InvertibleUpsampling,
    NearestUpsampling,
    Normalize,
    NormPool,
)
"""Operations that take an input of another rank otherwise: of rank two, the batch for the channels."""


def operations(network: nn.Module, input_shape: tuple[int, ...] | None = None) -> list[Operation]:
    """The operations of a network in order; a ``CircularPad2d`` belongs to the convolution behind it.

    Args:
        network: a module with a rule, or an ``nn.Sequential`` of such, nested as you like.
        input_shape: shape of one input without the batch, such as ``(C, H, W)``; every operation is then
            given its own.

    Raises:
        ValueError: names a module that has no rule or is unsound as configured, or a shape that does not fit.

    >>> network = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(4, 2), nn.ReLU()))
    >>> [step.name for step in operations(network)]
    ['0', '1.0', '1.1']
    """
    shape = None if input_shape is None else _checked_shape(input_shape)
    like = next(network.parameters(), torch.zeros(()))
    steps: list[Operation] = []
    for step in _paired(_leaves(network, "")):
        step = Operation(step.name, step.module, step.padding, shape)
        _check(step)
        if shape is not None:
            shape = _output_shape(step, shape, like)
        steps.append(step)
    return steps


def _leaves(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    _refuse_altered(module, name)
    if type(module) is not nn.Sequential:
        yield name, module
        return
    for child_name, child in module._modules.items():  # not named_children: it drops repetitions of a module
        if child is not None:
            yield from _leaves(child, f"{name}.{child_name}" if name else child_name)


def _refuse_altered(module: nn.Module, name: str) -> None:
    """A hook or a replaced ``forward`` makes a module compute something that its type does not tell."""
    if module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__:
        raise Operation(name, module).refuse(
            "has a forward hook or a replaced forward, so its type says nothing: remove it, or bake the model"
        )


def _paired(leaves: Iterator[tuple[str, nn.Module]]) -> Iterator[Operation]:
    """Join each circular padding to the convolution behind it."""
    for name, module in leaves:
        if type(module) is not nn.CircularPad2d:
            yield _known(Operation(name, module))
            continue
        name_after, after = next(leaves, (name, None))
        if type(after) is not nn.Conv2d:
            raise Operation(name, module).refuse(
                "repeats pixels: it is sound only directly before an nn.Conv2d(padding=0) that covers it"
            )
        if min(module.padding) < 0:
            raise Operation(name, module).refuse(
                f"has padding={module.padding}: a negative circular padding is not bounded; crop instead"
            )
        yield Operation(name_after, after, module)


def _known(operation: Operation) -> Operation:
    if type(operation.module) in RULES:
        return operation
    if isinstance(operation.module, ConstrainedLayer):
        raise operation.refuse("still owns its kernel: bound the baked network, lconvnet.bake(model)")
    raise operation.refuse(
        "has no Lipschitz rule, and none is assumed: build the network from "
        + ", ".join(sorted(known.__name__ for known in RULES))
    )


def _check(step: Operation) -> None:
    """Refuse a module that is unsound as configured, or at the rank of its input."""
    shape = step.input_shape
    if shape is not None and len(shape) != 3 and type(step.module) in ON_IMAGES:
        raise step.refuse(f"needs images of shape (channels, height, width), but meets inputs of shape {shape}")
    if type(step.module) is nn.Conv2d:
        check_convolution(step)
    if type(step.module) in (MaxMin, GroupSort, FullSort):
        check_sorting(step)


def _checked_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    if not shape or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in shape):
        raise ValueError(
            f"input_shape={shape!r} must hold positive integers, such as (channels, height, width), without the batch"
        )
    return tuple(shape)


@torch.no_grad()
def _output_shape(operation: Operation, shape: tuple[int, ...], like: torch.Tensor) -> tuple[int, ...]:
    """Shape after the operation, found by running it on zeros."""
    try:
        return tuple(operation.parts(torch.zeros(1, *shape, dtype=like.dtype, device=like.device)).shape[1:])
    except (RuntimeError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise operation.refuse(f"cannot take an input of shape {shape}: {reason}") from error
