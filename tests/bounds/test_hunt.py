"""The hunt for a network that moves further than its bound allows, and how far above the truth the bounds lie."""

import numpy as np
import pytest
import torch

from lconvnet.bounds import Graph, lipschitz_bound, trace
from tests.bounds.networks import random_network, random_program

ROUNDING = 1e-11  # of the oracles: float64 on a few hundred entries, differences of length 0.1


def some_of(blocks, *, fast):
    """Blocks of seeds, of which the later ones run with the slow tests."""
    return [pytest.param(block, marks=[pytest.mark.slow] * (block >= fast)) for block in range(blocks)]


def jacobian_norm(network, x):
    """Largest singular value of the dense Jacobian at ``(1, ...)``: one backward pass over a copy for each output."""
    outputs = network(x).numel()
    copies = x.repeat(outputs, *[1] * (x.ndim - 1)).requires_grad_()
    (J,) = torch.autograd.grad(network(copies).flatten(1).diagonal().sum(), copies)
    J = J.flatten(1).numpy()
    return np.linalg.norm(J, 2) if np.isfinite(J).all() else 0.0  # a root has no slope at 0


def steepest_quotient(network, shape, *, starts=4, steps=15):
    """The largest ``|f(x + d) - f(x)| / |d|`` with |d| = 0.1 found by gradient ascent in x and d."""
    x = torch.rand(starts, *shape, dtype=torch.float64).requires_grad_()
    d = torch.randn(starts, *shape, dtype=torch.float64).requires_grad_()
    optimiser, best = torch.optim.Adam([x, d], lr=0.1), 0.0
    for _ in range(steps):
        step = 0.1 * d / d.flatten(1).norm(dim=1).reshape(-1, *[1] * len(shape))
        moved = (network(x + step) - network(x)).flatten(1)
        quotients = moved.norm(dim=1) / ((x + step) - x).flatten(1).norm(dim=1)
        best = max(best, float(quotients.detach().nan_to_num(nan=0.0).max()))
        optimiser.zero_grad()
        moved.square().sum(dim=1).add(1e-12).log().sum().neg().backward()
        for value in (x, d):
            value.grad.nan_to_num_(nan=0.0)
        optimiser.step()
    return best


def hunt(network, shape):
    """Upper bound, the largest of what the oracles reach, and their rounding: that of the largest tensor on the way,
    since f(x) + f(-x) may be all that is left of large ones."""
    bound = lipschitz_bound(network, input_shape=shape, diagnose=False)
    rounding = ROUNDING * max((layer.reach for layer in bound.layers), default=1.0)
    graph = trace(network, shape).graph
    assert Graph.from_json(graph.to_json()) == graph
    double = network.double()
    points = torch.rand(2, 1, *shape, dtype=torch.float64)
    reached = max(jacobian_norm(double, point) for point in (*points, 3 * points[0] - 1))
    return bound.upper, max(reached, steepest_quotient(double, shape)), rounding


@pytest.mark.parametrize("block", some_of(8, fast=4))
def test_no_random_network_moves_further_than_its_bound(block):
    for seed in range(5 * block, 5 * block + 5):
        network, shape = random_network(seed)
        upper, reached, rounding = hunt(network, shape)
        assert reached <= upper + rounding, (seed, network)


@pytest.mark.parametrize("block", some_of(4, fast=2))
def test_no_random_program_moves_further_than_its_bound(block):
    for seed in range(15 * block, 15 * block + 15):
        program, shape = random_program(seed)
        upper, reached, rounding = hunt(program, shape)
        assert reached <= upper + rounding, (seed, program.steps)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(20))
def test_two_thousand_random_programs(block):
    for seed in range(1000 + 100 * block, 1000 + 100 * block + 100):
        program, shape = random_program(seed)
        upper, reached, rounding = hunt(program, shape)
        assert reached <= upper + rounding, (seed, program.steps)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(20))
def test_two_thousand_random_networks(block):
    ratios = []
    for seed in range(1000 + 100 * block, 1000 + 100 * block + 100):
        network, shape = random_network(seed)
        upper, reached, rounding = hunt(network, shape)
        assert reached <= upper + rounding, (seed, network)
        ratios.append(upper / reached if reached else np.inf)
    assert np.median(ratios) < 10  # a chain of products over few pixels; not that the bound is huge
