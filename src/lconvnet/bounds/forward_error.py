"""An a-priori bound on the rounding error of a forward pass, linear in the norm of the image.

A sum of n products z_i = sum_j W_ij x_j + b_i, in any order and with or without fused multiplication and addition, is
computed as z^ with

    |z^ - z| <= g(n + 1) (|W| |x| + |b|) + (2 n + 2) tiny (1 + g),        g(k) = k u / (1 - k u),

entry by entry. Here u = 2^-24 in float32 and 2^-53 in float64; tiny, the least normal number, covers results that
underflow, gradually or to zero (Higham 2002, section 3.1). So if R >= |x^| bounds the norm of the stored values and
D >= |x^ - x| their distance from the network in real arithmetic,

    D' = |W|_2 D + g (|abs(W)|_2 R + |b|) + sqrt(m) (2 n + 2) tiny (1 + g),        R' = |W|_2 R + |b| + (D' - |W|_2 D)

(Murray, arXiv 2603.13334, 2026). All of it is linear in R, so along the whole graph

    R = r_1 |image| + r_0,    D = d_1 |image| + d_0

with numbers that depend only on the network. Sorting, rectifying, moving and repeating entries are exact. The bound
does not cover algorithms that rearrange sums (Winograd, Fourier, Strassen), TensorFloat-32 or other reduced precision.

There is one rule per operation. It takes the node, the error bounds of its inputs, and the setting. Square root and
``hypot`` are assumed to be accurate to four units in the last place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lconvnet.bounds.convolution import dilate
from lconvnet.bounds.module_rules import pair
from lconvnet.bounds.types import Node
from lconvnet.ops.circular import to_unshuffled
from lconvnet.ops.float64 import row_norms, to_float64
from lconvnet.ops.rounding import gamma, up

INFLATION = 1 + 2.0**-40
"""Covers the roundings of the few float64 operations behind each number here; all terms are positive."""

SLACK = 2.0**-30
"""Added to a norm of absolute weights, relatively, so that a checker can confirm it with float64 arithmetic."""

FLOOR = 1e-6
"""Entries of an iterated vector are at least this fraction of the largest, because 0 / 0 would bound nothing."""


@dataclass(frozen=True)
class AffineBound:
    """``slope * t + offset`` with both at least 0: an upper bound that grows with the norm t of the image."""

    slope: float
    offset: float

    def __add__(self, other: AffineBound) -> AffineBound:
        return AffineBound((self.slope + other.slope) * INFLATION, (self.offset + other.offset) * INFLATION)

    def __mul__(self, factor: float) -> AffineBound:
        return AffineBound(self.slope * factor * INFLATION, self.offset * factor * INFLATION)

    def hypot(self, other: AffineBound) -> AffineBound:
        """An upper bound on the root of the sum of the two squares."""
        slope, offset = math.hypot(self.slope, other.slope), math.hypot(self.offset, other.offset)
        return AffineBound(slope * INFLATION, offset * INFLATION)

    def at_least(self, other: AffineBound) -> AffineBound:
        """An upper bound on the larger one."""
        return AffineBound(max(self.slope, other.slope), max(self.offset, other.offset))


ZERO = AffineBound(0.0, 0.0)
IMAGE = AffineBound(1.0, 0.0)


@dataclass(frozen=True)
class ErrorBounds:
    """Bounds on the stored values of a node in a float network: norm, distance from real arithmetic, and the largest
    number so far."""

    norm: AffineBound
    error: AffineBound
    peak: AffineBound


@dataclass(frozen=True)
class Arithmetic:
    """Floating-point arithmetic with round-off ``unit``, least normal number ``tiny`` and ``largest`` number."""

    unit: float
    tiny: float
    largest: float

    @classmethod
    def of(cls, dtype: torch.dtype) -> Arithmetic:
        """The arithmetic of float32 or float64.

        >>> Arithmetic.of(torch.float32).unit == 2.0**-24
        True
        """
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype={dtype}: forward errors are bounded in float32 and float64")
        info = torch.finfo(dtype)
        return cls(info.eps / 2, info.tiny, info.max)

    def gamma(self, terms: int) -> float:
        """Relative error of a sum of `terms` products and a bias."""
        return gamma(terms + 1, self.unit)

    def underflow(self, terms: int) -> float:
        """Absolute error of such a sum from results that underflow."""
        return (2 * terms + 2) * self.tiny * (1 + self.gamma(terms)) * INFLATION


@dataclass(frozen=True)
class Setting:
    """What a rule may use besides its node.

    Attributes:
        uppers: Lipschitz bound of each node.
        tensors: the network's ``state_dict``, and all other constants that its graph names.
        shapes: shape of each node's output.
        arithmetic: the one in which the network runs.
    """

    uppers: Mapping[str, float]
    tensors: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    arithmetic: Arithmetic

    def size(self, name: str) -> int:
        """Number of entries of a node's output."""
        return math.prod(self.shapes[name])


