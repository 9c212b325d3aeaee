"""Forward errors: never below what float32 does in any order of summation, and reached by the worst one."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from lconvnet.bounds import lipschitz_bound, register_operation, trace
from lconvnet.bounds.forward_error import Arithmetic, nonnegative_bound
from lconvnet.bounds.network import forward_error
from lconvnet.bounds.operations import BUILT_IN, REGISTERED
from lconvnet.layers import (
    Abs,
    FullSort,
    GroupSort,
    InvertibleDownsampling,
    InvertibleUpsampling,
    MaxMin,
    NearestUpsampling,
    Normalize,
    NormPool,
    Scale,
    TwoSidedReLU,
)
from tests.bounds.networks import random_network


def stored(network, shape, dtype=torch.float32):
    """The bounds of every node, and the trace they are of."""
    traced = trace(network, shape)
    bound = lipschitz_bound(network, input_shape=shape, diagnose=False)
    uppers = {layer.name: layer.upper for layer in bound.layers}
    tensors = {**network.state_dict(), **traced.constants}
    return forward_error(traced.graph, uppers, tensors, Arithmetic.of(dtype)), traced.graph


def at(line, norm):
    return line.slope * norm + line.offset


def test_a_sum_in_the_worst_order_reaches_the_bound():
    """1 + u + u + ... from the left stays 1: the error n u is the bound's n u up to its last two roundings."""
    n, unit = 1000, 2.0**-24
    layer = nn.Linear(n, 1, bias=False).requires_grad_(False)
    layer.weight.copy_(torch.tensor([1.0] + [unit] * (n - 1)))
    found, graph = stored(nn.Sequential(layer, Scale(64.0)), (n,))
    x, total = np.ones(n, np.float32), np.float32(0)
    for product in layer.weight[0].numpy() * x:
        total += product
    error = abs(Fraction(float(total)) - sum(Fraction(float(w)) for w in layer.weight[0]))
    bound = at(found["0"].error, math.sqrt(n))
    assert error == (n - 1) * Fraction(unit)
    assert 64 * float(error) < at(found[graph.output].error, math.sqrt(n))  # what follows carries it along
    # Cauchy-Schwarz between |w| and |x| costs sqrt(n) here; at the norm of the one entry that counts it costs nothing.
    assert float(error) < bound < 1.01 * math.sqrt(n) * (n + 1) * unit
    assert float(error) > 0.99 * at(found["0"].error, 1.0)


def test_underflow_is_counted():
    """Products far below the least normal number: 0 in float32, which flushes or rounds them."""
    layer = nn.Linear(4, 1, bias=False).requires_grad_(False)
    layer.weight.fill_(2.0**-100)
    found, graph = stored(nn.Sequential(layer), (4,))
    x = torch.full((4,), 2.0**-50)
    assert layer(x).item() == 0
    assert 4 * 2.0**-150 < at(found[graph.output].error, float(x.norm())) < 2.0**-120


