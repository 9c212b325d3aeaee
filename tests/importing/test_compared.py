"""Weights of "1-Lipschitz layers compared", in files made by the tests: none of theirs is on any package index.

Oracles are numpy's, in float64: sums over taps for AOL, singular values for polar factors, an inverse for Cayley's
transform. 1e-10 for what is computed in float64, 1e-5 for networks in float32. Where orthogonium is installed, its
copies of BCOP and CayleyLinear, which belong to the same family of files, are read as well.
"""

import os
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lconvnet import lipschitz_bound
from lconvnet.importing import load_compared
from lconvnet.layers import MaxMin
from tests.importing.originals import bcop


class Touch:
    """Pickled, this is a call that creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def saved(weights, tmp_path, **options):
    path = tmp_path / "weights.pth"
    torch.save(weights, path, **options)
    return path


def read(weights, tmp_path, frame, layers):
    return load_compared(saved(weights, tmp_path), frame.double(), layers)


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def conv(ci, co, k):
    return nn.Conv2d(ci, co, k, padding=(k - 1) // 2, padding_mode="circular")


def aol(W):
    """Every pair of taps of every pair of input channels, by loops."""
    W = W.numpy()
    ci, k = W.shape[1:3]
    A = np.zeros((ci, ci, 2 * k - 1, 2 * k - 1))
    for a, b, c, d in np.ndindex(k, k, k, k):
        A[:, :, c - a + k - 1, d - b + k - 1] += W[:, :, a, b].T @ W[:, :, c, d]
    return torch.from_numpy(W * np.abs(A).sum((1, 2, 3))[None, :, None, None] ** -0.5)


def polar(W):
    U, _, Vh = np.linalg.svd(W.numpy(), full_matrices=False)
    return torch.from_numpy(U @ Vh)


def cayley(W):
    W = W.numpy()
    if W.shape[0] < W.shape[1]:
        return cayley(torch.from_numpy(W.T)).T
    n = W.shape[1]
    Z = W[:n] - W[:n].T + W[n:].T @ W[n:]
    inverse = np.linalg.inv(np.eye(n) + Z)
    return torch.from_numpy(np.vstack([(np.eye(n) - Z) @ inverse, -2 * W[n:] @ inverse]))


def factors(k, c):
    mask = (torch.arange(c) < c // 2).double().repeat(2 * (k - 1), 1, 1)
    matrices = torch.linalg.qr(random(2 * k - 1, c, c)).Q + 0.05 * random(2 * k - 1, c, c)
    return matrices, mask


def test_aol(tmp_path):
    W = random(5, 4, 3, 3)
    network = read({"0.weight": W, "0.bias": random(5)}, tmp_path, nn.Sequential(conv(4, 5, 3)), ["AOLConv2d"])
    assert torch.allclose(network.get_parameter("0.weight"), aol(W), rtol=0, atol=1e-10)
    assert 0.3 < lipschitz_bound(network, input_shape=(4, 8, 8)).upper < 1


def test_aol_of_a_channel_that_nobody_reads(tmp_path):
    W = random(5, 4, 3, 3)
    W[:, 2] = 0
    network = read({"0.weight": W, "0.bias": random(5)}, tmp_path, nn.Sequential(conv(4, 5, 3)), ["AOLConv2d"])
    assert network.get_parameter("0.weight")[:, 2].abs().max() == 0
    assert lipschitz_bound(network, input_shape=(4, 8, 8)).upper < 1


@pytest.mark.parametrize(("ci", "co"), [(4, 4), (3, 6), (6, 3)])
def test_bjorck(ci, co, tmp_path):
    W, V = random(co, ci, 1, 1), random(2, 16 * co)
    weights = {"0.weight": W, "0.bias": random(co), "2.weight": V, "2.bias": random(2)}
    frame = nn.Sequential(conv(ci, co, 1), nn.Flatten(), nn.Linear(16 * co, 2))
    network = read(weights, tmp_path, frame, ["BjorckConv2d", "BjorckLinear"])
    assert torch.allclose(network.get_parameter("0.weight")[..., 0, 0], polar(W[..., 0, 0]), rtol=0, atol=1e-10)
    assert torch.allclose(network.get_parameter("2.weight"), polar(V), rtol=0, atol=1e-10)
    assert lipschitz_bound(network, input_shape=(ci, 4, 4)).upper < 1 + 1e-9


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (7, 3), (3, 7)])
def test_cayley(rows, columns, tmp_path):
    W, alpha = random(rows, columns), torch.tensor([2.5], dtype=torch.float64)
    weights = {"0.weight": W, "0.alpha": alpha, "0.bias": random(rows)}
    network = read(weights, tmp_path, nn.Sequential(nn.Linear(columns, rows)), ["CayleyLinear"])
    expected = cayley(alpha * W / W.norm())
    assert torch.allclose(network.get_parameter("0.weight"), expected, rtol=0, atol=1e-10)
    assert lipschitz_bound(network, input_shape=(columns,)).upper < 1 + 1e-9


@pytest.mark.parametrize("name", ["conv_matrices", "param_matrices"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("ci", "co", "k"), [(4, 4, 3), (3, 6, 3), (6, 3, 3), (5, 5, 1)])
def test_bcop(ci, co, k, bias, name, tmp_path):
    matrices, mask = factors(k, max(ci, co))
    weights = {f"0.{name}": matrices, "0.mask": mask} | ({"0.bias": random(co)} if bias else {})
    frame = nn.Sequential(nn.Conv2d(ci, co, k, padding=k // 2, padding_mode="circular", bias=bias))
    network = read(weights, tmp_path, frame, ["BCOP"])
    assert torch.allclose(network.get_parameter("0.weight"), bcop(matrices, ci, co), rtol=0, atol=1e-10)
    assert lipschitz_bound(network, input_shape=(ci, 6, 6)).upper < 1 + 1e-9


@pytest.mark.parametrize("method", ["AOLConv2d", "BCOP"])
def test_zeros_before_the_first_layer_and_channels_after_the_last(method, tmp_path):
    """As a network of theirs is laid out: zero channels, convolutions of one width, the first channels of the last."""

    def layer(name):
        if method == "BCOP":
            matrices, mask = factors(3, 8)
            return {f"{name}.conv_matrices": matrices, f"{name}.mask": mask, f"{name}.bias": random(8)}
        return {f"{name}.weight": random(8, 8, 3, 3), f"{name}.bias": random(8)}

    weights = layer("module.1") | layer("module.3")
    frame = nn.Sequential(conv(3, 8, 3), MaxMin(), conv(8, 5, 3))
    network = read(weights, tmp_path, frame, [method] * 2)
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    y = F.pad(x, (0, 0, 0, 0, 0, 5))
    for name in ("module.1", "module.3"):
        K = aol(weights[f"{name}.weight"]) if method == "AOLConv2d" else bcop(weights[f"{name}.conv_matrices"], 8, 8)
        y = F.conv2d(F.pad(y, (1, 1, 1, 1), mode="circular"), K, weights[f"{name}.bias"])
        if name == "module.1":
            a, b = y.chunk(2, 1)
            y = torch.cat([torch.maximum(a, b), torch.minimum(a, b)], 1)
    assert torch.allclose(network(x), y[:, :5], rtol=0, atol=1e-9)
    assert lipschitz_bound(network, input_shape=(3, 6, 6)).upper < 1 + 1e-9


def test_precisions_stay_and_the_frame_is_left(tmp_path):
    frame = nn.Sequential(nn.Linear(6, 4))
    before = frame.get_parameter("0.weight").clone()
    W = random(4, 6)
    path = saved({"0.weight": W, "0.bias": random(4)}, tmp_path)
    network = load_compared(path, frame, ["BjorckLinear"])
    assert network.get_parameter("0.weight").dtype == torch.float32
    assert torch.allclose(network.get_parameter("0.weight").double(), polar(W), rtol=0, atol=1e-6)
    assert torch.equal(frame.get_parameter("0.weight"), before)


DENSE = nn.Linear(4, 4)
CONV = conv(4, 4, 3)


@pytest.mark.parametrize(
    ("weights", "frame", "layers", "message"),
    [
        ({}, CONV, ["CPLConv2d"], r"names 'CPLConv2d', which is a residual block.*; allowed: AOLConv2d, Bjo"),
        ({}, CONV, ["SOC"], r"names 'SOC', which is not a convolution with a kernel of its own"),
        ({}, CONV, ["Conv2d"], r"names 'Conv2d', which is not a layer of this library that can be read"),
        ({}, CONV, ["BCOP"] * 2, r"layers names 2, but the frame has weights in 1; name each of them"),
        ({"0.weight": random(4, 4), "0.u": random(4)}, DENSE, ["BjorckLinear"], r"it keeps weight, u; BjorckLinear ke"),
        ({"0.weight": random(4, 4)}, DENSE, ["CayleyLinear"], r"it keeps weight; CayleyLinear keeps alpha, weight, an"),
        ({"0.weight": random(4, 4, 3, 3)}, CONV, ["BCOP"], r"BCOP keeps conv_matrices, mask or mask, param_matrices,"),
        ({"0.weight": random(4, 4)}, CONV, ["AOLConv2d"], r"keeps 4 dimensions, it has shape \(4, 4\)"),
        ({"0.weight": random(4, 4)}, CONV, ["BjorckLinear"], r"BjorckLinear stands for Linear, the frame has Conv2d"),
        ({"0.weight": random(4, 4, 3, 3)}, CONV, ["BjorckConv2d"], r"BjorckConv2d is of size 1x1, it has shape"),
        ({"0.weight": random(5, 4), "0.bias": random(5)}, nn.Linear(3, 4), ["BjorckLinear"], r"weight has shape \(4"),
        ({"0.weight": random(3, 4), "0.bias": random(3)}, DENSE, ["BjorckLinear"], r"weight has shape \(3, 4\)"),
        ({"0.weight": random(4, 4)}, DENSE, ["BjorckLinear"], r"bias has shape None, the frame \(4,\)"),
        (
            {"0.weight": random(4, 4), "0.alpha": random(2), "0.bias": random(4)},
            DENSE,
            ["CayleyLinear"],
            r"alpha has shape \(2,\); it is one number",
        ),
        (
            {"0.conv_matrices": random(5, 4, 4), "0.mask": torch.ones(4, 1, 4)},
            CONV,
            ["BCOP"],
            r"mask does not keep the first 2 of 4 columns",
        ),
        (
            {"0.weight": torch.zeros(4, 4), "0.alpha": torch.ones(()), "0.bias": random(4)},
            DENSE,
            ["CayleyLinear"],
            r"rows or matrices of zeros",
        ),
    ],
)
def test_what_does_not_fit_is_named(weights, frame, layers, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read(weights, tmp_path, nn.Sequential(frame), layers)


@pytest.mark.parametrize(("inner", "message"), [((6, 8), "0 does not fit layer 0"), ((8, 6), "1 does not fit layer 1")])
def test_only_the_ends_may_have_fewer_channels(inner, message, tmp_path):
    weights = {f"{i}.weight": random(8, 8, 3, 3) for i in range(2)} | {f"{i}.bias": random(8) for i in range(2)}
    with pytest.raises(ValueError, match=message + r" of the frame: weight has shape \(8, 8, 3, 3\), the"):
        read(weights, tmp_path, nn.Sequential(conv(8, inner[0], 3), conv(inner[1], 8, 3)), ["AOLConv2d"] * 2)


@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_runs(legacy, tmp_path):
    made = tmp_path / "made"
    path = saved({"0.weight": Touch(made)}, tmp_path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"weights\.pth is refused: it asks to run posix\.system"):
        load_compared(path, nn.Sequential(nn.Linear(2, 2)), ["BjorckLinear"])
    assert not made.exists()


@pytest.mark.parametrize(("ci", "co"), [(4, 4), (3, 6), (6, 3)])
def test_another_copy_of_bcop(ci, co, tmp_path, monkeypatch):
    """The copy of the original's layer in orthogonium keeps other names and computes the same."""
    strides = ModuleType("einops")  # which it needs for nothing else
    vars(strides)["rearrange"] = None
    monkeypatch.setitem(sys.modules, "einops", strides)
    theirs = pytest.importorskip("orthogonium.legacy.block_ortho_conv", reason="orthogonium is not installed")
    model = theirs.BCOP(ci, co, 3, bias=False, bjorck_iters=30).eval()
    weights = {f"0.{name}": value for name, value in model.state_dict().items()}
    frame = nn.Sequential(nn.Conv2d(ci, co, 3, padding=1, padding_mode="circular", bias=False))
    network = load_compared(saved(weights, tmp_path), frame, ["BCOP"])
    x = torch.rand(2, ci, 6, 6)
    assert (network(x) - model(x)).abs().max() < 1e-5
