"""What published libraries get wrong about Lipschitz constants, each with the true constant:
here it is bounded from above, or refused."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from lconvnet import bake, certify, layers, lipschitz_bound
from lconvnet.layers import MaxMin, Scale
from tests.bounds.networks import Branches, Normalise
from tests.bounds.test_hunt import jacobian_norm


def truth(network, shape):
    return max(jacobian_norm(network.double(), torch.randn(1, *shape, dtype=torch.float64)) for _ in range(3))


def upper(network, shape, **options):
    return lipschitz_bound(network, input_shape=shape, **options).upper


def filled(conv, value):
    conv.weight.data.fill_(value)
    return conv.requires_grad_(False)


@pytest.mark.parametrize("k", [3, 5, 7])
@pytest.mark.parametrize(("mode", "kind"), [("reflect", nn.ReflectionPad2d), ("replicate", nn.ReplicationPad2d)])
def test_padding_that_repeats_pixels_in_silence(mode, kind, k):
    """deel-torchlip (1.33, 1.20) and orthogonium (1.68, 2.07) accept it as 1. The worst kernel is one tap in a corner:
    a reflected pixel is read twice along each axis, a replicated one (k + 1) / 2 times."""
    shape, pad = (1, 8, 8), k // 2
    inside = filled(nn.Conv2d(1, 1, k, padding=pad, padding_mode=mode, bias=False), 0.0)
    inside.weight.data[..., 0, 0] = 1.0
    known = 2.0 if mode == "reflect" else (k + 1) / 2
    assert truth(inside, shape) == pytest.approx(known)
    with pytest.raises(ValueError, match=f"padding_mode='{mode}'.*increases the norm"):
        upper(inside, shape)
    before = nn.Sequential(kind(pad), filled(nn.Conv2d(1, 1, k, bias=False), 0.0))
    before[1].weight.data[..., 0, 0] = 1.0
    assert truth(before, shape) == pytest.approx(known)
    assert known <= upper(before, shape) < known * (1 + 1e-12)


def test_groups_are_not_a_product():
    """orthogonium's get_conv_sv multiplies the norms of the groups: 0.505 where the constant is 1."""
    conv = filled(nn.Conv2d(2, 2, 1, groups=2, bias=False), 1.0)
    conv.weight.data[1] = 0.505
    assert truth(conv, (2, 4, 4)) == pytest.approx(1.0)
    assert 1.0 <= upper(conv, (2, 4, 4)) < 1 + 1e-6


@pytest.mark.parametrize(("channels", "k", "stride"), [((1, 16), 3, 3), ((2, 16), 3, 1), ((1, 16), 3, 1)])
def test_transposed_convolutions_by_the_wrong_reshape(channels, k, stride):
    """deel-torchlip normalises another reshape of the kernel and reaches 2.25, or NaN."""
    conv = nn.ConvTranspose2d(*channels, k, stride, bias=False).requires_grad_(False)
    conv.weight.data /= torch.linalg.matrix_norm(conv.weight.flatten(1), 2) / 2.25
    shape = (channels[0], 3, 3)
    assert truth(conv, shape) > 1
    assert truth(conv, shape) <= upper(conv, shape) < 4 * truth(conv, shape)


def test_pooling_with_options():
    """deel-torchlip's scaled average pooling: divisor_override=1 gives 4, ceil_mode on an odd image 2; said to be 1."""
    pooled = nn.Sequential(nn.AvgPool2d(2, divisor_override=1), Scale(2.0))
    assert truth(pooled, (1, 4, 4)) == pytest.approx(4)
    assert upper(pooled, (1, 4, 4)) == 4
    partial = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), Scale(2.0))
    assert truth(partial, (1, 5, 5)) == pytest.approx(2)
    with pytest.raises(ValueError, match="ceil_mode=True"):
        upper(partial, (1, 5, 5))


def test_overlapping_maxima_are_not_one():
    """gloro takes every max pooling as 1."""
    pool, x = nn.MaxPool2d(3, 1), torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    y = x.clone()
    y[..., 2, 2] = 1.0
    assert (pool(y) - pool(x)).norm() == 3
    with pytest.raises(ValueError, match="overlap"):
        upper(pool, (1, 5, 5))


