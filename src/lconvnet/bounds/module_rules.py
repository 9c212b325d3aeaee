"""Lipschitz rules of modules, and checks that refuse a module that is unsound as configured.

A rule takes the call of a module and the method and returns its :class:`LayerBound`. That has a lower bound only if it
is the exact constant. The rules of convolutions are in :mod:`lconvnet.bounds.convolution`.

Pooling and padding that repeats pixels, per axis, with k taps and stride s:

- average: a non-negative kernel attains its norm at frequency 0 of its polyphase form. For a kernel of ones this is
  sqrt(sum_r c_r^2), where c_r is the number of taps of phase r; sqrt(k) if windows do not overlap. The result is
  divided by the number of pixels of a window.
- l2: every pixel is in at most ceil(k / s) windows, so sqrt(ceil(k / s)); 1 if windows do not overlap.
- maximum: 1 if windows do not overlap; else refused.
- reflection, replication: the square root of the largest number of copies of a pixel.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from lconvnet.bounds.convolution import NEARLY_ORTHOGONAL
from lconvnet.bounds.types import LayerBound, Method, ModuleCall
from lconvnet.layers import FullSort, GroupSort, MaxMin, NearestUpsampling, Normalize, Scale
from lconvnet.ops.float64 import to_float64
from lconvnet.ops.norm_bounds import dense_bound, residual_bound, spectrum_bound
from lconvnet.ops.rounding import UNIT_ROUNDOFF, down, quotient_up, root_up, up


def norm_one(call: ModuleCall, method: Method) -> LayerBound:
    """Exactly 1: isometries, permutations, restrictions, and entrywise maps whose largest absolute slope is 1."""
    return LayerBound(call.name, 1.0, 1.0, "exact")


def check_flatten(call: ModuleCall) -> None:
    """Raise ``ValueError`` unless the examples stay separate."""
    start = cast(nn.Flatten, call.module).start_dim
    if start < 1:
        raise call.refuse(f"has start_dim={start}, which may mix the examples of a batch: use start_dim=1")


def check_sorting(call: ModuleCall) -> None:
    """Raise ``ValueError`` unless each example is sorted separately, which permutes its entries."""
    dim = cast(MaxMin | GroupSort | FullSort, call.module).dim
    if dim < 0 and call.input_shape is None:
        raise call.refuse(f"has dim={dim}, counted from an unknown rank: use dim=1, or pass input_shape")
    if dim == 0 or (dim < 0 and dim + 1 + len(call.input_shape or ()) == 0):
        raise call.refuse(f"has dim={dim}, which sorts across the examples of a batch: use dim=1")


def check_dropout(call: ModuleCall) -> None:
    """Raise ``ValueError`` in training mode; in eval mode dropout is the identity."""
    if call.module.training:
        raise call.refuse("is in training mode, where it multiplies by 1 / (1 - p): call network.eval() first")


def check_batch_norm(call: ModuleCall) -> None:
    """Raise ``ValueError`` if the layer uses the statistics of the batch."""
    module = cast(nn.BatchNorm2d, call.module)
    if module.training or module.running_mean is None:
        raise call.refuse(
            "normalises by the statistics of the batch: call network.eval() first, with track_running_stats=True"
        )


def gains(call: ModuleCall) -> torch.Tensor:
    """``gamma / sqrt(var + eps)`` of each channel in float64, to within six roundings and away from 0."""
    module = cast(nn.BatchNorm2d, call.module)
    name = f"network module {call.name!r}"
    running = to_float64(cast(torch.Tensor, module.running_var), f"{name}: running_var")
    if bool((running < 0).any()):
        raise call.refuse(f"has running_var={float(running.min())!r}, which is not a variance: restore a checkpoint")
    variance = running + module.eps
    if not bool((variance > 0).all()):
        raise call.refuse("has a running variance whose root is not positive: no bound exists")
    gamma = torch.ones_like(variance) if module.weight is None else to_float64(module.weight, f"{name}: weight")
    away = torch.nextafter(gamma / variance.sqrt(), gamma.sign() * torch.inf)
    return torch.where(gamma == 0, gamma, away)


def batch_norm(call: ModuleCall, method: Method) -> LayerBound:
    """``max_c |gamma_c| / sqrt(var_c + eps)``."""
    largest = float(gains(call).abs().max())
    return LayerBound(call.name, largest * (1 + 8 * UNIT_ROUNDOFF), None, "exact")


def scale(call: ModuleCall, method: Method) -> LayerBound:
    """The absolute value of the factor."""
    factor = abs(float(cast(Scale, call.module).factor))
    return LayerBound(call.name, factor, factor, "exact")


def normalization(call: ModuleCall, method: Method) -> LayerBound:
    """1 / min std, because each channel is divided by its own std."""
    exact = 1 / min(cast(Normalize, call.module).std)
    return LayerBound(call.name, up(exact), down(exact), "exact")


def upsampling(call: ModuleCall, method: Method) -> LayerBound:
    """The factor s: the map is an isometry times s, because s^2 copies of a pixel have s times its norm."""
    factor = float(cast(NearestUpsampling, call.module).factor)
    return LayerBound(call.name, factor, factor, "exact")


def linear(call: ModuleCall, method: Method) -> LayerBound:
    """Largest singular value of the weight: the residual bound if it is nearly orthogonal, else Gram iteration."""
    module = cast(nn.Linear, call.module)
    weight = to_float64(module.weight, f"network module {call.name!r}: weight")
    if method == "spectrum":
        upper, name = spectrum_bound(weight, (1, 1)), "spectrum"
    else:
        upper, name = residual_bound(weight), "residual"
        if upper > NEARLY_ORTHOGONAL:
            upper, name = min((upper, name), (dense_bound(weight), "gram"))
    return LayerBound(call.name, upper, None, name)


def pair(value: Any) -> tuple[int, int]:
    """One number per axis from one number, or a list of one or two, as torch reads them.

    >>> pair(2), pair([3]), pair((1, 2))
    ((2, 2), (3, 3), (1, 2))
    """
    values = (value,) if isinstance(value, int) else value
    return values[0], values[-1]


def _strides(pool: nn.AvgPool2d | nn.MaxPool2d | nn.LPPool2d) -> tuple[int, int]:
    return pair(pool.stride or pool.kernel_size)


def check_average(call: ModuleCall) -> None:
    """Refuse averages that divide by fewer pixels at the border than inside."""
    pool = cast(nn.AvgPool2d, call.module)
    if pool.ceil_mode:
        raise call.refuse("has ceil_mode=True, which divides by fewer pixels at the border: use ceil_mode=False")
    if not pool.count_include_pad and pool.divisor_override is None and any(pair(pool.padding)):
        raise call.refuse(
            "has count_include_pad=False, which divides by fewer pixels at the border: use count_include_pad=True"
        )


def average(call: ModuleCall, method: Method) -> LayerBound:
    """``prod_axes sqrt(sum_r c_r^2) / divisor``."""
    pool = cast(nn.AvgPool2d, call.module)
    sides, strides = pair(pool.kernel_size), _strides(pool)
    squares = math.prod(sum(len(range(r, k, s)) ** 2 for r in range(s)) for k, s in zip(sides, strides, strict=True))
    return _root(call, squares, abs(pool.divisor_override or math.prod(sides)))


def check_adaptive(call: ModuleCall) -> None:
    """Refuse windows of different sizes."""
    if call.input_shape is None:
        raise call.refuse("averages over windows of unknown size: pass input_shape")
    size, image = cast(nn.AdaptiveAvgPool2d, call.module).output_size, call.input_shape[-2:]
    if any(wanted and n % wanted for n, wanted in zip(image, _output(size), strict=True)):
        raise call.refuse(f"has output_size={size}, which does not divide the image {image}: windows would differ")


def _output(size: Any) -> tuple[int | None, int | None]:
    return (size, size) if size is None or isinstance(size, int) else (size[0], size[1])


def adaptive(call: ModuleCall, method: Method) -> LayerBound:
    """``1 / sqrt(pixels of a window)``."""
    size = _output(cast(nn.AdaptiveAvgPool2d, call.module).output_size)
    shape = cast(tuple[int, ...], call.input_shape)[-2:]
    pixels = math.prod(n // wanted if wanted else 1 for n, wanted in zip(shape, size, strict=True))
    return _root(call, pixels, pixels)


def _root(call: ModuleCall, squares: int, divisor: int) -> LayerBound:
    """sqrt(squares) / divisor, which is also a lower bound if a float holds it exactly."""
    root = root_up(squares)
    upper = quotient_up(root, divisor)
    exact = Fraction(upper) ** 2 * divisor**2 == squares
    return LayerBound(call.name, upper, upper if exact else None, "exact")


def check_maximum(call: ModuleCall) -> None:
    """Refuse windows that overlap."""
    pool = cast(nn.MaxPool2d, call.module)
    sides, strides, dilation = pair(pool.kernel_size), _strides(pool), pair(pool.dilation)
    if any(s < d * (k - 1) + 1 for k, s, d in zip(sides, strides, dilation, strict=True)):
        raise call.refuse(
            f"has windows of {sides} that overlap at stride {strides}, so a pixel can count more than once: use "
            "stride >= kernel_size"
        )
    if pool.return_indices:
        raise call.refuse("has return_indices=True: indices have no Lipschitz constant")


def check_power(call: ModuleCall) -> None:
    """Refuse norms other than l2, and windows that torch scales up at the border."""
    pool = cast(nn.LPPool2d, call.module)
    if pool.norm_type != 2:
        raise call.refuse(f"has norm_type={pool.norm_type}: only l2 has a rule, use norm_type=2")
    if pool.ceil_mode:
        raise call.refuse("has ceil_mode=True, which scales up the windows at the border: use ceil_mode=False")


def power(call: ModuleCall, method: Method) -> LayerBound:
    """``prod_axes sqrt(ceil(k / s))``."""
    pool = cast(nn.LPPool2d, call.module)
    sides, strides = pair(pool.kernel_size), _strides(pool)
    return _root(call, math.prod(-(-k // s) for k, s in zip(sides, strides, strict=True)), 1)


def check_repeating(call: ModuleCall) -> None:
    """Refuse an unknown size, because the number of copies depends on it."""
    if call.input_shape is None:
        raise call.refuse("repeats pixels as often as the image is small: pass input_shape")


def repeating(call: ModuleCall, method: Method) -> LayerBound:
    """``prod_axes sqrt(largest number of copies of a pixel)``, counted by padding the indices."""
    module = cast(nn.ReflectionPad2d | nn.ReplicationPad2d, call.module)
    mode = "reflect" if type(module) is nn.ReflectionPad2d else "replicate"
    height, width = cast(tuple[int, ...], call.input_shape)[-2:]
    left, right, top, bottom = module.padding
    copies = [_copies(n, pad, mode) for n, pad in ((height, (top, bottom)), (width, (left, right)))]
    return _root(call, math.prod(copies), 1)


def _copies(size: int, pad: tuple[int, int], mode: str) -> int:
    padded = F.pad(torch.arange(size, dtype=torch.float64)[None, None], pad, mode=mode)
    return int(torch.bincount(padded.long().flatten()).max())
