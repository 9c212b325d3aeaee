"""Sorting activations permute the channels, so they preserve norms and round nothing (Anil et al. 2019)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lconvnet.ops.derivatives import plain_call


class _MaxMin(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        a, b = x.chunk(2, dim)
        y = torch.empty_like(x)
        for half, operation in zip(y.chunk(2, dim), (torch.maximum, torch.minimum), strict=True):
            operation(a, b, out=half)
        ctx.save_for_backward(a < b)
        ctx.dim, ctx.strides = dim, y.stride()
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (swapped,) = ctx.saved_tensors
        if plain_call(grad) and grad.stride() != ctx.strides:
            grad = grad.new_empty_strided(grad.shape, ctx.strides).copy_(grad)
        a, b = grad.chunk(2, ctx.dim)
        # with weights 0 and 1 the interpolation chooses exactly if a - b is finite, and is faster than torch.where
        weight = swapped.to(grad.dtype)
        return torch.cat([torch.lerp(a, b, weight), torch.lerp(b, a, weight)], ctx.dim), None


def _exchanged(x: Tensor, dim: int) -> Tensor:
    """MaxMin in operations that PyTorch differentiates and compilers fuse; the size must be even."""
    dim = dim % x.ndim
    a, b = x.unflatten(dim, (2, -1)).unbind(dim)
    swapped = a < b
    return torch.cat([torch.where(swapped, b, a), torch.where(swapped, a, b)], dim)


def max_min(x: Tensor, dim: int = 1) -> Tensor:
    """Pair channel c with c + C/2 and put the larger one first: ``(max(a, b), min(a, b))``.

    Args:
        x: any shape with an even size along ``dim``.

    Raises:
        ValueError: if that size is odd.

    >>> max_min(torch.tensor([[1.0, 2.0, 3.0, 0.0]])).tolist()
    [[3.0, 2.0, 1.0, 0.0]]
    """
    if not torch.jit.is_tracing() and x.shape[dim] % 2:  # a trace would fix the answer
        raise ValueError(f"MaxMin pairs channels, but dimension {dim} has size {x.shape[dim]}: use an even width")
    if not torch.jit.is_scripting():  # noqa: SIM102 - what is scripted ends here
        if plain_call(x) and not torch.compiler.is_compiling():
            return _MaxMin.apply(x, dim)
    return _exchanged(x, dim)


def group_sort(x: Tensor, group_size: int, dim: int = 1) -> Tensor:
    """Sort ascending inside groups of channels (GroupSort; Anil, Lucas & Grosse 2019, section 4).

    The g members of a group lie C/g channels apart, as the two of :func:`max_min` lie C/2 apart.

    Args:
        x: any shape whose size along ``dim`` is a multiple of ``group_size``.

    Raises:
        ValueError: if it is not.

    >>> group_sort(torch.tensor([[3.0, 1.0, 2.0]]), 3).tolist()
    [[1.0, 2.0, 3.0]]
    """
    if group_size < 1 or (not torch.jit.is_tracing() and x.shape[dim] % group_size):
        raise ValueError(
            f"GroupSort: group_size={group_size} must divide the {x.shape[dim]} channels of dimension {dim}"
        )
    dim = dim % x.ndim
    groups = x.unflatten(dim, (group_size, -1))
    return groups.sort(dim).values.flatten(dim, dim + 1)
