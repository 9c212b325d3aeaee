"""One rule for every operation whose Lipschitz constant is known. What is not in the table is refused, never
taken as 1.

A rule takes the operation and the method and returns its :class:`LayerBound`, with a lower bound only where that is
the exact constant. Keys are exact types: a subclass may compute something else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import nn

from lconvnet.bounds.convolution import NEARLY_ORTHOGONAL, convolution_upper
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
from lconvnet.ops.gram import dense_bound, spectrum_bound
from lconvnet.ops.residual import residual_bound, to_float64
from lconvnet.ops.rounding import down, up

Rule = Callable[[Operation, Method], LayerBound]


def norm_one(operation: Operation, method: Method) -> LayerBound:
    """Isometries, permutations, restrictions, and entrywise maps with slopes in [-1, 1] that reach it:
    exactly 1."""
    return LayerBound(operation.name, 1.0, 1.0, "exact")


def flatten(operation: Operation, method: Method) -> LayerBound:
    """1 where every example stays by itself."""
    start = cast(nn.Flatten, operation.module).start_dim
    if start < 1:
        raise operation.refuse(f"has start_dim={start}, which may mix the examples of a batch: use start_dim=1")
    return norm_one(operation, method)


def check_sorting(operation: Operation) -> None:
    """Raise ``ValueError`` unless every example is sorted by itself; only then is it a permutation of its
    entries."""
    dim = cast(MaxMin | GroupSort | FullSort, operation.module).dim
    if dim < 0 and operation.input_shape is None:
        raise operation.refuse(f"has dim={dim}, counted from an unknown rank: use dim=1, or pass input_shape")
    if dim == 0 or (dim < 0 and dim + 1 + len(operation.input_shape or ()) == 0):
        raise operation.refuse(f"has dim={dim}, which sorts across the examples of a batch: use dim=1")


def dropout(operation: Operation, method: Method) -> LayerBound:
    """The identity in eval mode; in training mode it multiplies by 1 / (1 - p)."""
    if operation.module.training:
        raise operation.refuse("is in training mode, where it multiplies by 1 / (1 - p): call network.eval() first")
    return norm_one(operation, method)


def scale(operation: Operation, method: Method) -> LayerBound:
    """The absolute value of the factor."""
    factor = abs(cast(Scale, operation.module).factor)
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


RULES: dict[type[nn.Module], Rule] = {
    nn.Conv2d: convolution,
    nn.Linear: linear,
    nn.Flatten: flatten,
    nn.Identity: norm_one,
    nn.ReLU: norm_one,
    nn.Dropout: dropout,
    nn.ZeroPad2d: norm_one,
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
