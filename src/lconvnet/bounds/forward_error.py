"""What rounding can change in a forward pass: an a-priori bound, linear in the norm of the image (methods.md C.4, S2).

Every sum of products z_i = sum_j W_ij x_j + b_i of n products, however it is ordered and whether or not it fuses
multiplication and addition, is computed as z^ with

    |z^ - z| <= g(n + 1) (|W| |x| + |b|) + (2 n + 2) tiny (1 + g),        g(k) = k u / (1 - k u),

entry by entry: u = 2^-24 in float32, 2^-53 in float64; tiny, the least normal number, covers results that underflow,
gradually or to zero (Higham 2002, section 3.1). So with R >= |x^| the norm of what is stored and D >= |x^ - x| its
distance from the network in real arithmetic,

    D' = |W|_2 D + g (|abs(W)|_2 R + |b|) + sqrt(m) (2 n + 2) tiny (1 + g),        R' = |W|_2 R + |b| + (D' - |W|_2 D)

(Murray, arXiv 2603.13334, 2026). All of it is linear in R, so along the whole graph

    R = r_1 |image| + r_0,    D = d_1 |image| + d_0

with numbers that depend on the network only. Sorting, rectifying, moving and repeating entries are exact. Not covered:
sums that are rearranged otherwise (Winograd, Fourier, Strassen), TensorFloat-32 and other reduced precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lconvnet.bounds.graph import Graph, Node
from lconvnet.ops.nonnegative import nonnegative_bound
from lconvnet.ops.polyphase import to_unshuffled
from lconvnet.ops.residual import to_float64
from lconvnet.ops.rounding import gamma, up

INFLATION = 1 + 2.0**-40
"""Covers the roundings of the few float64 operations behind each number here; all terms are positive."""


@dataclass(frozen=True)
class Line:
    """``slope * t + offset`` with both at least 0: an upper bound that grows with the norm t of the image."""

    slope: float
    offset: float

    def __add__(self, other: Line) -> Line:
        return Line((self.slope + other.slope) * INFLATION, (self.offset + other.offset) * INFLATION)

    def __mul__(self, factor: float) -> Line:
        return Line(self.slope * factor * INFLATION, self.offset * factor * INFLATION)

    def hypot(self, other: Line) -> Line:
        """An upper bound on the root of the sum of squares."""
        slope, offset = math.hypot(self.slope, other.slope), math.hypot(self.offset, other.offset)
        return Line(slope * INFLATION, offset * INFLATION)

    def at_least(self, other: Line) -> Line:
        """An upper bound on the larger one."""
        return Line(max(self.slope, other.slope), max(self.offset, other.offset))


ZERO = Line(0.0, 0.0)
IMAGE = Line(1.0, 0.0)


@dataclass(frozen=True)
class Stored:
    """What a float network stores after a node: its norm, its distance from real arithmetic, and the largest number
    that occurred on the way."""

    norm: Line
    error: Line
    peak: Line


@dataclass(frozen=True)
class Arithmetic:
    """Floating-point arithmetic with round-off ``unit``, least normal number ``tiny`` and ``largest`` number."""

    unit: float
    tiny: float
    largest: float

    @classmethod
    def of(cls, dtype: torch.dtype) -> Arithmetic:
        """That of float32 or float64.

        >>> Arithmetic.of(torch.float32).unit == 2.0**-24
        True
        """
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype={dtype}: forward errors are bounded in float32 and float64")
        info = torch.finfo(dtype)
        return cls(info.eps / 2, info.tiny, info.max)

    def gamma(self, terms: int) -> float:
        """Relative error of a sum of that many products and a bias."""
        return gamma(terms + 1, self.unit)

    def underflow(self, terms: int) -> float:
        """Absolute error of such a sum from results that underflow."""
        return (2 * terms + 2) * self.tiny * (1 + self.gamma(terms)) * INFLATION


@dataclass(frozen=True)
class Setting:
    """What a rule may look at besides its node: Lipschitz bounds by node, the tensors, the shapes, the arithmetic."""

    uppers: Mapping[str, float]
    tensors: Mapping[str, Tensor]
    graph: Graph
    arithmetic: Arithmetic


Rule = Callable[[Node, Sequence[Stored], Setting], Stored]


def forward_error(
    graph: Graph, uppers: Mapping[str, float], tensors: Mapping[str, Tensor], arithmetic: Arithmetic
) -> dict[str, Stored]:
    """Bound norm and forward error of every node of a network that runs in floating point.

    Args:
        graph: of the network, at a known image size.
        uppers: an upper bound on the Lipschitz constant of each node but the input.
        tensors: the network's ``state_dict``.
        arithmetic: that it runs in.

    Returns:
        What each node stores, by its name.

    Raises:
        ValueError: an operation without a rule; nothing is assumed.

    >>> nodes = Node("input", "input", shape=(2,)), Node("0", "Linear", ("input",), tensors={"weight": "w"}, shape=(2,))
    >>> arithmetic = Arithmetic.of(torch.float32)
    >>> found = forward_error(Graph(nodes, "0"), {"0": 1.0}, {"w": torch.eye(2)}, arithmetic)["0"]
    >>> 3 * 2**-24 <= found.error.slope < 3.01 * 2**-24
    True
    """
    setting = Setting(uppers, tensors, graph, arithmetic)
    stored = {graph.nodes[0].name: Stored(IMAGE, ZERO, IMAGE)}
    for node in graph.nodes[1:]:
        if node.operation not in ERROR_RULES:
            raise ValueError(
                f"network node {node.name!r} ({node.operation}) has no rule for its rounding, so level 'sound' is not "
                "known: use level='analytic', or add a rule to lconvnet.bounds.forward_error.ERROR_RULES"
            )
        stored[node.name] = ERROR_RULES[node.operation](node, [stored[name] for name in node.inputs], setting)
    return stored


def exact(node: Node, inputs: Sequence[Stored], setting: Setting) -> Stored:
    """Moves, signs, repetitions, choices: nothing is rounded."""
    (x,) = inputs
    upper = setting.uppers[node.name]
    norm = x.norm * upper
    return Stored(norm, x.error * upper, x.peak.at_least(norm))


def linear(node: Node, inputs: Sequence[Stored], setting: Setting) -> Stored:
    """``W x + b``, dense or as a convolution."""
    (x,) = inputs
    terms = setting.tensors[node.tensors["weight"]][0].numel()
    bias = _bias_norm(node, setting)
    sums = x.norm * absolute_bound(node, setting.graph, setting.tensors) + Line(0.0, bias)
    return _rounded(node, x, sums, terms, setting, bias)


def average(node: Node, inputs: Sequence[Stored], setting: Setting) -> Stored:
    """Means of windows: a sum, then a division; the matrix has no negative entry, so it is its own absolute value."""
    (x,) = inputs
    return _rounded(node, x, x.norm * setting.uppers[node.name], _window(node, setting) + 1, setting)


def scaled(node: Node, inputs: Sequence[Stored], setting: Setting) -> Stored:
    """One product with a constant, which itself is rounded to the network's dtype."""
    (x,) = inputs
    return _rounded(node, x, x.norm * setting.uppers[node.name], 2, setting)


