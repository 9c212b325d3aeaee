"""Pooling and padding that repeats pixels.

An axis at a time, with k taps and stride s:

- average: a non-negative kernel has its norm at frequency 0 of its polyphase form, so that of ones is sqrt(sum_r c_r^2)
  with c_r the taps of phase r; sqrt(k) where windows do not overlap. Divided by the window's number of pixels.
- l2: every pixel is in at most ceil(k / s) windows, hence sqrt(ceil(k / s)); 1 where windows do not overlap.
- maximum: 1 where windows do not overlap; else refused.
- reflection, replication: the square root of the largest number of copies of a pixel.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from lconvnet.bounds.types import LayerBound, Method, Operation
from lconvnet.ops.rounding import quotient_up, root_up


def pair(value: Any) -> tuple[int, int]:
    """A number for each axis, as torch reads one number, or a list of one or of two.

    >>> pair(2), pair([3]), pair((1, 2))
    ((2, 2), (3, 3), (1, 2))
    """
    values = (value,) if isinstance(value, int) else value
    return values[0], values[-1]


def _strides(pool: nn.AvgPool2d | nn.MaxPool2d | nn.LPPool2d) -> tuple[int, int]:
    return pair(pool.stride or pool.kernel_size)


def check_average(operation: Operation) -> None:
    """Refuse windows that are divided by fewer pixels at the border than inside."""
    pool = cast(nn.AvgPool2d, operation.module)
    if pool.ceil_mode:
        raise operation.refuse("has ceil_mode=True, which divides by fewer pixels at the border: use ceil_mode=False")
    if not pool.count_include_pad and pool.divisor_override is None and any(pair(pool.padding)):
        raise operation.refuse(
            "has count_include_pad=False, which divides by fewer pixels at the border: use count_include_pad=True"
        )


def average(operation: Operation, method: Method) -> LayerBound:
    """``prod_axes sqrt(sum_r c_r^2) / divisor``."""
    pool = cast(nn.AvgPool2d, operation.module)
    sides, strides = pair(pool.kernel_size), _strides(pool)
    squares = math.prod(sum(len(range(r, k, s)) ** 2 for r in range(s)) for k, s in zip(sides, strides, strict=True))
    return _root(operation, squares, abs(pool.divisor_override or math.prod(sides)))


def check_adaptive(operation: Operation) -> None:
    """Refuse windows of different sizes."""
    if operation.input_shape is None:
        raise operation.refuse("averages over windows of unknown size: pass input_shape")
    size, image = cast(nn.AdaptiveAvgPool2d, operation.module).output_size, operation.input_shape[-2:]
    if any(wanted and n % wanted for n, wanted in zip(image, _output(size), strict=True)):
        raise operation.refuse(f"has output_size={size}, which does not divide the image {image}: windows would differ")


def _output(size: Any) -> tuple[int | None, int | None]:
    return (size, size) if size is None or isinstance(size, int) else (size[0], size[1])


def adaptive(operation: Operation, method: Method) -> LayerBound:
    """``1 / sqrt(pixels of a window)``."""
    size = _output(cast(nn.AdaptiveAvgPool2d, operation.module).output_size)
    shape = cast(tuple[int, ...], operation.input_shape)[-2:]
    pixels = math.prod(n // wanted if wanted else 1 for n, wanted in zip(shape, size, strict=True))
    return _root(operation, pixels, pixels)


def _root(operation: Operation, squares: int, divisor: int) -> LayerBound:
    """sqrt(squares) / divisor, which is also a lower bound where it is a float."""
    root = root_up(squares)
    upper = quotient_up(root, divisor)
    exact = Fraction(upper) ** 2 * divisor**2 == squares
    return LayerBound(operation.name, upper, upper if exact else None, "exact")


def check_maximum(operation: Operation) -> None:
    """Refuse windows that overlap."""
    pool = cast(nn.MaxPool2d, operation.module)
    sides, strides, dilation = pair(pool.kernel_size), _strides(pool), pair(pool.dilation)
    if any(s < d * (k - 1) + 1 for k, s, d in zip(sides, strides, dilation, strict=True)):
        raise operation.refuse(
            f"has windows of {sides} that overlap at stride {strides}, so a pixel can count more than once: use "
            "stride >= kernel_size"
        )
    if pool.return_indices:
        raise operation.refuse("has return_indices=True: indices have no Lipschitz constant")


def check_power(operation: Operation) -> None:
    """Refuse other norms than l2, and windows that torch scales up at the border."""
    pool = cast(nn.LPPool2d, operation.module)
    if pool.norm_type != 2:
        raise operation.refuse(f"has norm_type={pool.norm_type}: only l2 has a rule, use norm_type=2")
    if pool.ceil_mode:
        raise operation.refuse("has ceil_mode=True, which scales up the windows at the border: use ceil_mode=False")


def power(operation: Operation, method: Method) -> LayerBound:
    """``prod_axes sqrt(ceil(k / s))``."""
    pool = cast(nn.LPPool2d, operation.module)
    sides, strides = pair(pool.kernel_size), _strides(pool)
    return _root(operation, math.prod(-(-k // s) for k, s in zip(sides, strides, strict=True)), 1)


def check_repeating(operation: Operation) -> None:
    """The number of copies depends on the size."""
    if operation.input_shape is None:
        raise operation.refuse("repeats pixels as often as the image is small: pass input_shape")


def repeating(operation: Operation, method: Method) -> LayerBound:
    """``prod_axes sqrt(largest number of copies of a pixel)``, by padding the indices."""
    module = cast(nn.ReflectionPad2d | nn.ReplicationPad2d, operation.module)
    mode = "reflect" if type(module) is nn.ReflectionPad2d else "replicate"
    height, width = cast(tuple[int, ...], operation.input_shape)[-2:]
    left, right, top, bottom = module.padding
    copies = [_copies(n, pad, mode) for n, pad in ((height, (top, bottom)), (width, (left, right)))]
    return _root(operation, math.prod(copies), 1)


def _copies(size: int, pad: tuple[int, int], mode: str) -> int:
    padded = F.pad(torch.arange(size, dtype=torch.float64)[None, None], pad, mode=mode)
    return int(torch.bincount(padded.long().flatten()).max())
