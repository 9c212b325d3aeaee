"""What each operation of a graph adds to the forward error: one rule an operation, what has none is refused.

A rule takes the node, what its inputs store, and the setting; see :mod:`lconvnet.bounds.forward_error`. Assumed of the
elementary functions: square root and ``hypot`` are within four units in the last place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lconvnet.bounds.convolution import dilate
from lconvnet.bounds.forward_error import INFLATION, ZERO, Line, Rule, Setting, Stored
from lconvnet.bounds.graph import Node
from lconvnet.bounds.pooling import pair
from lconvnet.ops.circular import to_unshuffled
from lconvnet.ops.float64 import row_norms, to_float64
from lconvnet.ops.nonnegative import nonnegative_bound
from lconvnet.ops.rounding import gamma, up


def exact(node: Node, inputs: Sequence[Stored], setting: Setting) -> Stored:
    """Moves, signs, repetitions, choices: nothing is rounded."""
    (x,) = inputs
    upper = setting.uppers[node.name]
    norm = x.norm * upper
    return Stored(norm, x.error * upper, x.peak.at_least(norm))


def linear(node: Node, inputs: Sequence[Stored], setting: Setting) -> Stored:
    """``W x + b``, dense or as a convolution, also a transposed one."""
    (x,) = inputs
    weight, bias = setting.tensors[node.tensors["weight"]], _bias_norm(node, setting)
    terms = weight[0].numel() if node.operation != "ConvTranspose2d" else weight.numel() // node.options["out_channels"]
    sums = x.norm * absolute_bound(node, setting.shapes, setting.tensors) + Line(0.0, bias)
    return _rounded(node, x, sums, terms, setting, bias)


def average(node: Node, inputs: Sequence[Stored], setting: Setting) -> Stored:
    """Means: a sum, then a division. The matrix has no negative entry, so it is its own absolute value."""
    (x,) = inputs
    terms = _averaged(node, setting)
    means = x.norm * setting.uppers[node.name]
    y, divisor = _rounded(node, x, means, terms + 1, setting), abs(node.options.get("divisor_override") or terms)
    return Stored(y.norm, y.error, y.peak.at_least(means * (divisor * (1 + setting.arithmetic.gamma(terms)))))


def scaled(node: Node, inputs: Sequence[Stored], setting: Setting) -> Stored:
    """A product with or a quotient by a constant, which itself is rounded to the network's dtype."""
    (x,) = inputs
    values = _constant(node, setting)
    _check_range(node, "constant", values, setting)
    if node.operation == "divide":  # some multiply by the inverse
        _check_range(node, "inverse constant", 1 / values[values != 0], setting)
    return _rounded(node, x, x.norm * setting.uppers[node.name], 2, setting)


def normalized(node: Node, inputs: Sequence[Stored], setting: Setting) -> Stored:
    """``gain (x - mean) / sqrt(var + eps) + bias``, as it stands or as ``alpha x + beta``: ten roundings at most."""
    (x,) = inputs
    values = {role: setting.tensors[key].detach().cpu().double() for role, key in node.tensors.items()}
    variance, mean = values["running_var"] + node.options["eps"], values["running_mean"]
    weight = values.get("weight", torch.ones_like(variance)).abs()
    alpha = torch.where(weight > 0, (weight / variance.sqrt()).clamp(min=5e-324), 0.0)
    for what, factors in (("running_var + eps", variance), ("weight", weight), ("gain", alpha)):
        _check_range(node, what, factors, setting)
    moved = alpha * mean.abs() + values.get("bias", torch.zeros_like(alpha)).abs()
    return _standardized(node, x, moved, mean, (1 / variance.sqrt(), weight, alpha), setting)


def standardized(node: Node, inputs: Sequence[Stored], setting: Setting) -> Stored:
    """``(x - mean) / std`` with constants that are rounded to the network's dtype themselves."""
    (x,) = inputs
    mean, std = (torch.tensor(node.options[name], dtype=torch.float64) for name in ("mean", "std"))
    for what, factors in (("mean", mean), ("std", std)):
        _check_range(node, what, factors, setting)
    return _standardized(node, x, mean.abs() / std, mean, (1 / std,), setting)


