"""Linear functionals of a network's layers, carried back step by step from an output to the input.

Every step takes the functionals of its output to functionals of its input plus constants, takes the bound R on what
rounding can act on forward (`lconvnet.bounds.linear`), and counts the roundings that it makes in one value.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from math import prod
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lconvnet.layers import Normalize
from lconvnet.ops.float64 import to_float64
from lconvnet.ops.windows import Window, extract, gathered, moved, pixels, union, whole

Shape = tuple[int, ...]
TINY = 2.0**-1022
"""The least normal float64: no result that underflows, gradually or to zero, is further off."""


@dataclass(frozen=True)
class Functionals:
    """Functionals of an image ``(C, H, W)`` or of a vector: ``sum coefficients * values + constants``.

    Attributes:
        coefficients: n at each of P positions, ``(B, P, n, C, h, w)`` on the windows, or ``(B, 1, n, F)``; B is 1 as
            long as they are the same for every example.
        window: where the windows lie; None for vectors.
        lower, upper: constants of the functionals that bound from below and from above, ``(B, P, n)``.
    """

    coefficients: Tensor
    window: Window | None = None
    lower: Tensor | float = 0.0
    upper: Tensor | float = 0.0

    def of(self, values: Tensor) -> Tensor:
        """The functionals without their constants, of values ``(B, C, H, W)`` or ``(B, F)``: ``(B, P, n)``."""
        return _product(self.coefficients, values, self.window)

    def plus(self, constant: Tensor) -> Functionals:
        """With a constant more."""
        return replace(self, lower=self.lower + constant, upper=self.upper + constant)

    def on(self, window: Window) -> Functionals:
        """The same on other windows at the same positions, which contain all coefficients that count."""
        return replace(self, coefficients=moved(self.coefficients, cast(Window, self.window), window), window=window)

    def on_image(self, sides: tuple[int, int]) -> Functionals:
        """The same at one position whose window is the image: P n functionals of it."""
        A = gathered(self.coefficients, cast(Window, self.window), sides)
        lower, upper = (c.flatten(1)[:, None] if isinstance(c, Tensor) else c for c in (self.lower, self.upper))
        return Functionals(A, whole(sides), lower, upper)


def _product(coefficients: Tensor, values: Tensor, window: Window | None) -> Tensor:
    seen = values[:, None, None] if window is None else extract(values, window)
    return (coefficients.flatten(3) @ seen.flatten(3).mT).squeeze(-1)


def identity(shape: Shape) -> Functionals:
    """Every entry of an output as a functional of it: P pixels with n channels, or one position with n features."""
    entries = torch.eye(shape[0], dtype=torch.float64)
    if len(shape) == 1:
        return Functionals(entries[None, None])
    window = pixels((shape[1], shape[2]))
    return Functionals(entries[None, None, :, :, None, None].expand(1, window.positions, -1, -1, -1, -1), window)


def by_position(values: Tensor) -> Tensor:
    """Entries ``(B, C, H, W)`` or ``(B, F)`` in the order of `identity`: ``(B, P, n)``."""
    return values.flatten(2).transpose(1, 2) if values.ndim == 4 else values[:, None]


def from_positions(values: Tensor, shape: Shape) -> Tensor:
    """Inverse of `by_position` for outputs of a shape."""
    return values.transpose(1, 2).reshape(-1, *shape)


def through(steps: Sequence[Step], functionals: Functionals) -> Functionals:
    """The functionals of the output of the last step as those of the input of the first."""
    return reduce(lambda found, step: step.backward(found), reversed(steps), functionals)


def over_ball(functionals: Functionals, centre: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Least and largest value over ``|x - centre|_2 <= eps`` of the lower and of the upper functionals."""
    middle = functionals.of(centre)
    spread = eps * torch.linalg.vector_norm(functionals.coefficients.flatten(3), dim=-1)
    return functionals.lower + middle - spread, functionals.upper + middle + spread


