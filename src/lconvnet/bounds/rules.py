"""One rule for every module whose Lipschitz constant is known. What is not in the table is refused, never taken as 1.

A rule takes the operation and the method and returns its :class:`LayerBound`, with a lower bound only where that is
the exact constant. Keys are exact types: a subclass may compute something else. A check raises where a module is
unsound as configured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import nn

from lconvnet.bounds import pooling
from lconvnet.bounds.convolution import (
    NEARLY_ORTHOGONAL,
    check_convolution,
    check_pairs,
    convolution_upper,
    transposed_upper,
)
from lconvnet.bounds.types import LayerBound, Method, Operation
from lconvnet.layers import (
    Abs,
    FullSort,
    GroupSort,
    InvertibleDownsampling,
    InvertibleUpsampling,
    MaxMin,
    NearestUpsampling,
    Normalize,
    NormPool,
    Scale,
    TwoSidedReLU,
)
from lconvnet.ops.float64 import to_float64
from lconvnet.ops.norm_bounds import dense_bound, residual_bound, spectrum_bound
from lconvnet.ops.rounding import UNIT_ROUNDOFF, down, up

Rule = Callable[[Operation, Method], LayerBound]
Check = Callable[[Operation], None]


def norm_one(operation: Operation, method: Method) -> LayerBound:
    """Isometries, permutations, restrictions, and entrywise maps with slopes in [-1, 1] that reach it:
    exactly 1."""
    return LayerBound(operation.name, 1.0, 1.0, "exact")


def check_flatten(operation: Operation) -> None:
    """Raise ``ValueError`` unless every example stays by itself."""
    start = cast(nn.Flatten, operation.module).start_dim
    if start < 1:
        raise operation.refuse(f"has start_dim={start}, which may mix the examples of a batch: use start_dim=1")


def check_sorting(operation: Operation) -> None:
    """Raise ``ValueError`` unless every example is sorted by itself; only then is it a permutation of its
    entries."""
    dim = cast(MaxMin | GroupSort | FullSort, operation.module).dim
    if dim < 0 and operation.input_shape is None:
        raise operation.refuse(f"has dim={dim}, counted from an unknown rank: use dim=1, or pass input_shape")
    if dim == 0 or (dim < 0 and dim + 1 + len(operation.input_shape or ()) == 0):
        raise operation.refuse(f"has dim={dim}, which sorts across the examples of a batch: use dim=1")


def check_dropout(operation: Operation) -> None:
    """Raise ``ValueError`` in training mode; in eval mode it is the identity."""
    if operation.module.training:
        raise operation.refuse("is in training mode, where it multiplies by 1 / (1 - p): call network.eval() first")


def check_batch_norm(operation: Operation) -> None:
    """Raise ``ValueError`` where the statistics are those of the batch."""
    module = cast(nn.BatchNorm2d, operation.module)
    if module.training or module.running_mean is None:
        raise operation.refuse(
            "normalises by the statistics of the batch: call network.eval() first, with track_running_stats=True"
        )


def gains(operation: Operation) -> torch.Tensor:
    """``gamma / sqrt(var + eps)`` of each channel in float64, to within six roundings and away from 0."""
    module = cast(nn.BatchNorm2d, operation.module)
    name = f"network module {operation.name!r}"
    running = to_float64(cast(torch.Tensor, module.running_var), f"{name}: running_var")
    if bool((running < 0).any()):
        raise operation.refuse(f"has running_var={float(running.min())!r}, which is no variance: restore a checkpoint")
    variance = running + module.eps
    if not bool((variance > 0).all()):
        raise operation.refuse("has a running variance whose root is not positive: no bound exists")
    gamma = torch.ones_like(variance) if module.weight is None else to_float64(module.weight, f"{name}: weight")
    away = torch.nextafter(gamma / variance.sqrt(), gamma.sign() * torch.inf)
    return torch.where(gamma == 0, gamma, away)


def batch_norm(operation: Operation, method: Method) -> LayerBound:
    """``max_c |gamma_c| / sqrt(var_c + eps)``."""
    largest = float(gains(operation).abs().max())
    return LayerBound(operation.name, largest * (1 + 8 * UNIT_ROUNDOFF), None, "exact")


def scale(operation: Operation, method: Method) -> LayerBound:
    """The absolute value of the factor."""
    factor = abs(float(cast(Scale, operation.module).factor))
    return LayerBound(operation.name, factor, factor, "exact")


def normalization(operation: Operation, method: Method) -> LayerBound:
    """1 / min std, for every channel is divided by its own."""
    exact = 1 / min(cast(Normalize, operation.module).std)
    return LayerBound(operation.name, up(exact), down(exact), "exact")


def upsampling(operation: Operation, method: Method) -> LayerBound:
    """The factor s: an isometry times s, since s^2 copies of a pixel have s times its norm."""
    factor = float(cast(NearestUpsampling, operation.module).factor)
    return LayerBound(operation.name, factor, factor, "exact")


def linear(operation: Operation, method: Method) -> LayerBound:
    """Largest singular value of the weight: residual certificate where it is nearly orthogonal, else Gram
    iteration."""
    module = cast(nn.Linear, operation.module)
    weight = to_float64(module.weight, f"network module {operation.name!r}: weight")
    if method == "spectrum":
        upper, name = spectrum_bound(weight, (1, 1)), "spectrum"
    else:
        upper, name = residual_bound(weight), "residual"
        if upper > NEARLY_ORTHOGONAL:
            upper, name = min((upper, name), (dense_bound(weight), "gram"))
    return LayerBound(operation.name, upper, None, name)


def convolution(operation: Operation, method: Method) -> LayerBound:
    """See :mod:`lconvnet.bounds.convolution`."""
    upper, name = convolution_upper(operation, method)
    return LayerBound(operation.name, upper, None, name)


def transposed(operation: Operation, method: Method) -> LayerBound:
    """The adjoint of a convolution: see :mod:`lconvnet.bounds.convolution`."""
    upper, name = transposed_upper(operation, method)
    return LayerBound(operation.name, upper, None, name)


RULES: dict[type[nn.Module], Rule] = {
    nn.Conv2d: convolution,
    nn.ConvTranspose2d: transposed,
    nn.Linear: linear,
    nn.Flatten: norm_one,
    nn.Identity: norm_one,
    nn.ReLU: norm_one,
    nn.Dropout: norm_one,
    nn.Dropout2d: norm_one,
    nn.BatchNorm1d: batch_norm,
    nn.BatchNorm2d: batch_norm,
    nn.ZeroPad2d: norm_one,
    nn.ReflectionPad2d: pooling.repeating,
    nn.ReplicationPad2d: pooling.repeating,
    nn.AvgPool2d: pooling.average,
    nn.AdaptiveAvgPool2d: pooling.adaptive,
    nn.MaxPool2d: norm_one,
    nn.LPPool2d: pooling.power,
    nn.PixelShuffle: norm_one,
    nn.PixelUnshuffle: norm_one,
    MaxMin: norm_one,
    GroupSort: norm_one,
    FullSort: norm_one,
    Abs: norm_one,
    InvertibleDownsampling: norm_one,
    InvertibleUpsampling: norm_one,
    NearestUpsampling: upsampling,
    Normalize: normalization,
    NormPool: norm_one,
    TwoSidedReLU: norm_one,
    Scale: scale,
}

BUILT_IN = frozenset(RULES)
"""Those whose constructors are known here, unlike the ones that users register."""

CHECKS: dict[type[nn.Module], Check] = {
    nn.Conv2d: check_convolution,
    nn.ConvTranspose2d: check_pairs,
    nn.Flatten: check_flatten,
    **dict.fromkeys((nn.Dropout, nn.Dropout2d), check_dropout),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d), check_batch_norm),
    **dict.fromkeys((nn.ReflectionPad2d, nn.ReplicationPad2d), pooling.check_repeating),
    nn.AvgPool2d: pooling.check_average,
    nn.AdaptiveAvgPool2d: pooling.check_adaptive,
    nn.MaxPool2d: pooling.check_maximum,
    nn.LPPool2d: pooling.check_power,
    **dict.fromkeys((MaxMin, GroupSort, FullSort), check_sorting),
}

ON_IMAGES = {
    nn.Conv2d,
    nn.ConvTranspose2d,
    nn.ZeroPad2d,
    nn.ReflectionPad2d,
    nn.ReplicationPad2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.MaxPool2d,
    nn.LPPool2d,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    InvertibleDownsampling,
    InvertibleUpsampling,
    NearestUpsampling,
    Normalize,
    NormPool,
}
"""Modules that take an input of another rank otherwise: of rank two, the batch for the channels."""


def register_rule(kind: type[nn.Module], rule: Rule) -> None:
    """Give a module of your own its Lipschitz rule; it is then one operation, and its forward pass is not read.

    :func:`lconvnet.save` keeps such a module, and :func:`lconvnet.load` gives it back where the class has its rule.

    :func:`lconvnet.certify` needs a rule for its rounding, too: an entry of
    :data:`lconvnet.bounds.error_rules.ERROR_RULES` by the name of its operation in the graph (module and class).

    Args:
        kind: the class, exactly; what inherits from it needs a rule of its own.
        rule: takes an :class:`Operation` (``module``, ``name``, ``input_shape``) and the method, and returns a
            :class:`LayerBound` whose ``upper`` is never below the l2 constant of the module, for one example.

    Raises:
        ValueError: for what is no module class, or has a rule already.

    >>> class Halve(nn.Module):
    ...     def forward(self, x):
    ...         return x / 2
    >>> register_rule(Halve, lambda operation, method: LayerBound(operation.name, 0.5, 0.5, "exact"))
    >>> from lconvnet.bounds import lipschitz_bound
    >>> lipschitz_bound(nn.Sequential(Halve(), Halve())).upper
    0.25
    >>> del RULES[Halve]
    """
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)) or kind is nn.Sequential:
        raise ValueError(f"kind={kind!r} must be a class of modules with a forward pass of its own")
    if kind in RULES:
        raise ValueError(f"kind={kind.__name__} has a rule already: derive a class and register that")
    RULES[kind] = rule