def _standardized(
    node: Node, x: Stored, moved: Tensor, mean: Tensor, factors: Sequence[Tensor], setting: Setting
) -> Stored:
    """``factors (x - mean)``, factor by factor in some order; a product that underflows may meet a factor yet."""
    copies, largest = setting.size(node.name) // moved.numel(), max(1.0, *(float(f.max()) for f in factors))
    bias = _norm(moved, copies)
    y = _rounded(node, x, x.norm * setting.uppers[node.name] + Line(0.0, bias), 10, setting, bias)
    lost = _tiny(node, 10, setting) * largest
    centred = (x.norm + Line(0.0, _norm(mean, copies))) * max(1.0, float(factors[0].max()))
    return Stored(y.norm + lost, y.error + lost, y.peak.at_least(centred * 2))


def shifted(node: Node, inputs: Sequence[Stored], setting: Setting) -> Stored:
    """A sum with a constant, which itself is rounded."""
    (x,) = inputs
    values = _constant(node, setting)
    constant = _norm(values, setting.size(node.name) // values.numel())
    grown = x.norm * setting.uppers[node.name]
    return _rounded(node, x, grown + Line(0.0, constant), 2, setting, constant)


def added(node: Node, inputs: Sequence[Stored], setting: Setting) -> Stored:
    """One sum or difference of two nodes."""
    a, b = (_broadcast(node, name, x, setting) for name, x in zip(node.inputs, inputs, strict=True))
    norm = a.norm + b.norm
    rounding = norm * setting.arithmetic.gamma(1) + _tiny(node, 1, setting)
    norm = norm + rounding
    return Stored(norm, a.error + b.error + rounding, a.peak.at_least(b.peak).at_least(norm))


def concatenated(node: Node, inputs: Sequence[Stored], setting: Setting) -> Stored:
    """Side by side: norms add up in squares."""
    norm, error, peak = ZERO, ZERO, ZERO
    for name, x in zip(node.inputs, inputs, strict=True):
        x = _broadcast(node, name, x, setting) if node.operation == "hypot" else x
        norm, error, peak = norm.hypot(x.norm), error.hypot(x.error), peak.at_least(x.peak)
    return Stored(norm, error, peak)


def hypot(node: Node, inputs: Sequence[Stored], setting: Setting) -> Stored:
    """``sqrt(a^2 + b^2)``, entry by entry."""
    x = concatenated(node, inputs, setting)
    rounding = x.norm * setting.arithmetic.gamma(8) + _tiny(node, 8, setting)
    return Stored(x.norm + rounding, x.error + rounding, x.peak.at_least(x.norm + rounding))


def power(node: Node, inputs: Sequence[Stored], setting: Setting) -> Stored:
    """The l2 norm of windows: squares may underflow, and must not overflow."""
    (x,) = inputs
    terms, arithmetic = _averaged(node, setting), setting.arithmetic
    grown = x.norm * setting.uppers[node.name]
    lost = up(math.sqrt(setting.size(node.name) * arithmetic.underflow(terms + 8))) * INFLATION
    rounding = grown * arithmetic.gamma(terms + 8) + Line(0.0, lost)
    squares = grown * (2 * math.sqrt(terms) * math.sqrt(arithmetic.largest))  # below the largest number where these are
    return Stored(grown + rounding, x.error * setting.uppers[node.name] + rounding, x.peak.at_least(squares))


ERROR_RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("Abs", "Dropout", "Dropout2d", "Flatten", "FullSort", "GroupSort", "Identity", "InvertibleDownsampling",
         "InvertibleUpsampling", "MaxMin", "MaxPool2d", "NearestUpsampling", "PixelShuffle", "PixelUnshuffle", "ReLU",
         "ReflectionPad2d", "ReplicationPad2d", "TwoSidedReLU", "ZeroPad2d", "negate", "permute", "reshape", "slice"),
        exact,
    ),
    **dict.fromkeys(("AvgPool2d", "AdaptiveAvgPool2d", "mean"), average),
    **dict.fromkeys(("BatchNorm1d", "BatchNorm2d"), normalized),
    **dict.fromkeys(("Conv2d", "ConvTranspose2d", "Linear"), linear),
    **dict.fromkeys(("Scale", "divide", "multiply"), scaled),
    **dict.fromkeys(("add", "subtract"), added),
    **dict.fromkeys(("LPPool2d", "NormPool"), power),
    "Normalize": standardized,
    "concatenate": concatenated,
    "hypot": hypot,
    "shift": shifted,
}  # fmt: skip