class Step(ABC):
    """One step of a relaxed network."""

    output_shape: Shape
    roundings: int

    @abstractmethod
    def backward(self, functionals: Functionals) -> Functionals:
        """Functionals of the output as functionals of the input."""

    @abstractmethod
    def absolute(self, r: Tensor) -> Tensor:
        """The same step of the network of absolute values, of values ``(B, *shape)``."""

    def magnitude(self, r: Tensor) -> Tensor:
        """R of the output from R of the input, never less for underflow."""
        return self.absolute(r) + 2 * TINY * self.roundings

    def underflow(self, r: Tensor) -> Tensor:
        """What results that underflow can change in one value, ``(B,)``: TINY in each coefficient and constant."""
        return 2 * TINY * self.roundings * (r.flatten(1).sum(1) + 1)


class Line(Step):
    """Two parallel lines around the ReLU of every entry: ``slope z <= relu(z) <= slope z + intercept``."""

    def __init__(self, lower: Tensor, upper: Tensor) -> None:
        slope = upper / (upper - lower)
        self.slope = torch.where(lower >= 0, 1.0, torch.where(upper <= 0, 0.0, slope))
        # above relu at both ends, whatever the slope was rounded to; the ends are not rounded
        above = torch.maximum(-self.slope * lower, upper * (1 - self.slope)) * (1 + 2.0**-50) + 2 * TINY
        self.intercept = torch.where((lower >= 0) | (upper <= 0), 0.0, above)
        self.output_shape, self.roundings = tuple(lower.shape[1:]), lower.shape[1:].numel() + 4

    def backward(self, functionals: Functionals) -> Functionals:
        A, window = functionals.coefficients, functionals.window
        slope = self.slope[:, None, None] if window is None else extract(self.slope, window)
        return Functionals(
            A * slope,
            window,
            functionals.lower + _product(A.clamp(max=0), self.intercept, window),
            functionals.upper + _product(A.clamp(min=0), self.intercept, window),
        )

    def absolute(self, r: Tensor) -> Tensor:
        return self.slope * r + self.intercept


class Dense(Step):
    """``W x + b``."""

    def __init__(self, module: nn.Linear, shape: Shape, name: str) -> None:
        self.weight = to_float64(module.weight, f"network module {name!r}: weight")
        rows, columns = self.weight.shape
        if shape != (columns,):
            raise ValueError(
                f"network module {name!r} meets an input of shape {shape}, not ({columns},): flatten first"
            )
        self.bias = _bias(module, name)
        self.output_shape, self.roundings = (rows,), 2 * rows + 4

    def backward(self, functionals: Functionals) -> Functionals:
        found = functionals.plus(functionals.of(self.bias[None]))
        return replace(found, coefficients=functionals.coefficients @ self.weight)

    def absolute(self, r: Tensor) -> Tensor:
        return F.linear(r, self.weight.abs(), self.bias.abs())


class Convolution(Step):
    """A convolution with zero padding."""

    def __init__(self, module: nn.Conv2d, shape: Shape, name: str) -> None:
        if module.padding_mode != "zeros" or isinstance(module.padding, str):
            raise ValueError(
                f"network module {name!r} has padding={module.padding!r}, padding_mode={module.padding_mode!r}: linear "
                "bounds know zero padding in pixels only"
            )
        if len(shape) != 3:
            raise ValueError(f"network module {name!r} meets an input of shape {shape}, not (channels, height, width)")
        self.weight = to_float64(module.weight, f"network module {name!r}: weight")
        self.options = {"stride": module.stride, "dilation": module.dilation, "groups": module.groups}
        self.padding = cast(tuple[int, int], module.padding)
        self.bias = _bias(module, name)
        self.sides = shape[1], shape[2]
        self.output_shape = tuple(self._apply(torch.zeros(1, *shape, dtype=torch.float64), self.weight).shape[1:])
        self.roundings = self.weight[:, 0].numel() + prod(self.output_shape) + 4

    def backward(self, functionals: Functionals) -> Functionals:
        A = functionals.coefficients
        found = functionals.plus(functionals.of(self.bias[None, :, None, None].expand(1, *self.output_shape)))
        spread = F.conv_transpose2d(A.flatten(0, 2), self.weight, **self.options).unflatten(0, A.shape[:3])
        window = cast(Window, functionals.window).before(self._reach(), self.options["stride"], self.padding)
        found = replace(found, coefficients=spread, window=window)
        if window.positions == 1 or prod(window.size) >= prod(self.sides):
            return found.on_image(self.sides)
        inside = extract(torch.ones(1, 1, *self.sides, dtype=torch.float64), window)
        return replace(found, coefficients=spread * inside)

    def absolute(self, r: Tensor) -> Tensor:
        return self._apply(r, self.weight.abs()) + self.bias.abs()[:, None, None]

    def _apply(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, padding=self.padding, **self.options)

    def _reach(self) -> tuple[int, int]:
        height, width = (d * (k - 1) + 1 for d, k in zip(self.options["dilation"], self.weight.shape[2:], strict=True))
        return height, width