RoundingRule = Callable[[Node, Sequence[ErrorBounds], Setting], ErrorBounds]


def no_rounding(node: Node, inputs: Sequence[ErrorBounds], setting: Setting) -> ErrorBounds:
    """The rule of maps with f(0) = 0 that move, negate, repeat or choose entries: they round nothing."""
    (x,) = inputs
    upper = setting.uppers[node.name]
    norm = x.norm * upper
    return ErrorBounds(norm, x.error * upper, x.peak.at_least(norm))


def relative_rounding(roundings: int) -> RoundingRule:
    """The rule of a map with f(0) = 0 that computes every entry to within `roundings` unit round-offs of itself.

    No intermediate number may exceed both the input and the output.

    >>> x, node = ErrorBounds(IMAGE, ZERO, IMAGE), Node("tanh", "tanh", ("input",))
    >>> setting = Setting({"tanh": 1.0}, {}, {"tanh": (4,)}, Arithmetic.of(torch.float32))
    >>> 8 * 2**-24 < relative_rounding(8)(node, [x], setting).error.slope < 10 * 2**-24
    True
    """
    if isinstance(roundings, bool) or not isinstance(roundings, int) or roundings < 1:
        raise ValueError(f"roundings={roundings!r} must be an integer of at least 1")

    def rule(node: Node, inputs: Sequence[ErrorBounds], setting: Setting) -> ErrorBounds:
        (x,) = inputs
        return _rounded(node, x, x.norm * setting.uppers[node.name], roundings, setting)

    return rule