def added(node: Node, inputs: Sequence[Stored], setting: Setting) -> Stored:
    """One sum or difference of two nodes."""
    a, b = inputs
    unit, norm, error = setting.arithmetic.unit, a.norm + b.norm, a.error + b.error
    rounding = norm * unit + Line(0.0, _tiny(node, 1, setting))
    norm = norm + rounding
    return Stored(norm, error + rounding, a.peak.at_least(b.peak).at_least(norm))


def concatenated(node: Node, inputs: Sequence[Stored], setting: Setting) -> Stored:
    """Joined along the channels: norms add up in squares."""
    first, *others = inputs
    norm, error, peak = first.norm, first.error, first.peak
    for other in others:
        norm, error, peak = norm.hypot(other.norm), error.hypot(other.error), peak.at_least(other.peak)
    return Stored(norm, error, peak)


ERROR_RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("Abs", "Dropout", "Flatten", "FullSort", "GroupSort", "Identity", "InvertibleDownsampling",
         "InvertibleUpsampling", "MaxMin", "MaxPool2d", "NearestUpsampling", "PixelShuffle", "PixelUnshuffle", "ReLU",
         "ZeroPad2d", "negate", "permute", "reshape", "slice"),
        exact,
    ),
    "AvgPool2d": average,
    "Conv2d": linear,
    "Linear": linear,
    "Scale": scaled,
    "add": added,
    "concatenate": concatenated,
    "subtract": added,
}  # fmt: skip


