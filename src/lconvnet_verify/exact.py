"""The network at one image in real arithmetic, without rounding: every number is an integer times a power of two."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from flint import fmpz_mat

from lconvnet_verify.reading import Node, NotProved, prove

LARGEST = 2**22
"""Numbers held at once in all tensors of a network; a long one counts as several."""

SHORT = 256
"""Bits of a number that counts as one."""

DIGITS = 2**31
"""Bits by which the numbers of one tensor may be lengthened, in total."""


@dataclass(frozen=True)
class Exact:
    """The numbers ``integers * 2^exponent``; integers of any size, of dtype object.

    NumPy's own integers are refused, because they wrap around beyond 64 bits.
    """

    integers: np.ndarray
    exponent: int

    def __post_init__(self) -> None:
        known = self.integers.dtype == object and set(map(type, self.integers.flat)) <= {int}
        prove(known, "a number is not an exact integer")

    @classmethod
    def of(cls, values: np.ndarray) -> Exact:
        """Return finite floats as exact numbers."""
        prove(values.dtype.kind == "f", "a constant is not a float")
        prove(bool(np.isfinite(values).all()), "a constant is not finite")
        mantissas, exponents = np.frexp(np.atleast_1d(values).astype(np.float64))
        integers, exponents = (mantissas * 2.0**53).astype(np.int64), exponents.astype(np.int64) - 53
        least = int(exponents[integers != 0].min(initial=0))
        shifts = np.where(integers != 0, exponents - least, 0)
        require_digits(int(shifts.max(initial=0)) * shifts.size)
        return cls(integers.astype(object) << shifts.astype(object), least)

    def at(self, exponent: int) -> np.ndarray:
        """Return the integers for another exponent that is not larger."""
        require_digits((self.exponent - exponent) * self.integers.size)
        return self.integers << (self.exponent - exponent)

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> Exact:
        """Apply a function that moves, chooses or negates entries."""
        return Exact(function(self.integers), self.exponent)

    def numbers(self) -> int:
        """Return how many numbers these are; a long one counts as several."""
        longest = max((value.bit_length() for value in self.integers.flat), default=0)
        return self.integers.size * (1 + longest // SHORT)

    def outline(self) -> Exact:
        """Return zeros of the same shape that take no room."""
        return Exact(np.broadcast_to(np.array(0, dtype=object), self.integers.shape), 0)

    def __add__(self, other: Exact) -> Exact:
        exponent = min(self.exponent, other.exponent)
        return Exact(self.at(exponent) + other.at(exponent), exponent)


def require_room(shape: Iterable[int]) -> None:
    """Raise NotProved if a tensor of this shape would be too large; call this before making it."""
    entries = math.prod(shape)
    prove(entries <= LARGEST, f"it asks for {entries} numbers at once, more than {LARGEST}")


def require_digits(bits: int) -> None:
    """Raise NotProved if numbers would become too long."""
    prove(bits <= DIGITS, "it asks for numbers with too many digits")


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the matrix product of integers."""
    a, b = (fmpz_mat(len(m), m.shape[1], list(map(int, m.ravel()))) for m in (left, right))
    integers = np.array([int(value) for value in (a * b).entries()], dtype=object)
    return integers.reshape(len(left), right.shape[1])


def forward(nodes: tuple[Node, ...], tensors: Mapping[str, Exact], image: np.ndarray) -> dict[str, Exact]:
    """Return the value of every node for an image ``(C, H, W)``, without a batch.

    Once no node reads a value any more, only its outline is kept, except for the image and the last node.
    """
    values, held = {nodes[0].name: Exact.of(image)}, {nodes[0].name: image.size}
    last = {name: node.name for node in nodes for name in node.inputs}
    prove(nodes[0].shape in ((), image.shape), f"the model takes images of shape {nodes[0].shape}, not {image.shape}")
    for node in nodes[1:]:
        inputs = [values[name] for name in node.inputs]
        try:
            values[node.name] = OPERATIONS[node.operation](node, tensors, *inputs)
        except (KeyError, ValueError, TypeError, IndexError, ArithmeticError, MemoryError) as error:
            raise NotProved(f"node {node.name!r} ({node.operation}) cannot be evaluated ({error})") from None
        found = values[node.name].integers.shape
        held[node.name] = values[node.name].numbers()
        require_room([sum(held.values())])
        for name in {*node.inputs} - {nodes[0].name}:
            if last[name] == node.name:
                values[name] = values[name].outline()
                del held[name]
        prove(node.shape in ((), found), f"node {node.name!r} gives the shape {found}, not {node.shape}")
    return values


def dense(node: Node, tensors: Mapping[str, Exact], x: Exact) -> Exact:
    """``W x + b`` along the only axis."""
    W = tensors[node.tensors["weight"]]
    prove(x.integers.shape == W.integers.shape[1:], f"node {node.name!r} has an input of shape {x.integers.shape}")
    return _biased(node, tensors, Exact(W.integers @ x.integers, W.exponent + x.exponent))


