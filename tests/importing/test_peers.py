"""Weights of other libraries: against their formulas, and against the libraries themselves where they are installed.

1e-12 for kernels in float64; 2e-6 for outputs of order 1 in float32, where the libraries iterate in float32.
"""

import os
from collections import OrderedDict
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lconvnet import lipschitz_bound, save
from lconvnet.importing import load_orthogonium, load_plain, load_torchlip
from lconvnet.importing.libraries import bcop_kernel, compose
from lconvnet.importing.original import cut_off
from lconvnet.layers import Abs, FullSort, GroupSort, MaxMin, OrthogonalLinear, Scale, Sum

read_torchlip = partial(load_torchlip, k_coef_lip=1, disjoint_neurons=True)


class Touch:
    """Pickled, this is a call that creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def saved(weights, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(weights, path)
    return path


def test_plain_weights_fill_the_frame(tmp_path):
    theirs = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    frame = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    network = load_plain(saved(theirs.state_dict(), tmp_path), frame)
    x = torch.rand(2, 2, 8, 8)
    assert torch.equal(network(x), theirs(x)) and not torch.equal(frame(x), theirs(x))
    save(network, tmp_path / "a.safetensors", input_shape=(2, 8, 8))


@pytest.mark.parametrize("read", [load_plain, load_orthogonium, read_torchlip])
@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_runs(read, legacy, tmp_path):
    path, made = tmp_path / "a.pth", tmp_path / "made"
    torch.save({"0.weight": Touch(made), "0.bias": torch.ones(2)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"a\.pth is refused: it asks to run posix\.system"):
        read(path, nn.Sequential(nn.Linear(2, 2)))
    assert not made.exists()


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2)), r"weights of 1 layers \(0\), the frame has 2 \(0, 1\)"),
        (
            nn.Sequential(nn.Linear(4, 3)),
            r"does not fit layer 0 of the frame: weight has shape \(2, 4\), the frame \(3",
        ),
        (nn.Sequential(nn.Linear(4, 2, bias=False)), r"bias has shape \(2,\), the frame None"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), r"has groups or dilation"),
        (nn.Linear(4, 2), r"frame is a Linear; write the network down as an nn\.Sequential"),
    ],
)
def test_a_frame_that_does_not_fit_is_refused(frame, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_plain(saved(nn.Sequential(nn.Linear(4, 2)).state_dict(), tmp_path), frame)


def test_missing_parameters_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"it keeps bias, gain, where weight was expected"):
        load_plain(saved({"0.bias": torch.ones(2), "0.gain": torch.ones(2)}, tmp_path), nn.Sequential(nn.Linear(4, 2)))


def named(*names, bias=True):
    return nn.Sequential(OrderedDict((name, nn.Linear(4, 4, bias=bias)) for name in names))


@pytest.mark.parametrize("theirs", [("second", "first"), ("first", "second")])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod.net."])
def test_names_decide_where_they_agree(theirs, prefix, tmp_path):
    file, frame = named(*theirs), named("first", "second")
    weights = {prefix + name: value for name, value in file.state_dict().items()}
    network = load_plain(saved(weights, tmp_path), frame)
    for name in theirs:
        assert torch.equal(network.get_parameter(f"{name}.weight"), file.get_parameter(f"{name}.weight"))
        assert torch.equal(network.get_parameter(f"{name}.bias"), file.get_parameter(f"{name}.bias"))


def test_a_layer_that_was_compiled_by_itself(tmp_path):
    file = named("first", "second")
    weights = {name.replace("first.", "first._orig_mod."): value for name, value in file.state_dict().items()}
    assert torch.equal(load_plain(saved(weights, tmp_path), named("second", "first"))(torch.eye(4)),
                       nn.Sequential(file.second, file.first)(torch.eye(4)))  # fmt: skip


@pytest.mark.parametrize("theirs", ["{}", "conv{}", "module.layer{}.0", "{}.conv"])
def test_else_numbers_decide(theirs, tmp_path):
    """A hundred and more behind twenty, wherever they are in the file."""
    file = named(*"abc")
    numbers = dict(zip("abc", (20, 100, 110), strict=True))
    for order in ("abc", "cab"):
        weights = {
            f"{theirs.format(numbers[name])}.{key}": file.get_parameter(f"{name}.{key}")
            for name in order for key in ("weight", "bias")
        }  # fmt: skip
        network = load_plain(saved(weights, tmp_path), nn.Sequential(*named(*"abc")))
        assert torch.equal(network(torch.eye(4)), file(torch.eye(4)))


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        (
            ("first", "other"),
            ("first", "second"),
            r"first, other, whose order no number tells; name the layers of the fr",
        ),
        (("conv1", "fc1"), ("0", "1"), r"conv1, fc1, whose order no number tells"),
        (("1", "3"), ("3", "5"), r"has layers called 1, 3, the frame 3, 5, which gives one name to two of them"),
        (("layer1", "layer2"), ("layer0", "layer1"), r"which gives one name to two of them"),
        (("first", "second"), ("first",), r"weights of 2 layers \(first, second\), the frame has 1 \(first\)"),
    ],
)
@pytest.mark.parametrize("read", [load_plain, load_orthogonium, read_torchlip])
def test_names_that_tell_nothing_are_refused(read, theirs, ours, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read(saved(named(*theirs).state_dict(), tmp_path), named(*ours))


@pytest.mark.parametrize(
    ("read", "weight"),
    [(load_plain, "weight"), (load_orthogonium, "parametrizations.weight.original"),
     (read_torchlip, "parametrizations.weight.original")],
)  # fmt: skip
@pytest.mark.parametrize("extra", ["gain", "weight_g", "running_mean", "parametrizations.weight.0.scale"])
def test_tensors_that_would_be_lost_are_named(read, weight, extra, tmp_path):
    weights = {f"0.{weight}": torch.eye(4), "0.bias": torch.zeros(4), f"0.{extra}": torch.ones(4)}
    with pytest.raises(ValueError, match=rf"it keeps {extra} besides, which would be lost"):
        read(saved(weights, tmp_path), nn.Sequential(nn.Linear(4, 4)))


def test_a_normalisation_in_file_or_frame_is_refused(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match=r"1\.num_batches_tracked has dtype torch\.int64"):
        load_plain(saved(model.state_dict(), tmp_path), nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match=r"frame has 1 \(BatchNorm1d\) with weight, bias, running_mean.*no file fills"):
        load_plain(saved(model[0].state_dict(), tmp_path), model)


def test_numbers_that_the_frame_does_not_hold_are_refused(tmp_path):
    weights = {"0.weight": torch.full((4, 4), 1e300, dtype=torch.float64), "0.bias": torch.zeros(4)}
    with pytest.raises(ValueError, match=r"numbers that torch\.float32 does not hold; use frame\.double\(\)"):
        load_plain(saved(weights, tmp_path), nn.Sequential(nn.Linear(4, 4)))
    assert load_plain(saved(weights, tmp_path), nn.Sequential(nn.Linear(4, 4)).double())[0].weight.max() == 1e300


def test_one_layer_saved_by_itself(tmp_path):
    for read, weight in ((load_plain, "weight"), (read_torchlip, "parametrizations.weight.original")):
        weights = {weight: torch.eye(4), "bias": torch.ones(4)}
        assert torch.equal(read(saved(weights, tmp_path), nn.Sequential(nn.Linear(4, 4)))[0].weight, torch.eye(4))


CONV, DENSE = nn.Conv2d(2, 2, 3, bias=False), nn.Linear(4, 2, bias=False)
WEIGHT = "0.parametrizations.weight.original"


@pytest.mark.parametrize("layer", [CONV, DENSE])
@pytest.mark.parametrize("shape", [(), (4,)])
@pytest.mark.parametrize("read", [load_plain, load_orthogonium, read_torchlip])
def test_weights_that_are_no_matrices_are_refused(read, shape, layer, tmp_path):
    weights = {("0.weight" if read is load_plain else WEIGHT): torch.ones(shape)}
    if read is read_torchlip:
        weights |= {f"0.parametrizations.weight.0.{name}": torch.ones(2) for name in ("_u", "_v")}
    with pytest.raises(ValueError, match=r"0 does not fit layer 0 of the frame"):
        read(saved(weights, tmp_path), nn.Sequential(layer))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_bcop_without_all_its_matrices_is_refused(count, tmp_path):
    with pytest.raises(ValueError, match=rf"does not fit layer 0 of the frame: {count} matrices; a kernel"):
        load_orthogonium(saved({WEIGHT: torch.ones(1, count, 2, 1)}, tmp_path), nn.Sequential(CONV))


@pytest.mark.parametrize("extra", [{}, {"0.parametrizations.weight.0.parametrizations.u.original": torch.ones(2)}])
@pytest.mark.parametrize("read", [load_orthogonium, read_torchlip])
def test_zeros_that_would_be_divided_by_their_norm_are_refused(read, extra, tmp_path):
    with pytest.raises(ValueError, match=r"does not fit layer 0 of the frame: (its weight has|a matrix of|it keeps) "):
        read(saved({WEIGHT: torch.zeros(2, 4)} | extra, tmp_path), nn.Sequential(DENSE))


# orthogonium


@pytest.mark.parametrize(("ci", "co"), [(4, 4), (3, 5), (6, 2)])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 7])
def test_the_bcop_kernel_is_its_factors_one_after_another(ci, co, k):
    """The composed kernel against convolutions with 2×2 blocks, run one by one on an image without padding."""
    c = max(ci, co)
    matrices = torch.randn(1, 2 * k, c, c // 2, dtype=torch.float64)
    P = [Y @ Y.T for Y in torch.linalg.qr(matrices[0]).Q]
    matrices = torch.linalg.qr(matrices).Q
    eye = torch.eye(c, dtype=torch.float64)
    first = ((eye - 2 * P[0]) @ (eye - 2 * P[1]))[:, : min(ci, co), None, None]
    order = {1: [], 2: [0], 3: [0, 1], 4: [0, 1, 2], 5: [0, 2, 1, 3], 7: [0, 3, 1, 4, 2, 5]}[k]
    x = torch.rand(1, min(ci, co), 10, 10, dtype=torch.float64)
    y = F.conv2d(x, first)
    for i in order:
        p, q = P[2 + i], P[1 + k + i]
        rows = [[p @ q, p @ (eye - q)], [(eye - p) @ q, (eye - p) @ (eye - q)]]
        y = F.conv2d(y, torch.stack([torch.stack(row, -1) for row in rows], -2))
    K = bcop_kernel(matrices, ci, co)
    assert torch.allclose(F.conv2d(x, K if ci <= co else K.transpose(0, 1)), y, rtol=0, atol=1e-12)
    assert K.shape == (co, ci, k, k)


def test_a_composed_kernel_is_one_convolution_after_another():
    before, after = torch.randn(5, 2, 3, 3), torch.randn(4, 5, 2, 2)
    x = torch.rand(2, 2, 9, 9)
    expected = F.conv2d(F.conv2d(x, before), after, stride=2)
    assert torch.allclose(F.conv2d(x, compose(after, before), stride=2), expected, rtol=0, atol=1e-4)


def test_what_bjorck_leaves_is_left():
    """Twelve steps of 1.5 s - 0.5 s^3 on the singular values, whether that is enough or not."""
    W = torch.diag(torch.tensor([3.0, 3e-4], dtype=torch.float64))
    s = 1e-4
    for _ in range(12):
        s = 1.5 * s - 0.5 * s**3
    assert torch.allclose(cut_off(W, 12), torch.diag(torch.tensor([1.0, s], dtype=torch.float64)), rtol=1e-12)
    assert s < 0.02


# deel-torchlip


def test_groups_side_by_side_become_groups_apart(tmp_path):
    """A convolution and dense layers around GroupSort(2), GroupSort(4) and a flattening, against sorting neighbours."""
    shapes = {"0": (8, 3, 3, 3), "3": (8, 8 * 36), "5": (4, 8)}
    weights = {f"{i}.parametrizations.weight.1._w_bjorck": torch.randn(shape) for i, shape in shapes.items()}
    weights |= {f"{i}.bias": torch.randn(shape[0]) for i, shape in shapes.items()}
    frame = nn.Sequential(
        nn.Conv2d(3, 8, 3), GroupSort(2), nn.Flatten(), nn.Linear(288, 8), GroupSort(4), nn.Linear(8, 4)
    )
    network = read_torchlip(saved(weights, tmp_path), frame)
    x = torch.rand(2, 3, 8, 8)
    W = {i: weights[f"{i}.parametrizations.weight.1._w_bjorck"] for i in shapes}
    y = F.conv2d(x, W["0"] / 3, weights["0.bias"])
    y = y.unflatten(1, (4, 2)).sort(2).values.flatten(1)
    y = F.linear(y, W["3"], weights["3.bias"]).unflatten(1, (2, 4)).sort(2).values.flatten(1)
    y = F.linear(y, W["5"], weights["5.bias"])
    assert torch.allclose(network(x), y, rtol=1e-5)


def test_maxmin_in_the_frame_is_their_sort_of_two(tmp_path):
    """Our MaxMin pairs channels that lie apart, their sort those side by side."""
    layers = nn.Conv2d(3, 8, 3), nn.Linear(288, 6), nn.Linear(6, 4)
    frame = nn.Sequential(
        nn.Conv2d(3, 8, 3), MaxMin(), nn.Flatten(), nn.Linear(288, 6), nn.Sequential(MaxMin()), nn.Linear(6, 4)
    )
    weights = {}
    for i, layer in zip("035", layers, strict=True):
        factor = 3 if i == "0" else 1
        weights |= {f"{i}.parametrizations.weight.1._w_bjorck": factor * layer.weight, f"{i}.bias": layer.bias}
    network, x = read_torchlip(saved(weights, tmp_path), frame), torch.rand(5, 3, 8, 8)
    y = layers[0](x).unflatten(1, (4, 2)).sort(2).values.flatten(1).flatten(1)
    y = layers[1](y).unflatten(1, (3, 2)).sort(2).values.flatten(1)
    assert torch.allclose(network(x), layers[2](y), atol=1e-6)


class Sorted(GroupSort):
    """A class of a user's: nobody knows what it does to the channels."""