def absolute_bound(node: Node, graph: Graph, tensors: Mapping[str, Tensor]) -> float:
    """An upper bound on |abs(W)|_2 of a dense layer or a convolution.

    The kernel of a convolution is summed over its taps, for |K_hat(w)| is largest at w = 0 where no entry is negative
    (methods.md B.8); a stride that divides the image is unshuffled first, groups are one matrix each.
    """
    key = node.tensors["weight"]
    weight = to_float64(tensors[key], key).abs()
    if weight.ndim == 2:
        return nonnegative_bound(weight)
    kernel = to_unshuffled(weight, _unshuffling(node, graph))
    matrix = kernel.sum(dim=(2, 3)) * (1 + gamma(kernel.shape[2] * kernel.shape[3]))
    return max(nonnegative_bound(group) for group in matrix.chunk(node.options["groups"]))


def _unshuffling(node: Node, graph: Graph) -> int:
    """The stride, where it can be taken apart: equal along both axes, undilated, and a divisor of the image."""
    stride, dilation = tuple(node.options["stride"]), tuple(node.options["dilation"])
    if node.options["padding_mode"] not in ("zeros", "circular"):
        raise ValueError(
            f"network node {node.name!r} (Conv2d) has padding_mode={node.options['padding_mode']!r}, whose "
            "rounding has no rule: use 'zeros' or 'circular', or level='analytic'"
        )
    shape = graph[node.inputs[0]].shape
    divides = shape is not None and all(n % s == 0 for n, s in zip(shape[-2:], stride, strict=True))
    return stride[0] if len(set(stride)) == 1 and dilation == (1, 1) and divides else 1


def _rounded(node: Node, x: Stored, sums: Line, terms: int, setting: Setting, bias: float = 0.0) -> Stored:
    """A layer of sums with so many products; ``sums`` bounds the norm of sums of absolute values."""
    upper = setting.uppers[node.name]
    rounding = sums * setting.arithmetic.gamma(terms) + Line(0.0, _tiny(node, terms, setting))
    norm = x.norm * upper + Line(0.0, bias) + rounding
    return Stored(norm, x.error * upper + rounding, x.peak.at_least(sums + rounding))


def _tiny(node: Node, terms: int, setting: Setting) -> float:
    """Norm of what can underflow in the outputs of a node."""
    return math.sqrt(math.prod(_shape(node))) * setting.arithmetic.underflow(terms) * INFLATION


def _bias_norm(node: Node, setting: Setting) -> float:
    """Norm of the bias as it is added, once for every pixel, or every row; infinite where it is no number."""
    if "bias" not in node.tensors:
        return 0.0
    bias = setting.tensors[node.tensors["bias"]].detach().cpu().double()
    repetitions = math.prod(_shape(node)) // bias.numel()
    norm = float(torch.linalg.vector_norm(bias)) * (1 + gamma(bias.numel() + 2))
    return math.inf if math.isnan(norm) else up(norm * math.sqrt(repetitions)) * INFLATION


def _window(node: Node, setting: Setting) -> int:
    size = node.options["kernel_size"]
    return math.prod(size) if isinstance(size, Sequence) else size**2


def _shape(node: Node) -> tuple[int, ...]:
    if node.shape is None:
        raise ValueError(f"network node {node.name!r}: its rounding depends on the size of the image, pass input_shape")
    return node.shape
