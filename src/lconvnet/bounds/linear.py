r"""Linear bounds of ReLU networks over l2 balls, propagated backwards.

For the pre-activation $z \in [l, u]$ of a ReLU whose sign is open ($l < 0 < u$)

    a z <= relu(z) <= a z + b,        a = u / (u - l),   b = -a l           (Weng et al. 2018, Fast-Lin)

So a linear functional of the network's output is bounded below by $A x + d$. This form is found layer by layer from the
output to the input; a negative coefficient takes the upper line. Over the ball the bound is
$A x_0 + d - \epsilon\lVert A\rVert_2$. The bounds $l, u$ come from the same computation on the layers before, once per
image. It is the dual of the linear relaxation at the point that Wong & Kolter 2018 and Wong et al. 2018 (KW) choose.
KW estimate the norms by random projections; here they are computed.

Level "analytic": the bounds hold for the network in real arithmetic. They are computed in float64 on the CPU, and a
bound on the rounding error is subtracted. With N roundings on the way, a value computed here differs from the exact one
by at most $2 \gamma_N R$, where R is the same functional of the network of absolute values, $|W| r + |b|$ with
$r = |x_0| + \epsilon$ at the input (Higham 2002, section 3.1). Underflow adds at most $2^{-1022}$ in each of the N
results behind a coefficient, which meets values up to r, and in each square of a norm. The lines enclose the ReLU on
the widened interval, so they also hold for the exact values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from math import prod
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lconvnet.bounds.attributes import fault
from lconvnet.layers import Normalize, Sum
from lconvnet.ops.float64 import refuse_flushing, to_float64
from lconvnet.ops.hooks import altered, refuse_foreign
from lconvnet.ops.images import check_eps, check_images, check_labels
from lconvnet.ops.rounding import gamma
from lconvnet.ops.windows import Window, extract, gathered, moved, pixels, union, whole

Shape = tuple[int, ...]
TINY = 2.0**-1022
"""The least normal float64: no result that underflows, gradually or to zero, has a larger error."""


@dataclass(frozen=True)
class Functionals:
    """Functionals of an image ``(C, H, W)`` or of a vector: ``sum coefficients * values + constants``.

    Attributes:
        coefficients: n at each of P positions, ``(B, P, n, C, h, w)`` on the windows, or ``(B, 1, n, F)``; B is 1 while
            they are the same for every example.
        window: where the windows lie; None for vectors.
        lower, upper: constants of the functionals that bound from below and from above, ``(B, P, n)``.
    """

    coefficients: Tensor
    window: Window | None = None
    lower: Tensor | float = 0.0
    upper: Tensor | float = 0.0

    def of(self, values: Tensor) -> Tensor:
        """The functionals, without their constants, at values ``(B, C, H, W)`` or ``(B, F)``: ``(B, P, n)``."""
        return _product(self.coefficients, values, self.window)

    def plus(self, constant: Tensor) -> Functionals:
        """The functionals plus a constant."""
        return replace(self, lower=self.lower + constant, upper=self.upper + constant)

    def on(self, window: Window) -> Functionals:
        """The same on other windows at the same positions; these must contain all coefficients inside the image."""
        return replace(self, coefficients=moved(self.coefficients, cast(Window, self.window), window), window=window)

    def on_image(self, sides: tuple[int, int]) -> Functionals:
        """The same at one position with the image as its window: P n functionals."""
        A = gathered(self.coefficients, cast(Window, self.window), sides)
        lower, upper = (c.flatten(1)[:, None] if isinstance(c, Tensor) else c for c in (self.lower, self.upper))
        return Functionals(A, whole(sides), lower, upper)


def _product(coefficients: Tensor, values: Tensor, window: Window | None) -> Tensor:
    seen = values[:, None, None] if window is None else extract(values, window)
    return (coefficients.flatten(3) @ seen.flatten(3).mT).squeeze(-1)


def identity(shape: Shape) -> Functionals:
    """Every entry of an output as a functional: P pixels with n channels, or one position with n features."""
    entries = torch.eye(shape[0], dtype=torch.float64)
    if len(shape) == 1:
        return Functionals(entries[None, None])
    window = pixels((shape[1], shape[2]))
    return Functionals(entries[None, None, :, :, None, None].expand(1, window.positions, -1, -1, -1, -1), window)


def through(steps: Sequence[Step], functionals: Functionals) -> Functionals:
    """Functionals of the output of the last step as functionals of the input of the first."""
    return reduce(lambda found, step: step.backward(found), reversed(steps), functionals)


def over_ball(functionals: Functionals, centre: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The least value of the lower functionals and the largest of the upper ones over ``|x - centre|_2 <= eps``."""
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
        """The same step of the network of absolute values, at values ``(B, *shape)``."""

    def magnitude(self, r: Tensor) -> Tensor:
        """R of the output from R of the input; underflow never makes it too small."""
        return self.absolute(r) + 2 * TINY * self.roundings

    def underflow(self, r: Tensor) -> Tensor:
        """The most that underflow can change one value, ``(B,)``: TINY in each coefficient and constant."""
        return 2 * TINY * self.roundings * (r.flatten(1).sum(1) + 1)