def linear(node: Node, inputs: Sequence[ErrorBounds], setting: Setting) -> ErrorBounds:
    """``W x + b``: a dense layer, a convolution or a transposed convolution."""
    (x,) = inputs
    weight, bias = setting.tensors[node.tensors["weight"]], 0.0
    if "bias" in node.tensors:  # added once per pixel, or per row
        values = setting.tensors[node.tensors["bias"]].detach().cpu().double()
        bias = _norm(values, setting.size(node.name) // values.numel())
    terms = weight[0].numel() if node.operation != "ConvTranspose2d" else weight.numel() // node.options["out_channels"]
    sums = x.norm * absolute_bound(node, setting.shapes, setting.tensors) + AffineBound(0.0, bias)
    return _rounded(node, x, sums, terms, setting, bias)


def average(node: Node, inputs: Sequence[ErrorBounds], setting: Setting) -> ErrorBounds:
    """Means: a sum, then a division. The matrix has no negative entries, so it is its own absolute value."""
    (x,) = inputs
    terms = _averaged(node, setting)
    means = x.norm * setting.uppers[node.name]
    y, divisor = _rounded(node, x, means, terms + 1, setting), abs(node.options.get("divisor_override") or terms)
    return ErrorBounds(y.norm, y.error, y.peak.at_least(means * (divisor * (1 + setting.arithmetic.gamma(terms)))))


def scaled(node: Node, inputs: Sequence[ErrorBounds], setting: Setting) -> ErrorBounds:
    """A product with or a quotient by a constant, which is itself rounded to the network's dtype."""
    values = _constant(node, setting)
    _check_range(node, "constant", values, setting)
    if node.operation == "divide":  # some multiply by the inverse
        _check_range(node, "inverse constant", 1 / values[values != 0], setting)
    return relative_rounding(2)(node, inputs, setting)


def normalized(node: Node, inputs: Sequence[ErrorBounds], setting: Setting) -> ErrorBounds:
    """``gain (x - mean) / sqrt(var + eps) + bias``, in this form or as ``alpha x + beta``: at most ten roundings."""
    (x,) = inputs
    values = {role: setting.tensors[key].detach().cpu().double() for role, key in node.tensors.items()}
    variance, mean = values["running_var"] + node.options["eps"], values["running_mean"]
    weight = values.get("weight", torch.ones_like(variance)).abs()
    alpha = torch.where(weight > 0, (weight / variance.sqrt()).clamp(min=5e-324), 0.0)
    for what, factors in (("running_var + eps", variance), ("weight", weight), ("gain", alpha)):
        _check_range(node, what, factors, setting)
    moved = alpha * mean.abs() + values.get("bias", torch.zeros_like(alpha)).abs()
    return _standardized(node, x, moved, mean, (1 / variance.sqrt(), weight, alpha), setting)


def standardized(node: Node, inputs: Sequence[ErrorBounds], setting: Setting) -> ErrorBounds:
    """``(x - mean) / std`` with constants that are themselves rounded to the network's dtype."""
    (x,) = inputs
    mean, std = (torch.tensor(node.options[name], dtype=torch.float64) for name in ("mean", "std"))
    for what, factors in (("mean", mean), ("std", std)):
        _check_range(node, what, factors, setting)
    return _standardized(node, x, mean.abs() / std, mean, (1 / std,), setting)


def _standardized(
    node: Node, x: ErrorBounds, moved: Tensor, mean: Tensor, factors: Sequence[Tensor], setting: Setting
) -> ErrorBounds:
    """``factors (x - mean)``, factor by factor in any order; further factors may still multiply an underflow."""
    copies, largest = setting.size(node.name) // moved.numel(), max(1.0, *(float(f.max()) for f in factors))
    bias = _norm(moved, copies)
    y = _rounded(node, x, x.norm * setting.uppers[node.name] + AffineBound(0.0, bias), 10, setting, bias)
    lost = _tiny(node, 10, setting) * largest
    centred = (x.norm + AffineBound(0.0, _norm(mean, copies))) * max(1.0, float(factors[0].max()))
    return ErrorBounds(y.norm + lost, y.error + lost, y.peak.at_least(centred * 2))


def shifted(node: Node, inputs: Sequence[ErrorBounds], setting: Setting) -> ErrorBounds:
    """A sum with a constant, which is itself rounded."""
    (x,) = inputs
    values = _constant(node, setting)
    constant = _norm(values, setting.size(node.name) // values.numel())
    grown = x.norm * setting.uppers[node.name]
    return _rounded(node, x, grown + AffineBound(0.0, constant), 2, setting, constant)


def added(node: Node, inputs: Sequence[ErrorBounds], setting: Setting) -> ErrorBounds:
    """One sum or difference of two nodes."""
    a, b = (_broadcast(node, name, x, setting) for name, x in zip(node.inputs, inputs, strict=True))
    norm = a.norm + b.norm
    rounding = norm * setting.arithmetic.gamma(1) + _tiny(node, 1, setting)
    norm = norm + rounding
    return ErrorBounds(norm, a.error + b.error + rounding, a.peak.at_least(b.peak).at_least(norm))


def concatenated(node: Node, inputs: Sequence[ErrorBounds], setting: Setting) -> ErrorBounds:
    """Concatenation: squares of norms add up."""
    norm, error, peak = ZERO, ZERO, ZERO
    for x in inputs:
        norm, error, peak = norm.hypot(x.norm), error.hypot(x.error), peak.at_least(x.peak)
    return ErrorBounds(norm, error, peak)


def hypot(node: Node, inputs: Sequence[ErrorBounds], setting: Setting) -> ErrorBounds:
    """``sqrt(a^2 + b^2)``, entry by entry."""
    repeated = [_broadcast(node, name, x, setting) for name, x in zip(node.inputs, inputs, strict=True)]
    x = concatenated(node, repeated, setting)
    rounding = x.norm * setting.arithmetic.gamma(8) + _tiny(node, 8, setting)
    return ErrorBounds(x.norm + rounding, x.error + rounding, x.peak.at_least(x.norm + rounding))


def power(node: Node, inputs: Sequence[ErrorBounds], setting: Setting) -> ErrorBounds:
    """The l2 norm of windows. Squares may underflow but must not overflow."""
    (x,) = inputs
    terms, arithmetic = _averaged(node, setting), setting.arithmetic
    grown = x.norm * setting.uppers[node.name]
    lost = up(math.sqrt(setting.size(node.name) * arithmetic.underflow(terms + 8))) * INFLATION
    rounding = grown * arithmetic.gamma(terms + 8) + AffineBound(0.0, lost)
    squares = grown * (2 * math.sqrt(terms) * math.sqrt(arithmetic.largest))  # squares in range
    return ErrorBounds(grown + rounding, x.error * setting.uppers[node.name] + rounding, x.peak.at_least(squares))


def absolute_bound(node: Node, shapes: Mapping[str, Sequence[int]], tensors: Mapping[str, Tensor]) -> float:
    """An upper bound on |abs(W)|_2 of a dense layer or a convolution.

    The kernel of a convolution is summed over its taps, because |K_hat(w)| is largest at w = 0 if no entry is negative.
    A strided kernel is first unshuffled if possible. Each group is one matrix.
    """
    key = node.tensors["weight"]
    weight = to_float64(tensors[key], key).abs()
    if weight.ndim == 2:
        return nonnegative_bound(weight)
    dilation = (node.options["dilation"][0], node.options["dilation"][1])
    kernel = to_unshuffled(dilate(weight, dilation), _unshuffling(node, shapes[node.inputs[0]]))
    matrix = kernel.sum(dim=(2, 3)) * (1 + gamma(kernel.shape[2] * kernel.shape[3]))
    return max(nonnegative_bound(group) for group in matrix.chunk(node.options["groups"]))


def nonnegative_bound(matrix: Tensor, *, steps: int = 8) -> float:
    """An upper bound on the largest singular value of a matrix with entries >= 0, for any number of ``steps``.

    For every positive vector v, ``|A|_2^2 = rho(A^T A) <= max_i (A^T A v)_i / v_i`` (Collatz 1942, Wielandt 1950). A
    few steps of power iteration choose v.

    Raises ``ValueError`` for a negative or non-finite entry, or another number of dimensions.

    >>> 6 <= nonnegative_bound(torch.ones(4, 9)) < 6 + 1e-8
    True
    """
    A = to_float64(matrix)
    if A.ndim != 2 or A.numel() == 0 or bool((A < 0).any()):
        raise ValueError(f"matrix of shape {tuple(A.shape)}: expected a non-empty (m, n) without negative entries")
    largest = float(A.max())
    if largest == 0:
        return 0.0
    power = math.ldexp(1.0, min(max(math.frexp(largest)[1], -1000), 1000))
    A = A / power  # exact except for entries that underflow, which are negligible beside the largest one
    v = A.new_ones(A.shape[1])
    for _ in range(steps):
        v = A.T @ (A @ v)
        v = (v / v.max()).clamp(min=FLOOR)
    quotient = float(((A.T @ (A @ v)) / v).max()) * (1 + SLACK)
    return up(up(math.sqrt(up(quotient))) * power)


def _unshuffling(node: Node, image: Sequence[int]) -> tuple[int, int]:
    """The stride if the kernel can be unshuffled by it, else 1 per axis: on a torus it must divide the image."""
    stride = node.options["stride"]
    torus = node.options["padding_mode"] != "zeros" or "circular_padding" in node.options
    divides = not torus or all(n % s == 0 for n, s in zip(image[-2:], stride, strict=True))
    return (stride[0], stride[1]) if divides else (1, 1)


def _rounded(
    node: Node, x: ErrorBounds, sums: AffineBound, terms: int, setting: Setting, bias: float = 0.0
) -> ErrorBounds:
    """A layer of sums of `terms` products; ``sums`` bounds the norm of the sums of absolute values."""
    upper = setting.uppers[node.name]
    rounding = sums * setting.arithmetic.gamma(terms) + _tiny(node, terms, setting)
    norm = x.norm * upper + AffineBound(0.0, bias) + rounding
    return ErrorBounds(norm, x.error * upper + rounding, x.peak.at_least(sums + rounding))


def _constant(node: Node, setting: Setting) -> Tensor:
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


def _tiny(node: Node, terms: int, setting: Setting) -> AffineBound:
    """A bound on the norm of the underflow in the outputs of a node."""
    root = math.sqrt(setting.size(node.name)) * INFLATION
    return AffineBound(0.0, root * setting.arithmetic.underflow(terms) * INFLATION)


def _norm(values: Tensor, repetitions: int) -> float:
    """Norm of `repetitions` copies, rounded upward; infinite if it is not a number."""
    norm = float(row_norms(values.reshape(1, -1))) * math.sqrt(max(repetitions, 1))
    return math.inf if math.isnan(norm) else up(norm) * INFLATION


def _broadcast(node: Node, name: str, x: ErrorBounds, setting: Setting) -> ErrorBounds:
    """An input, repeated by broadcasting."""
    copies = setting.size(node.name) / setting.size(name)
    root = up(math.sqrt(copies)) if copies > 1 else 1.0
    return ErrorBounds(x.norm * root, x.error * root, x.peak)


def _averaged(node: Node, setting: Setting) -> int:
    """The largest number of entries in a mean."""
    if "kernel_size" in node.options:
        return math.prod(pair(node.options["kernel_size"]))
    return -(-setting.size(node.inputs[0]) // setting.size(node.name))