def convolution(node: Node, tensors: Mapping[str, Exact], x: Exact) -> Exact:
    """Cross-correlation of the padded image with the kernel, group by group."""
    K, groups = tensors[node.tensors["weight"]], node.options["groups"]
    stride, dilation = node.options["stride"], node.options["dilation"]
    spans = tuple((k - 1) * d + 1 for k, d in zip(K.integers.shape[2:], dilation, strict=True))
    views = np.lib.stride_tricks.sliding_window_view(padded(node, _image(node, x)), spans, axis=(1, 2))
    windows = views[:, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]  # (C, h, w, kh, kw)
    channels, height, width = windows.shape[:3]
    require_room((channels, width, *windows.shape[3:]))
    require_room((len(K.integers), height, width))
    prove(channels == K.integers.shape[1] * groups, "has another number of channels than its weight")
    parts = []
    for kernel, window in zip(np.split(K.integers, groups), np.split(windows, groups), strict=True):
        flat = kernel.reshape(len(kernel), -1)
        rows = (window[:, y].transpose(0, 2, 3, 1).reshape(flat.shape[1], -1) for y in range(height))
        parts.append(np.stack([product(flat, row) for row in rows], axis=1))
    return _biased(node, tensors, Exact(np.concatenate(parts), K.exponent + x.exponent))


def _image(node: Node, x: Exact) -> np.ndarray:
    prove(x.integers.ndim == 3, f"node {node.name!r} ({node.operation}) reads no image, but {x.integers.shape}")
    return x.integers


def padded(node: Node, image: np.ndarray) -> np.ndarray:
    """Return the image with the padding of a convolution: its own, or a circular one before it."""
    above_below, left_right, circular = padding(node)
    if not circular:
        return surrounded(image, above_below, left_right)
    require_room((len(image), image.shape[1] + sum(above_below), image.shape[2] + sum(left_right)))
    return np.pad(image, np.array([(0, 0), above_below, left_right]), mode="wrap")


def padding(node: Node) -> tuple[tuple[int, int], tuple[int, int], bool]:
    """Return the pixels above and below, left and right, and whether they come from the opposite side."""
    height, width = node.options["padding"]
    before = node.options.get("circular_padding")
    if before is None:
        return (height, height), (width, width), node.options["padding_mode"] == "circular"
    prove(height == width == 0 and len(before) == 4 and min(before) >= 0, "pads twice")
    left, right, above, below = before
    return (above, below), (left, right), True


def surrounded(image: np.ndarray, above_below: tuple[int, int], left_right: tuple[int, int]) -> np.ndarray:
    """Return the image with zeros around it, as Python integers like all others."""
    channels, height, width = image.shape
    shape = channels, height + sum(above_below), width + sum(left_right)
    require_room(shape)
    wide = np.zeros(shape, dtype=object)
    wide[:, above_below[0] : above_below[0] + height, left_right[0] : left_right[0] + width] = image
    return wide


def _biased(node: Node, tensors: Mapping[str, Exact], y: Exact) -> Exact:
    if "bias" not in node.tensors:
        return y
    shape = (len(y.integers), *[1] * (y.integers.ndim - 1))
    return y + tensors[node.tensors["bias"]].map(lambda bias: bias.reshape(shape))


def max_min(node: Node, tensors: Mapping[str, Exact], x: Exact) -> Exact:
    """The larger of channels c and c + C/2, then the smaller ones."""
    prove(node.options["dim"] == 1 and len(x.integers) % 2 == 0, "does not pair channels")
    a, b = np.split(x.integers, 2)
    return Exact(np.concatenate([np.maximum(a, b), np.minimum(a, b)]), x.exponent)


def group_sort(node: Node, tensors: Mapping[str, Exact], x: Exact) -> Exact:
    """Ascending in groups whose members lie C / g channels apart; in one group if no size is given."""
    size = node.options.get("group_size", len(x.integers))
    prove(node.options["dim"] == 1 and len(x.integers) % size == 0, "does not sort channels")
    return x.map(lambda v: np.sort(v.reshape(size, -1, *v.shape[1:]), axis=0).reshape(v.shape))


def flatten(node: Node, tensors: Mapping[str, Exact], x: Exact) -> Exact:
    """Images to vectors."""
    prove((node.options["start_dim"], node.options["end_dim"]) == (1, -1), "does not flatten whole images")
    return x.map(np.ravel)


def zero_pad(node: Node, tensors: Mapping[str, Exact], x: Exact) -> Exact:
    """Zeros left, right, above and below."""
    left, right, above, below = node.options["padding"]
    return Exact(surrounded(_image(node, x), (above, below), (left, right)), x.exponent)