def test_a_frame_of_our_own_layers_is_filled(tmp_path):
    W = torch.eye(4)[:, :3]
    weights = {"0.parametrizations.weight.1._w_bjorck": W, "0.bias": torch.arange(4.0)}
    network = read_torchlip(saved(weights, tmp_path), nn.Sequential(OrthogonalLinear(3, 4)))
    assert torch.equal(network(torch.eye(3)), W.T + torch.arange(4.0))


TIED = {"plain": load_plain, "orthogonium": load_orthogonium, "torchlip": partial(load_torchlip, k_coef_lip=1)}


@pytest.mark.parametrize("kind", TIED)
def test_a_frame_that_ties_weights_takes_those_of_the_file(kind, tmp_path):
    W = {i: nn.init.orthogonal_(torch.empty(4, 4)) for i in "02"}
    key = {"plain": "weight", "torchlip": "parametrizations.weight.1._w_bjorck"}
    key = key.get(kind, "parametrizations.weight.original")
    extra = {f"{i}.parametrizations.weight.0.parametrizations.u.original": torch.ones(1) for i in "02"}
    weights = {f"{i}.{key}": W[i] for i in "02"} | (extra if kind == "orthogonium" else {})
    frame = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    frame[2].weight = frame[0].weight
    network, x = TIED[kind](saved(weights, tmp_path), frame), torch.rand(3, 4)
    torch.testing.assert_close(network(x), (x @ W["0"].T).relu() @ W["2"].T)  # both are orthogonal
    frame[2] = frame[0]
    with pytest.raises(ValueError, match=r"frame has one layer as 0 and as 2: write a layer of its own for each"):
        TIED[kind](saved(weights, tmp_path), frame)


