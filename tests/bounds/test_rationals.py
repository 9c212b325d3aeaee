"""Bounds and radii of small networks against exact rational arithmetic, over every pattern of slopes."""

from fractions import Fraction
from itertools import product

import pytest
import torch
from torch import nn

from lconvnet import certify, layers, lipschitz_bound
from lconvnet.bounds import trace
from tests.bounds.networks import Branches
from tests.bounds.rationals import bends, evaluate, fractions
from tests.oracles import exceeds_norm


def dyadic(module, seed):
    """Weights in eighths, so that float64 logits are exact."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.parameters():
        tensor.data = torch.randint(-9, 10, tensor.shape, generator=generator).float() / 8
    return module.eval().requires_grad_(False)


def awkward(module, seed):
    """Weights that are no short fractions: every product rounds."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.parameters():
        tensor.data = torch.randn(tensor.shape, generator=generator)
    return module.eval().requires_grad_(False)


def dense():
    return nn.Sequential(nn.Linear(3, 4), layers.MaxMin(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3))


def blocks():
    inner = nn.Sequential(nn.Linear(2, 2), layers.Abs())
    return nn.Sequential(Branches("split", inner), Branches("halved", nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 3))


def branches():
    branch = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    return nn.Sequential(
        Branches("concatenated", branch, nn.Linear(3, 2)), Branches("difference", nn.Linear(4, 3), nn.Linear(4, 3))
    )


def reused():
    return nn.Sequential(
        Branches("twice", nn.Sequential(nn.Linear(3, 3), layers.Abs())), layers.Scale(-0.3), nn.Linear(3, 2)
    )


def images():
    conv = nn.Conv2d(1, 2, 2, bias=False)
    return nn.Sequential(
        nn.CircularPad2d((1, 0, 1, 0)), conv, nn.AvgPool2d(2), layers.MaxMin(), nn.Flatten(), nn.Linear(2, 2)
    )


def grouped():
    conv = nn.Conv2d(2, 2, 2, padding=1, dilation=2, stride=2, groups=2)
    return nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(2, 2))


def unshuffled():
    return nn.Sequential(nn.PixelUnshuffle(2), Branches("sliced", nn.Conv2d(2, 2, 1)), nn.Flatten(), nn.Linear(4, 2))


NETWORKS = [
    (dense, (3,)),
    (blocks, (4,)),
    (branches, (3,)),
    (reused, (3,)),
    (images, (1, 2, 2)),
    (grouped, (2, 2, 2)),
    (unshuffled, (1, 2, 2)),
]


@pytest.mark.parametrize("fill", [pytest.param(dyadic, marks=pytest.mark.slow), awkward])
@pytest.mark.parametrize(("build", "shape"), NETWORKS)
def test_bounds_and_radii_are_on_the_right_side(build, shape, fill):
    network = fill(build(), seed=1)
    graph, state = trace(network, shape).graph, network.state_dict()
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(2)).mul(16).round() / 16
    bound = lipschitz_bound(network, input_shape=shape).upper
    found = certify(network, x)
    patterns = list(product((0, 1), repeat=sum(bends(graph))))
    assert len(patterns) <= 2**9
    jacobians = [evaluate(graph, state, fractions(x[0]), pattern).slopes for pattern in patterns]
    assert all(exceeds_norm(bound, J) for J in jacobians)
    for image, label, radius in zip(x, found.label.tolist(), found.radius.tolist(), strict=True):
        logits = evaluate(graph, state, fractions(image)).values
        assert max(range(len(logits)), key=lambda c: logits[c]) == label
        for j in (c for c in range(len(logits)) if c != label):
            slope = max(sum((a - b) ** 2 for a, b in zip(J[label], J[j], strict=True)) for J in jacobians)
            assert Fraction(radius) ** 2 * slope <= (logits[label] - logits[j]) ** 2


def test_the_reading_agrees_with_torch():
    """The oracle itself: exact logits and slopes against float64."""
    for build, shape in NETWORKS:
        network = awkward(build(), seed=3).double()
        graph, x = trace(network, shape).graph, torch.rand(shape, dtype=torch.float64)
        found = evaluate(graph, network.state_dict(), fractions(x))
        J = torch.autograd.functional.jacobian(lambda v, network=network: network(v[None])[0], x).flatten(1)
        torch.testing.assert_close(
            torch.tensor([float(v) for v in found.values], dtype=torch.float64), network(x[None])[0]
        )
        torch.testing.assert_close(
            torch.tensor([[float(s) for s in row] for row in found.slopes], dtype=torch.float64), J
        )


def test_affine_networks_are_bounded_from_above_by_little():
    """No bends, one layer: the bound is the norm, up to Gram's 3^(2^-13) - 1 = 1.4e-4."""
    network = awkward(nn.Sequential(nn.Linear(3, 3)), seed=4)
    J = evaluate(trace(network, (3,)).graph, network.state_dict(), [Fraction()] * 3).slopes
    bound = lipschitz_bound(network, input_shape=(3,)).upper
    assert exceeds_norm(bound, J)
    assert not exceeds_norm(bound * (1 - 2e-4), J)


def test_the_two_level_reading_of_a_split():
    """(x1, f(x2)) with an isometric f: exactly one, in rationals."""
    turn = nn.Linear(2, 2, bias=False)
    turn.weight.data = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    network = Branches("split", turn).eval()
    bound = lipschitz_bound(network, input_shape=(4,)).upper
    J = evaluate(trace(network, (4,)).graph, network.state_dict(), [Fraction()] * 4).slopes
    assert exceeds_norm(bound, J)
    assert bound < 1 + 1e-14