def downsampling(node: Node, tensors: Mapping[str, Exact], x: Exact) -> Exact:
    """``(C, h, w)`` to ``(C s^2, h / s, w / s)``."""
    s, (channels, height, width) = node.options["factor"], x.integers.shape
    blocks = x.integers.reshape(channels, height // s, s, width // s, s).transpose(0, 2, 4, 1, 3)
    return Exact(blocks.reshape(channels * s * s, height // s, width // s), x.exponent)


def upsampling(node: Node, tensors: Mapping[str, Exact], x: Exact) -> Exact:
    """``(C s^2, h, w)`` to ``(C, h s, w s)``, the inverse of :func:`downsampling`."""
    s, (channels, height, width) = node.options["factor"], x.integers.shape
    blocks = x.integers.reshape(channels // (s * s), s, s, height, width).transpose(0, 3, 1, 4, 2)
    return Exact(blocks.reshape(channels // (s * s), height * s, width * s), x.exponent)


def nearest(node: Node, tensors: Mapping[str, Exact], x: Exact) -> Exact:
    """Every pixel s times along both axes."""
    s = node.options["factor"]
    require_room((*x.integers.shape, s, s))
    return Exact(_image(node, x).repeat(s, axis=1).repeat(s, axis=2), x.exponent)


def added(node: Node, tensors: Mapping[str, Exact], a: Exact, b: Exact) -> Exact:
    """A sum, or a difference, of tensors of one shape."""
    prove(a.integers.shape == b.integers.shape, f"node {node.name!r} repeats one of its inputs")
    return a + (b if node.operation == "add" else b.map(np.negative))


def concatenated(node: Node, tensors: Mapping[str, Exact], *parts: Exact) -> Exact:
    """Tensors side by side along a dimension, where the batch is dimension 0."""
    require_room([sum(part.integers.size for part in parts)])
    exponent = min(part.exponent for part in parts)
    return Exact(np.concatenate([part.at(exponent) for part in parts], axis=node.options["dim"] - 1), exponent)


def sliced(node: Node, tensors: Mapping[str, Exact], x: Exact) -> Exact:
    """A part along some dimensions, where the batch is dimension 0."""
    index = [slice(None)] * x.integers.ndim
    for dim, start, stop, step in node.options["slices"]:
        prove(dim >= 1 and 0 <= start < stop and step >= 1, f"node {node.name!r} takes no part")
        index[dim - 1] = slice(start, stop, step)
    return x.map(lambda v: v[tuple(index)].reshape(node.shape))


def permuted(node: Node, tensors: Mapping[str, Exact], x: Exact) -> Exact:
    """Dimensions in another order; the batch is dimension 0 and stays first."""
    batch, *dims = node.options["dims"]
    prove(batch == 0 and sorted(dims) == list(range(1, x.integers.ndim + 1)), f"node {node.name!r} moves the batch")
    return x.map(lambda v: v.transpose([dim - 1 for dim in dims]))


def constant(node: Node, tensors: Mapping[str, Exact], x: Exact) -> Exact:
    """Return the number or tensor that a node adds or multiplies by, in the shape of its input."""
    key = node.tensors.get("constant")
    number = "factor" if node.operation == "Scale" else "value"
    c = Exact.of(np.array([float(node.options[number])])) if key is None else tensors[key]
    shape = x.integers.shape
    return c.map(lambda v: np.broadcast_to(v.reshape(v.shape[1:]) if v.ndim > len(shape) > 0 else v, shape))


def shifted(node: Node, tensors: Mapping[str, Exact], x: Exact) -> Exact:
    """A sum with a constant."""
    prove(node.options["sign"] in (1, -1), f"node {node.name!r} has another sign than 1 and -1")
    return x + constant(node, tensors, x).map(lambda v: node.options["sign"] * v)


def multiplied(node: Node, tensors: Mapping[str, Exact], x: Exact) -> Exact:
    """A product with a constant."""
    c = constant(node, tensors, x)
    return Exact(x.integers * c.integers, x.exponent + c.exponent)


def _moved(function: Callable[[np.ndarray], np.ndarray]) -> Callable[..., Exact]:
    return lambda node, tensors, x: x.map(function)


OPERATIONS: dict[str, Callable[..., Exact]] = {
    "Abs": _moved(np.abs),
    "Conv2d": convolution,
    "Flatten": flatten,
    "FullSort": group_sort,
    "GroupSort": group_sort,
    "Identity": _moved(lambda v: v),
    "InvertibleDownsampling": downsampling,
    "InvertibleUpsampling": upsampling,
    "Linear": dense,
    "MaxMin": max_min,
    "NearestUpsampling": nearest,
    "ReLU": _moved(lambda v: np.maximum(v, 0)),
    "Scale": multiplied,
    "TwoSidedReLU": _moved(lambda v: np.concatenate([np.maximum(v, 0), np.maximum(-v, 0)])),
    "ZeroPad2d": zero_pad,
    "add": added,
    "concatenate": concatenated,
    "multiply": multiplied,
    "negate": _moved(np.negative),
    "permute": permuted,
    "reshape": lambda node, tensors, x: x.map(lambda v: v.reshape(node.shape)),
    "shift": shifted,
    "slice": sliced,
    "subtract": added,
}