def test_groups_in_sequences_of_sequences(tmp_path):
    """A GroupSort that is further in is regrouped all the same, against sorting neighbours."""
    layers = nn.Linear(6, 4), nn.Linear(4, 3)
    weights = {f"{i}.parametrizations.weight.1._w_bjorck": layer.weight for i, layer in enumerate(layers)}
    weights |= {f"{i}.bias": layer.bias for i, layer in enumerate(layers)}
    frame = nn.Sequential(nn.Sequential(nn.Linear(6, 4), nn.Sequential(GroupSort(2))), nn.Linear(4, 3))
    inner = {key.replace("0.", "0.0.", 1) if key[0] == "0" else key: value for key, value in weights.items()}
    network = read_torchlip(saved(inner, tmp_path), frame)
    x = torch.rand(5, 6)
    y = layers[1](layers[0](x).unflatten(1, (2, 2)).sort(2).values.flatten(1))
    assert torch.allclose(network(x), y, atol=1e-6)


@pytest.mark.parametrize("factors", [2.0, (2.0, 0.5)])
def test_the_factors_of_its_layers_are_asked_for(factors, tmp_path):
    layers = nn.Linear(6, 4), nn.Linear(4, 3)
    weights = {f"{i}.parametrizations.weight.1._w_bjorck": layer.weight for i, layer in enumerate(layers)}
    weights |= {f"{i}.bias": layer.bias for i, layer in enumerate(layers)}
    path, frame = saved(weights, tmp_path), nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"k_coef_lip is not given and in no file: give 1 for layers that"):
        load_torchlip(path, frame)
    network = load_torchlip(path, frame, k_coef_lip=factors)
    for i, factor in enumerate(factors if isinstance(factors, tuple) else (factors, factors)):
        assert torch.allclose(network[i].weight, factor * layers[i].weight)
    scaled = load_torchlip(path, frame, k_coef_lip=torch.tensor(2.0))
    assert torch.allclose(scaled[0].weight, 2 * layers[0].weight)
    for wrong in (0, -1.0, (1.0,), (1.0, float("nan")), "2", [None, 1], True):
        with pytest.raises(ValueError, match=r"k_coef_lip=.*: give one positive number, or 2, one for each layer"):
            load_torchlip(path, frame, k_coef_lip=wrong)