@pytest.mark.parametrize("K", [0.1, 10.0])
def test_a_factor_that_does_nothing(K):
    """deel-torchlip's Sequential(k_coef_lip=K) leaves the constant at 1; here a factor is a layer, and counts."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), MaxMin(), Scale(K))
    nn.init.orthogonal_(network[1].weight)
    assert truth(network, (4,)) == pytest.approx(K, rel=1e-5)
    assert truth(network, (4,)) <= upper(network, (4,)) < K * (1 + 1e-5)


def test_weights_of_the_step_before():
    """deel-torchlip evaluates with the last training weight; here eval, bake and bound see the current parameters."""
    model = nn.Sequential(layers.CholeskyLinear(6, 6), MaxMin(), layers.OrthogonalLinear(6, 3))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    x = torch.rand(8, 6)
    model.train()(x).square().sum().backward()
    old = bake(model)
    bound = lipschitz_bound(old, input_shape=(6,))
    optimiser.step()
    new = bake(model)
    with torch.no_grad():
        assert (model.eval()(x) - old(x)).abs().max() > 0.01
        torch.testing.assert_close(model(x), new(x), rtol=0.0, atol=1e-5)  # float32 against the float64 weight
    assert truth(new, (6,)) <= upper(new.float(), (6,)) * (1 + 1e-6)
    with pytest.raises(ValueError, match="other weights"):
        certify(new.float(), x, bound=bound)


def test_a_correction_that_is_none():
    """deel-lip divides by an average border effect and reaches 1.02: norm 1 on 8 x 8 pixels is more on 32 x 32."""
    conv = filled(nn.Conv2d(1, 1, 3, padding=1, bias=False), 1 / 9)
    conv.weight.data /= truth(conv, (1, 8, 8))
    assert truth(conv, (1, 8, 8)) == pytest.approx(1)
    assert 1.02 < truth(conv, (1, 20, 20)) <= upper(conv, (1, 8, 8))  # zero padding: one bound for all sizes


def test_the_largest_deviation_of_an_input_normalisation():
    """1 / max(std) instead of 1 / min(std)."""
    network = Normalise(2).eval().requires_grad_(False)
    network.gain.fill_(1.0)
    network.std.copy_(torch.tensor([0.2, 0.4]).reshape(2, 1, 1))
    assert truth(network, (2, 3, 3)) == pytest.approx(5, rel=1e-6)
    assert 5 * (1 - 1e-6) < upper(network.float(), (2, 3, 3)) < 5 * (1 + 1e-6)


def test_a_norm_that_holds_at_one_size_only():
    """An ECO-like kernel: at most 1 at every frequency of one image, but larger between them."""
    K = torch.zeros(1, 1, 1, 4)
    K[..., :] = torch.tensor([1.0, -1.0, 1.0, 1.0]) / 2  # its four frequencies have modulus 1
    conv = nn.Conv2d(1, 1, (1, 4), bias=False).requires_grad_(False)
    conv.weight.data = K
    network = nn.Sequential(nn.CircularPad2d((3, 0, 0, 0)), conv)
    assert truth(network, (1, 4, 4)) == pytest.approx(1)
    assert upper(network.float(), (1, 4, 4)) < 1 + 1e-6
    assert truth(network, (1, 4, 8)) > 1.1
    assert truth(network, (1, 4, 8)) <= upper(network.float(), (1, 4, 8))
    head = nn.Sequential(network, nn.Flatten()).float()
    bound = lipschitz_bound(head, input_shape=(1, 4, 4))
    with pytest.raises(ValueError, match="does not cover images"):
        certify(head, torch.rand(1, 1, 4, 8), bound=bound)


def test_unknown_layers_are_not_one():
    """LConvNet skips what is not its own class, gloro prints and goes on, both with 1."""
    doubled = Branches("additive", nn.Identity()).eval()
    assert upper(doubled, (2, 2, 2)) == 2

    class Own(nn.Module):
        def forward(self, x):
            return torch.exp(x)

    with pytest.raises(ValueError, match="'exp'.*none is assumed"):
        upper(nn.Sequential(Own()).eval(), (2, 2, 2))


def test_power_iteration_never_certifies():
    """Published certificates use it. Where the second singular value is close, ten steps are far below the norm."""
    W = torch.diag(torch.linspace(0.9, 1.0, 64))
    layer = nn.Linear(64, 64, bias=False).requires_grad_(False)
    layer.weight.data = W
    v = torch.ones(64) / 8
    for _ in range(10):
        v = W.T @ (W @ v)
        v /= v.norm()
    assert float((W @ v).norm()) < 0.99
    found = lipschitz_bound(nn.Sequential(layer), input_shape=(64,))
    assert found.upper >= 1
    with pytest.raises(ValueError, match="does not certify"):
        certify(nn.Sequential(layer), torch.rand(1, 64), bound=dataclasses.replace(found, level="estimate"))


def test_dropout_and_batch_statistics():
    """Both are taken as 1 in training mode, where they are not."""
    for module in (nn.Dropout(), nn.BatchNorm2d(2)):
        with pytest.raises(ValueError, match=r"network.eval\(\)"):
            upper(nn.Sequential(module).train(), (2, 2, 2))
    norm = nn.BatchNorm2d(2).eval()
    norm.running_var.fill_(0.01)
    assert upper(norm, (2, 2, 2)) == pytest.approx(1 / math.sqrt(0.01 + 1e-5), rel=1e-6)


def test_singular_values_of_a_polynomial_that_overshoots():
    """Muon's five quintic steps reach 1.2: neither orthogonal nor a contraction, and the bound says so."""
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))[0]
    s = np.linspace(0.01, 1.0, 12)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    layer = nn.Linear(12, 12, bias=False).requires_grad_(False)
    layer.weight.data = torch.from_numpy(Q * s @ Q.T).float()
    assert 1.05 < s.max() <= upper(nn.Sequential(layer), (12,)) * (1 + 1e-6)