class Rectifier(Step):
    """Two parallel lines around the ReLU of every entry: ``slope z <= relu(z) <= slope z + intercept``."""

    def __init__(self, lower: Tensor, upper: Tensor) -> None:
        slope = upper / (upper - lower)
        self.slope = torch.where(lower >= 0, 1.0, torch.where(upper <= 0, 0.0, slope))
        # above relu at both ends, for any rounding of the slope; the ends are not rounded
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
    """``(x - mean) / std`` per channel."""

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
    """Both on the same windows: the image if one of them is on it, else the smallest windows around both."""
    if one.positions != other.positions:
        sides = min(one, other, key=lambda window: window.positions).size
        return first.on_image(sides), second.on_image(sides)
    window = union(one, other)
    return first.on(window), second.on(window)


def _bias(module: nn.Linear | nn.Conv2d, name: str) -> Tensor:
    if module.bias is None:
        return torch.zeros(module.weight.shape[0], dtype=torch.float64)
    return to_float64(module.bias, f"network module {name!r}: bias")


STEPS: Mapping[type[nn.Module], Callable[..., Step]] = {
    nn.Conv2d: Convolution,
    nn.Linear: Dense,
    nn.Flatten: Flattening,
    Normalize: Normalization,
}


@dataclass(frozen=True)
class Relaxation:
    """A network up to some layer. Two lines replace every ReLU and enclose it for the images of a ball.

    Attributes:
        centre, eps: the ball of each example, ``(B, ...)`` in float64.
        steps: in the order of the network.
        shape: of the layer's output, without the batch.
        magnitude: R of the module's docstring for every entry of that output, ``(B, *shape)``.
        underflow: the most that underflow can have changed one of its values, ``(B,)``.
    """

    centre: Tensor
    eps: float
    steps: tuple[Step, ...]
    shape: Shape
    magnitude: Tensor
    underflow: Tensor

    def bounds(self, functionals: Functionals, magnitude: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds of functionals of the output, ``(B, P, n)`` each; `magnitude` is their R."""
        lower, upper = (
            bound.reshape(magnitude.shape)
            for bound in over_ball(through(self.steps, functionals), self.centre, self.eps)
        )
        size = self.centre.shape[1:].numel()
        roundings = sum(step.roundings for step in self.steps) + 2 * size + 16
        at_input = 2 * TINY * (size + 1) + self.eps * 2 * (size * TINY) ** 0.5  # of A x0, and of the squares in |A|
        error = 2 * gamma(roundings) * magnitude + self.underflow[:, None, None] + at_input
        return lower - error, upper + error

    def extended(self, module: nn.Module, name: str) -> Relaxation:
        """The network with one more module. Raises ValueError for one that has no linear bounds."""
        if method := altered(module):
            raise ValueError(f"network module {name!r} has a hook or a replaced {method}: remove it, or bake the model")
        if type(module) is nn.Sequential:
            return self._through_all(module, name)
        if type(module) in (nn.ReLU, *STEPS) and (problem := fault(module)):
            raise ValueError(f"network module {name!r} ({type(module).__name__}) {problem}: build a new one")
        if type(module) is nn.ReLU:
            return self._then(Rectifier(*self.output_bounds()))
        if type(module) is Sum:
            return self._then(self._sum(module, name))
        if type(module) in STEPS:
            return self._then(STEPS[type(module)](module, self.shape, name))
        known = ", ".join(sorted(kind.__name__ for kind in (nn.ReLU, Sum, *STEPS)))
        raise ValueError(f"network module {name!r} ({type(module).__name__}) has no linear bounds: build of {known}")

    def _through_all(self, sequence: nn.Sequential, name: str) -> Relaxation:
        found = self
        for child_name, child in sequence._modules.items():
            if child is not None:
                found = found.extended(child, f"{name}.{child_name}" if name else child_name)
        return found

    def output_bounds(self) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds of every entry of the output, ``(B, *shape)`` each."""
        magnitude = self.magnitude.flatten(2).transpose(1, 2) if len(self.shape) == 3 else self.magnitude[:, None]
        lower, upper = self.bounds(identity(self.shape), magnitude)  # (B, P, n)
        return lower.transpose(1, 2).reshape(-1, *self.shape), upper.transpose(1, 2).reshape(-1, *self.shape)

    def _sum(self, module: Sum, name: str) -> Branches:
        branches = [(f"{name}.{index}", branch) for index, branch in enumerate(module.branches)]
        for branch_name, branch in branches:
            _refuse_in_place(branch, branch_name)
        ends = [self.extended(branch, branch_name) for branch_name, branch in branches]
        shapes = {end.shape for end in ends}
        if len(shapes) > 1:
            raise ValueError(f"network module {name!r} adds up outputs of shapes {sorted(shapes)}")
        return Branches([end.steps[len(self.steps) :] for end in ends], shapes.pop())

    def _then(self, step: Step) -> Relaxation:
        magnitude = step.magnitude(self.magnitude)
        underflow = self.underflow + step.underflow(self.magnitude)
        return Relaxation(self.centre, self.eps, (*self.steps, step), step.output_shape, magnitude, underflow)


def _refuse_in_place(branch: nn.Module, name: str) -> None:
    for child_name, child in branch.named_modules():
        if getattr(child, "inplace", False):
            path = f"{name}.{child_name}" if child_name else name
            raise ValueError(
                f"network module {path!r} works in place where its input may be read again: use inplace=False"
            )


def relaxation(network: nn.Module, images: Tensor, eps: float) -> Relaxation:
    """The relaxed network over the balls of radius `eps` around images ``(B, ...)``; see `margin_bounds`."""
    centre = to_float64(check_images(images), "images")
    if centre.ndim not in (2, 4):
        raise ValueError(f"images has shape {tuple(centre.shape)}: linear bounds take (B, C, H, W) or (B, features)")
    refuse_foreign(network)
    refuse_flushing()
    nothing = torch.zeros(len(centre), dtype=torch.float64)
    start = Relaxation(centre, check_eps(eps), (), tuple(centre.shape[1:]), centre.abs() + eps, nothing)
    with torch.no_grad():
        return start.extended(network, "")


def margin_bounds(network: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """Lower bounds on every margin ``f_y - f_j`` over the l2 ball of radius `eps` around each image.

    Args:
        network: a baked network of convolutions with zero padding, dense layers, ReLU, `Normalize` and `Sum`, in
            (nested) ``nn.Sequential``.
        images: ``(B, C, H, W)``, floats in [0, 1]. They are bounded all at once; in a large network this takes a few
            hundred MB.
        labels: class y of each image, ``(B,)``.
        eps: l2 over pixels in [0, 1].

    Returns:
        ``(B, classes)`` in float64, infinity at j = y. If all are positive, no image of the ball has another answer.

    Raises:
        ValueError: for a module without linear bounds, and for wrong images, labels or eps.

    >>> network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    >>> margin_bounds(network, torch.rand(3, 2), torch.tensor([0, 1, 0]), 0.1).shape
    torch.Size([3, 2])
    """
    labels = check_labels(labels, len(images)).cpu()
    logits = relaxation(network, images, eps)
    if len(logits.shape) != 1 or logits.shape[0] < 2:
        raise ValueError(f"network has outputs of shape {logits.shape}: a margin needs (classes,), two or more")
    last = logits.shape[0] - 1
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) <= last:
        raise ValueError(
            f"labels has values from {labels.min()} to {labels.max()}: the network has classes 0 to {last}"
        )
    with torch.no_grad():
        classes = torch.eye(logits.shape[0], dtype=torch.float64)
        differences = classes[labels][:, None] - classes
        magnitude = (differences.abs() @ logits.magnitude[..., None]).mT
        lower, _ = logits.bounds(Functionals(differences[:, None]), magnitude)
    return lower[:, 0].scatter(1, labels[:, None], torch.inf)