def test_how_a_frobenius_layer_was_built_is_asked_for(tmp_path):
    W = torch.randn(3, 4)
    path = saved({WEIGHT: W, "0.bias": torch.zeros(3)}, tmp_path)
    frame = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"it is a FrobeniusLinear; give disjoint_neurons as it was built"):
        load_torchlip(path, frame, k_coef_lip=1)
    whole = load_torchlip(path, frame, k_coef_lip=1, disjoint_neurons=False)
    assert torch.allclose(whole[0].weight, W / W.norm())
    assert torch.allclose(read_torchlip(path, frame)[0].weight, W / W.norm(dim=1, keepdim=True))


def test_groups_behind_a_flattening_of_images_are_refused(tmp_path):
    weights = {f"{i}.bias": torch.zeros(4) for i in "03"} | {
        "0.parametrizations.weight.1._w_bjorck": torch.rand(4, 2, 3, 3),
        "3.parametrizations.weight.1._w_bjorck": torch.rand(4, 144),
    }
    for layers in ((nn.Flatten(), GroupSort(2)), (GroupSort(2), nn.Flatten())):
        frame = nn.Sequential(nn.Conv2d(2, 4, 3), *layers, nn.Linear(144, 4))
        if isinstance(layers[0], nn.Flatten):
            with pytest.raises(ValueError, match=r"GroupSort.* behind a Flatten of images, where theirs sorts pixels"):
                read_torchlip(saved(weights, tmp_path), frame)
        else:
            read_torchlip(saved(weights, tmp_path), frame)


