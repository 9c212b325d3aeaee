"""How the cost of a training step grows with the width and the depth of a stack of 3x3 convolutions.

A step is that of the other rows with the mean square of the output as loss, on 32 images of 8x8 pixels. All methods
take turns at every size. The learning rate is a tenth of that of the rows: Adam's usual one moves a wide matrix so far
in one step that power iteration lags behind, and Björck's iteration, which relies on it in deel-torchlip, diverges.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.networks import OURS, UNCONSTRAINED, Method, orthogonium, torchlip
from benchmarks.steps import is_finite, training_step
from benchmarks.timing import Effort, exponent, medians, seconds_of, take_turns

BATCH, SIDE = 32, 8
WIDTHS = (32, 64, 128, 256, 512, 1024)
DEPTHS = (1, 2, 4, 8, 16)
DEPTHS_WIDTH = 64
LEARNING_RATE = 1e-4
TOO_LONG = 60.0  # seconds: a method whose step takes longer is left out from this size on

Stack = Callable[[Method, int], tuple[nn.Module, Tensor]]


@dataclass
class Curve:
    """Cost of one method: seconds per step at the sizes that were measured, and why larger ones were not."""

    method: str
    sizes: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    exponent: float | None = None
    dropped: str = ""


def stack(method: Method, width: int, depth: int) -> tuple[nn.Module, Tensor]:
    """Convolutions that keep the number of channels, and images for them."""
    torch.manual_seed(0)
    layers = [method.conv(width, width, 3, 1, input_size=(SIDE, SIDE)) for _ in range(depth)]
    return nn.Sequential(*layers).train(), torch.rand(BATCH, width, SIDE, SIDE)


def wide(method: Method, width: int) -> tuple[nn.Module, Tensor]:
    """One convolution of a width."""
    return stack(method, width, 1)


def deep(method: Method, depth: int) -> tuple[nn.Module, Tensor]:
    """So many convolutions of 64 channels."""
    return stack(method, DEPTHS_WIDTH, depth)


@dataclass(frozen=True)
class Member:
    """A network with its training step, for one point of a curve."""

    network: nn.Module
    step: Callable[[], None]


def member(network: nn.Module, images: Tensor) -> Member:
    """A stack with its training step."""
    return Member(network, training_step(network, lambda: network(images).square().mean(), LEARNING_RATE))


def quick_enough(curve: Curve, build: Callable[[], tuple[nn.Module, Tensor]], size: int) -> Member | None:
    """The network for one more point of a curve, after a first step that is not counted; None if it is too slow."""
    if curve.dropped:
        return None
    built = member(*build())
    first = seconds_of(built.step)
    if first > TOO_LONG:
        curve.dropped = f"from {size} on: one step took {first:.0f} s"
        return None
    return built


def measure_size(curves: dict[str, Curve], methods: Sequence[Method], build: Stack, size: int, effort: Effort) -> None:
    """Add one point to the curve of every method that is quick enough and does not diverge."""
    tried = {method.name: quick_enough(curves[method.name], partial(build, method, size), size) for method in methods}
    members = {name: built for name, built in tried.items() if built is not None}
    steps = [built.step for built in members.values()]
    take_turns(steps, effort.warm_up, seconds=effort.seconds / 4, least=0)
    times = take_turns(steps, effort.turns, seconds=effort.seconds, least=effort.least)
    for (name, built), seconds in zip(members.items(), medians(times), strict=True):
        if is_finite(built.network):
            curves[name].sizes.append(size)
            curves[name].seconds.append(seconds)
        else:
            curves[name].dropped = f"from {size} on: it diverged"


def curves_over(sizes: Sequence[int], build: Stack, effort: Effort) -> list[Curve]:
    """The curves of ours, of the peers and of the unconstrained convolution, with their exponents."""
    methods = (OURS, orthogonium(), torchlip(), UNCONSTRAINED)
    curves = {method.name: Curve(method.name) for method in methods}
    for size in sizes:
        measure_size(curves, methods, build, size, effort)
    fitted = [curve for curve in curves.values() if len(curve.sizes) > 1]
    for curve in fitted:
        curve.exponent = exponent(curve.sizes, curve.seconds)
    return list(curves.values())


def measure_scaling(effort: Effort) -> dict[str, list[Curve]]:
    """Curves over the width and over the depth, with fewer repetitions than the rows have."""
    short = replace(effort, turns=min(effort.turns, 20), seconds=min(effort.seconds, 4.0))
    return {"width": curves_over(WIDTHS, wide, short), "depth": curves_over(DEPTHS, deep, short)}


def as_json(scaling: dict[str, list[Curve]]) -> dict[str, object]:
    """The layout of benchmarks/scaling.json: a list of curves for each axis, and what the steps were."""
    setting = f"median seconds of a training step, 3x3 convolutions, batch {BATCH}, {SIDE}x{SIDE} images"
    return {"setting": setting, **{axis: [asdict(curve) for curve in curves] for axis, curves in scaling.items()}}