def absolute_bound(node: Node, shapes: Mapping[str, Sequence[int]], tensors: Mapping[str, Tensor]) -> float:
    """An upper bound on |abs(W)|_2 of a dense layer or a convolution.

    The kernel of a convolution is summed over its taps, for |K_hat(w)| is largest at w = 0 where no entry is negative;
    a stride is taken apart first where it can be, groups are one matrix each.
    """
    key = node.tensors["weight"]
    weight = to_float64(tensors[key], key).abs()
    if weight.ndim == 2:
        return nonnegative_bound(weight)
    dilation = (node.options["dilation"][0], node.options["dilation"][1])
    kernel = to_unshuffled(dilate(weight, dilation), _unshuffling(node, shapes[node.inputs[0]]))
    matrix = kernel.sum(dim=(2, 3)) * (1 + gamma(kernel.shape[2] * kernel.shape[3]))
    return max(nonnegative_bound(group) for group in matrix.chunk(node.options["groups"]))


def _unshuffling(node: Node, image: Sequence[int]) -> tuple[int, int]:
    """The stride, where it can be taken apart: on a torus a divisor of it."""
    stride = node.options["stride"]
    torus = node.options["padding_mode"] != "zeros" or "circular_padding" in node.options
    divides = not torus or all(n % s == 0 for n, s in zip(image[-2:], stride, strict=True))
    return (stride[0], stride[1]) if divides else (1, 1)


def _rounded(node: Node, x: Stored, sums: Line, terms: int, setting: Setting, bias: float = 0.0) -> Stored:
    """A layer of sums with so many products; ``sums`` bounds the norm of sums of absolute values."""
    upper = setting.uppers[node.name]
    rounding = sums * setting.arithmetic.gamma(terms) + _tiny(node, terms, setting)
    norm = x.norm * upper + Line(0.0, bias) + rounding
    return Stored(norm, x.error * upper + rounding, x.peak.at_least(sums + rounding))


def _constant(node: Node, setting: Setting) -> Tensor:
    """The constant of a node, in float64."""
    if "constant" in node.tensors:
        return setting.tensors[node.tensors["constant"]].detach().cpu().double()
    return torch.tensor([node.options["factor" if node.operation == "Scale" else "value"]], dtype=torch.float64)


def _check_range(node: Node, what: str, values: Tensor, setting: Setting) -> None:
    """Refuse numbers that the dtype of the network rounds to 0, to infinity, or with a large relative error."""
    sizes, arithmetic = values.abs(), setting.arithmetic
    wrong = sizes[(sizes != 0) & ~((sizes >= arithmetic.tiny) & (sizes <= arithmetic.largest / 2))]
    if len(wrong):
        raise ValueError(
            f"network node {node.name!r} has the {what} {float(wrong[0])!r}, beyond the range of its dtype"
        )


def _tiny(node: Node, terms: int, setting: Setting) -> Line:
    """Norm of what can underflow in the outputs of a node."""
    root = math.sqrt(setting.size(node.name)) * INFLATION
    return Line(0.0, root * setting.arithmetic.underflow(terms) * INFLATION)


def _bias_norm(node: Node, setting: Setting) -> float:
    """Norm of the bias as it is added, once for every pixel, or every row."""
    if "bias" not in node.tensors:
        return 0.0
    bias = setting.tensors[node.tensors["bias"]].detach().cpu().double()
    return _norm(bias, setting.size(node.name) // bias.numel())


def _norm(values: Tensor, repetitions: int) -> float:
    """Norm of so many copies, rounded upward; infinite where it is no number."""
    norm = float(row_norms(values.reshape(1, -1))) * math.sqrt(max(repetitions, 1))
    return math.inf if math.isnan(norm) else up(norm) * INFLATION


def _broadcast(node: Node, name: str, x: Stored, setting: Setting) -> Stored:
    """An input as often as it is repeated."""
    copies = setting.size(node.name) / setting.size(name)
    root = up(math.sqrt(copies)) if copies > 1 else 1.0
    return Stored(x.norm * root, x.error * root, x.peak)


def _averaged(node: Node, setting: Setting) -> int:
    """How many entries are averaged, at most."""
    if "kernel_size" in node.options:
        return math.prod(pair(node.options["kernel_size"]))
    return -(-setting.size(node.inputs[0]) // setting.size(node.name))