def test_without_bjorck_the_weight_is_divided_by_its_estimate(tmp_path):
    W, u, v = torch.randn(4, 6), torch.randn(4), torch.randn(6)
    key = "0.parametrizations.weight"
    weights = {"0.bias": torch.zeros(4), f"{key}.original": W, f"{key}.0._u": u, f"{key}.0._v": v}
    network = read_torchlip(saved(weights, tmp_path), nn.Sequential(nn.Linear(6, 4)))
    assert torch.allclose(network.get_parameter("0.weight"), W / (u @ W @ v), rtol=1e-5)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((nn.Flatten(), GroupSort(2), nn.Linear(4, 4)), r"without a layer of weights right before it"),
        ((nn.Linear(4, 4), GroupSort(2)), r"frame ends with a GroupSort"),
        (
            (nn.Linear(4, 4), GroupSort(2), Sum(Abs()), nn.Linear(4, 4)),
            r"(?s)Sum.* between a GroupSort and the weights",
        ),
        (
            (nn.Linear(4, 4), Sum(GroupSort(2), Abs()), nn.Linear(4, 4)),
            r"GroupSort.* where its channels may be in another order than theirs",
        ),
        ((nn.Linear(4, 4), GroupSort(3), nn.Linear(4, 4)), r"GroupSort.* does not divide the 4 channels"),
        ((nn.Linear(4, 4), MaxMin()), r"frame ends with a GroupSort"),
        ((nn.Linear(4, 4), MaxMin(0), nn.Linear(4, 4)), r"MaxMin\(dim=0\); theirs sorts channels, dim=1"),
        ((nn.Linear(4, 4), GroupSort(2, 2), nn.Linear(4, 4)), r"GroupSort.* theirs sorts channels, dim=1"),
        ((nn.Linear(4, 4), Sorted(2), nn.Linear(4, 4)), r"Sorted.* channels may be in another order than theirs"),
        ((nn.Linear(4, 4), Sum(MaxMin(), Abs()), nn.Linear(4, 4)), r"MaxMin.* may be in another order than theirs"),
    ],
)
def test_groups_that_cannot_be_renumbered_are_refused(layers, message, tmp_path):
    count = sum(isinstance(layer, nn.Linear) for layer in layers)
    weights = {}
    for i in range(count):
        weights |= {f"{i}.bias": torch.zeros(4), f"{i}.parametrizations.weight.original": torch.eye(4)}
    with pytest.raises(ValueError, match=message):
        read_torchlip(saved(weights, tmp_path), nn.Sequential(*layers))