class Residual(nn.Module):
    """Every function that the graph knows."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.register_buffer("gain", torch.rand(4, 1, 1) + 0.5)

    def forward(self, x):
        a, b = x.chunk(2, dim=1)
        y = torch.cat([b, -a], dim=1) * 0.7 + x / 3.0
        y = self.conv(y) + 0.25 * x
        y = y - y.mean(dim=(2, 3), keepdim=True)
        y = y * self.gain + self.gain
        y = y.transpose(2, 3).reshape(x.shape[0], 4, -1, 4)
        return torch.hypot(y, y - 0.3).flatten(1)[:, 1:]


NETWORKS = {
    "convolution": (nn.Sequential(nn.Conv2d(2, 6, 3, stride=2, padding=1, groups=2), nn.ReLU()), (2, 8, 8)),
    "circular": (nn.Sequential(nn.CircularPad2d((1, 2, 1, 2)), nn.Conv2d(2, 4, 4, stride=2), MaxMin()), (2, 8, 8)),
    "dilated": (nn.Sequential(nn.Conv2d(2, 4, 3, dilation=2, padding=2, stride=2), FullSort()), (2, 9, 7)),
    "torus": (nn.Sequential(nn.Conv2d(1, 2, 3, stride=2, padding=1, padding_mode="circular")), (1, 5, 5)),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1), Abs()), (4, 5, 5)),
    "normalised": (nn.Sequential(nn.BatchNorm2d(3), GroupSort(3), Scale(0.3)), (3, 4, 4)),
    "pooled": (nn.Sequential(nn.AvgPool2d(3, 2), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)), (2, 11, 11)),
    "norms": (nn.Sequential(Normalize((0.1, 0.4), (0.3, 0.5)), TwoSidedReLU(), NormPool(2)), (2, 8, 8)),
    "l2": (nn.Sequential(nn.LPPool2d(2, 2), nn.ZeroPad2d(1), nn.ReflectionPad2d(1)), (2, 8, 8)),
    "moved": (nn.Sequential(InvertibleDownsampling(2), nn.PixelShuffle(2), NearestUpsampling(2),
                            nn.PixelUnshuffle(2), InvertibleUpsampling(2), nn.ReplicationPad2d(1), nn.Dropout(),
                            nn.Dropout2d(), nn.Identity(), nn.Flatten(), nn.BatchNorm1d(200)), (2, 4, 4)),
    "graph": (Residual(), (4, 4, 4)),
}  # fmt: skip


class Shift(nn.Module):
    """A constant that float32 rounds down."""

    def forward(self, x):
        return x + 16777217.0


@pytest.mark.parametrize(
    ("network", "constant"),
    [(nn.Sequential(Shift()), 16777217.0), (nn.Sequential(Normalize((1.0,), (0.1,))), 1 / 0.1)],
)
def test_constants_are_read_in_float64(network, constant):
    found, graph = stored(network.double().eval(), (1, 1, 1), torch.float64)
    offset = found[graph.output].norm.offset
    assert constant <= offset < constant * (1 + 1e-11)  # INFLATION a few times


@pytest.mark.parametrize("name", NETWORKS)
def test_float_networks_stay_within_the_bound(name):
    """Against the same network in float64, whose own error is 2^-29 of the bound."""
    network, shape = NETWORKS[name]
    network = network.float().eval().requires_grad_(False)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            norm.running_mean.uniform_(-3, 3)
            norm.running_var.uniform_(0.1, 2)
    images = torch.rand(16, *shape)
    found, graph = stored(network, shape)
    end = found[graph.output]
    result = network(images).double()
    reference = network.double()(images.double())
    for x, y, z in zip(images.double(), result, reference, strict=True):
        norm = float(x.norm())
        assert float((y - z).norm()) <= at(end.error, norm)
        assert float(y.norm()) <= at(end.norm, norm) * (1 + 1e-12)
        assert float(y.abs().max()) <= at(end.peak, norm) * (1 + 1e-12)
    typical = float(images[0].norm())
    assert at(end.error, typical) < 1e-2
    finer = stored(network, shape, torch.float64)[0][graph.output]
    assert math.isfinite(at(finer.peak, typical))
    if name not in ("l2", "moved", "norms"):  # roots of what underflows have no such ratio
        assert at(finer.error, typical) == pytest.approx(2.0**-29 * at(end.error, typical), rel=1e-3)


@pytest.mark.parametrize("seeds", [range(8), pytest.param(range(1000, 3000), marks=pytest.mark.slow)])
def test_no_random_network_is_rounded_further_than_its_bound(seeds):
    """Every layer, padding, residual form and pooling in float32 against float64; and the bound is not absurd."""
    used = []
    for seed in seeds:
        network, shape = random_network(seed)
        network = network.float()
        images = torch.rand(8, *shape)
        found, graph = stored(network, shape)
        end = found[graph.output]
        errors = (network(images).double() - network.double()(images.double())).flatten(1).norm(dim=1)
        bounds = torch.tensor([at(end.error, float(x.double().norm())) for x in images])
        assert bool((errors <= bounds).all()), (seed, network)
        used.append(float((errors / bounds).max()))
    assert np.nanmedian(used) > 1e-5  # 0 of 0 where nothing is rounded


def test_every_operation_that_has_a_bound_has_a_rounding():
    graphs = [trace(network.eval(), shape).graph for network, shape in NETWORKS.values()]
    covered = {node.operation for graph in graphs for node in graph.nodes[1:]} | {"Linear", "subtract", "slice"}
    assert all(operation.rounding is not None for operation in BUILT_IN)
    assert {operation.name for operation in BUILT_IN} <= covered | {"negate", "permute"}


def test_what_has_no_rule_is_refused():
    class Unknown(nn.Identity):
        pass

    network = nn.Sequential(nn.Linear(2, 2))
    register_operation(Unknown, rule=lambda call: 1.0)
    graph = trace(Unknown(), (2,)).graph
    try:
        with pytest.raises(ValueError, match=r"'network' \(.*Unknown\) has no rule for its rounding, and none is"):
            forward_error(graph, {"network": 1.0}, {}, Arithmetic.of(torch.float32))
    finally:
        del REGISTERED[Unknown]
    with pytest.raises(ValueError, match="pass input_shape to trace"):
        forward_error(trace(network).graph, {"0": 1.0}, {}, Arithmetic.of(torch.float32))
    with pytest.raises(ValueError, match="bfloat16"):
        Arithmetic.of(torch.bfloat16)


@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (40, 7), (3, 90)])
def test_nonnegative_bound(shape):
    """Never below LAPACK's norm; for positive matrices power iteration closes the gap to 1e-6."""
    A = torch.rand(shape, dtype=torch.float64) * 2.0**-30
    norm = float(torch.linalg.matrix_norm(A, 2))
    assert norm <= nonnegative_bound(A) < norm * (1 + 1e-6)
    for steps in (0, 1, 2):  # above the norm whatever the vector is, here far from the singular one
        assert norm <= nonnegative_bound(A, steps=steps)
        assert nonnegative_bound(torch.diag(torch.tensor([1.0, 10.0, 2.0])), steps=steps) >= 10
    A[0] = 0
    assert nonnegative_bound(A) >= float(torch.linalg.matrix_norm(A, 2))
    assert nonnegative_bound(A * 0) == 0
    with pytest.raises(ValueError, match="without negative entries"):
        nonnegative_bound(-A - 1)
