"""Pairs of distributions whose Wasserstein-1 distance has a closed form."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Draw:
    """A sampler from a function."""

    draw: Callable[[int, Generator], Tensor]

    def sample(self, count: int, generator: Generator) -> Tensor:
        return self.draw(count, generator)


@dataclass(frozen=True)
class Form:
    """Two samplers and the distance between them."""

    real: Draw
    fake: Draw
    distance: float


def normal(count: int, dimensions: int, generator: Generator) -> Tensor:
    return torch.randn(count, dimensions, generator=generator)


def sphere(count: int, dimensions: int, radius: float, generator: Generator) -> Tensor:
    points = normal(count, dimensions, generator)
    return radius * points / points.norm(dim=1, keepdim=True)


def square(count: int, generator: Generator) -> Tensor:
    """64x64 images with a bright or dark square of 35x35, far from the border: 35 = sqrt(35 * 35) from zeros."""
    images = torch.zeros(count, 1, 64, 64)
    images[:, :, 14:49, 14:49] = 1.0
    return images * (2.0 * torch.randint(2, (count, 1, 1, 1), generator=generator) - 1)


def translation(dimensions: int) -> Form:
    """W1(P, P + v) = |v|, here 5."""
    shift = torch.zeros(dimensions)
    shift[:2] = torch.tensor([3.0, 4.0])
    draw = Draw(lambda n, g: torch.rand(n, dimensions, generator=g))
    return Form(Draw(lambda n, g: torch.rand(n, dimensions, generator=g) + shift), draw, 5.0)


def gaussians(dimensions: int) -> Form:
    """Equal covariances, here with standard deviations from 0.2 to 1: |m1 - m2|, here 3."""
    deviations, mean = torch.linspace(0.2, 1.0, dimensions), torch.full((dimensions,), 3 / math.sqrt(dimensions))
    return Form(
        Draw(lambda n, g: normal(n, dimensions, g) * deviations + mean),
        Draw(lambda n, g: normal(n, dimensions, g) * deviations),
        3.0,
    )


def widths() -> Form:
    """On the line W1 = E |F^-1(u) - G^-1(u)| (sorted coupling): of N(0, 1) and N(0, 4), E |z| = sqrt(2 / pi)."""
    return Form(Draw(lambda n, g: 2 * normal(n, 1, g)), Draw(lambda n, g: normal(n, 1, g)), math.sqrt(2 / math.pi))


def shells(dimensions: int) -> Form:
    """Concentric spheres: the difference of the radii, here 2; f = |x|."""
    return Form(Draw(lambda n, g: sphere(n, dimensions, 3.0, g)), Draw(lambda n, g: sphere(n, dimensions, 1.0, g)), 2.0)


def cone(dimensions: int) -> Form:
    """The unit sphere and its centre: 1; f = |x|."""
    return Form(Draw(lambda n, g: sphere(n, dimensions, 1.0, g)), Draw(lambda n, g: torch.zeros(n, dimensions)), 1.0)


def squares() -> Form:
    """The toy of Serrurier et al. 2021: f = |<x, u>|."""
    return Form(Draw(square), Draw(lambda n, g: torch.zeros(n, 1, 64, 64)), 35.0)