# the libraries themselves


def trained(model, x):
    """A model after a few steps, in eval mode."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(10):
        optimizer.zero_grad()
        model(x).pow(2).mean().backward()
        optimizer.step()
    model(x)
    return model.eval()


def check(model, frame, read, tmp_path):
    x = torch.rand(4, 3, 16, 16)
    trained(model, x)
    network = read(saved(model.state_dict(), tmp_path), frame)
    assert (network(x) - model(x)).abs().max() < 2e-6
    return lipschitz_bound(network, input_shape=(3, 16, 16)).upper


def conv(ci, co, k, stride=1, padding=0):
    return nn.Conv2d(ci, co, k, stride, padding, padding_mode="circular" if padding else "zeros")


def test_a_network_of_orthogonium(tmp_path):
    theirs = pytest.importorskip("orthogonium.layers", reason="orthogonium is not installed")
    Conv = theirs.AdaptiveOrthoConv2d
    model = nn.Sequential(
        Conv(3, 8, 3, padding=1), theirs.MaxMin(), Conv(8, 4, 5, padding=2), theirs.MaxMin(),
        Conv(4, 12, 4, stride=2, padding=1), theirs.MaxMin(), Conv(12, 6, 2, stride=2, padding=0), theirs.Abs(),
        nn.Flatten(), theirs.OrthoLinear(96, 16), theirs.MaxMin(), theirs.UnitNormLinear(16, 4),
    )  # fmt: skip
    frame = nn.Sequential(
        conv(3, 8, 3, padding=1), MaxMin(), conv(8, 4, 5, padding=2), MaxMin(), conv(4, 12, 4, 2, 1), MaxMin(),
        conv(12, 6, 2, 2), Abs(), nn.Flatten(), nn.Linear(96, 16), MaxMin(), nn.Linear(16, 4),
    )  # fmt: skip
    assert check(model, frame, load_orthogonium, tmp_path) < 2  # unit rows: at most the root of 4


@pytest.mark.parametrize("options", [{}, {"eps_bjorck": None}], ids=["bjorck", "spectral"])
def test_a_network_of_torchlip(options, tmp_path):
    theirs = pytest.importorskip("deel.torchlip", reason="deel-torchlip is not installed")
    model = theirs.Sequential(
        theirs.SpectralConv2d(3, 8, 3, padding=1, padding_mode="circular", **options), theirs.GroupSort2(),
        theirs.SpectralConv2d(8, 8, 4, stride=2, **options), theirs.GroupSort(4), nn.Flatten(),
        theirs.SpectralLinear(392, 16, **options), theirs.FullSort(), theirs.FrobeniusLinear(16, 4),
    )  # fmt: skip
    frame = nn.Sequential(
        conv(3, 8, 3, padding=1), GroupSort(2), conv(8, 8, 4, 2), GroupSort(4), nn.Flatten(), nn.Linear(392, 16),
        FullSort(), nn.Linear(16, 4),
    )  # fmt: skip
    assert check(model, frame, read_torchlip, tmp_path) < 2.1


def test_a_network_of_torchlip_with_factors(tmp_path):
    theirs = pytest.importorskip("deel.torchlip", reason="deel-torchlip is not installed")
    model = theirs.Sequential(
        theirs.SpectralConv2d(3, 8, 3, padding=1, padding_mode="circular", k_coef_lip=2.0), theirs.GroupSort2(),
        nn.Flatten(), theirs.SpectralLinear(2048, 6, k_coef_lip=0.5), theirs.GroupSort2(),
        theirs.FrobeniusLinear(6, 4, disjoint_neurons=False), k_coef_lip=16.0,
    )  # fmt: skip
    frame = nn.Sequential(
        conv(3, 8, 3, padding=1), GroupSort(2), Scale(16 ** (1 / 5)), nn.Flatten(), nn.Linear(2048, 6), GroupSort(2),
        Scale(16 ** (1 / 5)), nn.Linear(6, 4),
    )  # fmt: skip
    read = partial(load_torchlip, k_coef_lip=(2.0, 0.5, 1.0), disjoint_neurons=False)
    check(model, frame, read, tmp_path)