class Flattening(Step):
    """Images to vectors."""

    def __init__(self, module: nn.Flatten, shape: Shape, name: str) -> None:
        if (module.start_dim, module.end_dim) != (1, -1):
            raise ValueError(f"network module {name!r} is {module}: linear bounds know nn.Flatten() only")
        self.shape, self.output_shape, self.roundings = shape, (prod(shape),), 0

    def backward(self, functionals: Functionals) -> Functionals:
        if len(self.shape) == 1:
            return functionals
        A = functionals.coefficients.unflatten(3, self.shape)
        return replace(functionals, coefficients=A, window=whole((self.shape[1], self.shape[2])))

    def absolute(self, r: Tensor) -> Tensor:
        return r.flatten(1)


class Normalization(Step):
    """``(x - mean) / std`` for each channel."""

    def __init__(self, module: Normalize, shape: Shape, name: str) -> None:
        self.mean, self.std = (
            torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (module.mean, module.std)
        )
        self.output_shape, self.roundings = shape, prod(shape) + 4

    def backward(self, functionals: Functionals) -> Functionals:
        shift = (-self.mean / self.std).expand(self.output_shape)[None]
        found = functionals.plus(functionals.of(shift))
        return replace(found, coefficients=functionals.coefficients / self.std)

    def absolute(self, r: Tensor) -> Tensor:
        return (r + self.mean.abs()) / self.std


class Branches(Step):
    """The sum of several sequences of steps on one input."""

    def __init__(self, branches: Sequence[Sequence[Step]], output_shape: Shape) -> None:
        self.branches, self.output_shape = branches, output_shape
        self.roundings = sum(step.roundings for branch in branches for step in branch) + len(branches)

    def backward(self, functionals: Functionals) -> Functionals:
        without_constants = replace(functionals, lower=0.0, upper=0.0)
        first, *rest = self.branches
        return reduce(_plus, (through(branch, without_constants) for branch in rest), through(first, functionals))

    def absolute(self, r: Tensor) -> Tensor:
        return cast(
            Tensor, sum(reduce(lambda value, step: step.magnitude(value), branch, r) for branch in self.branches)
        )

    def underflow(self, r: Tensor) -> Tensor:
        lost = torch.zeros(len(r), dtype=torch.float64)
        for branch in self.branches:
            values = r
            for step in branch:
                lost, values = lost + step.underflow(values), step.magnitude(values)
        return lost


def _plus(first: Functionals, second: Functionals) -> Functionals:
    if first.window and second.window:
        first, second = _aligned(first, first.window, second, second.window)
    A = first.coefficients + second.coefficients
    return Functionals(A, first.window, first.lower + second.lower, first.upper + second.upper)


def _aligned(first: Functionals, one: Window, second: Functionals, other: Window) -> tuple[Functionals, Functionals]:
    """Both on the same windows: the image where one of them has got there, else the smallest around both."""
    if one.positions != other.positions:
        sides = min(one, other, key=lambda window: window.positions).size
        return first.on_image(sides), second.on_image(sides)
    window = union(one, other)
    return first.on(window), second.on(window)


def _bias(module: nn.Linear | nn.Conv2d, name: str) -> Tensor:
    if module.bias is None:
        return torch.zeros(module.weight.shape[0], dtype=torch.float64)
    return to_float64(module.bias, f"network module {name!r}: bias")
