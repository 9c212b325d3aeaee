"""Graphs other than chains: one law for each way of joining, two-sided, and the refusal of what is not known."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lconvnet import bake, layers
from lconvnet.bounds import Graph, Node, fingerprint, lipschitz_bound, register_operation, trace
from lconvnet.bounds.graph_builder import SAME, _apart
from lconvnet.bounds.linear import margin_bounds
from lconvnet.bounds.operations import BUILT_IN, CALLS, READ_ONLY, REGISTERED
from lconvnet.bounds.propagation import Groups
from lconvnet.ops.rounding import root_up
from tests.bounds.networks import Branches, Normalise
from tests.bounds.test_hunt import jacobian_norm

SHAPE = (4, 4, 4)


class Function(nn.Module):
    """A forward pass given by a function of the image and of submodules and buffers."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, torch.Tensor):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


def network(function, **parts):
    return Function(function, **parts).eval().requires_grad_(False)


def turn(channels=4, gain=1.0):
    """A pointwise convolution that is an isometry times a gain."""
    conv = nn.Conv2d(channels, channels, 1, dtype=torch.float64)
    nn.init.orthogonal_(conv.weight, gain=gain)
    return conv


def upper(net, shape=SHAPE, **options):
    return lipschitz_bound(net, input_shape=shape, diagnose=False, **options).upper


def seen(net, shape=SHAPE):
    return max(jacobian_norm(net.double(), torch.randn(1, *shape, dtype=torch.float64)) for _ in range(3))


def check(net, expected, tight=None, shape=SHAPE):
    """truth <= bound = expected, and, where the bound is said to be tight, expected = truth."""
    truth, bound = seen(net, shape), upper(net, shape)
    assert bound == pytest.approx(expected, rel=1e-12)
    assert truth <= bound * (1 + 1e-12)
    if tight is not None:
        assert truth == pytest.approx(expected, rel=tight)


def identity_twice(gain):
    """A 1 x 1 kernel that multiplies, so that sums of branches attain their bound."""
    conv = nn.Conv2d(4, 4, 1, bias=False, dtype=torch.float64)
    conv.weight.data = gain * torch.eye(4, dtype=torch.float64)[:, :, None, None]
    return conv


@pytest.mark.parametrize(
    ("form", "gains", "expected"),
    [
        ("additive", [2.0], 3.0),
        ("halved", [2.0], 1.5),
        ("convex", [2.0], 0.3 + 1.4),
        ("l2", [2.0], math.sqrt(5 / 2)),
        ("difference", [2.0, -1.0], 3.0),
        ("concatenated", [2.0, 3.0], math.sqrt(13)),
        ("dense", [2.0, 3.0], math.sqrt(14)),
        ("twice", [2.0], 4.0),
        ("halves_added", [], math.sqrt(5)),
        ("spread", [], 2.0),
        ("centered", [], 1.0),
        ("overlapping", [], math.sqrt(2)),
        ("cropped", [], 1.0),
        ("turned", [], 1.0),
    ],
)
def test_each_way_of_joining(form, gains, expected):
    check(Branches(form, *map(identity_twice, gains)).eval(), expected, 1e-9)


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
@pytest.mark.parametrize("form", ["additive", "halved", "convex", "reused", "difference"])
def test_affine_blocks_are_bounded_as_one_map(form, padding_mode):
    """x + K x by the norm of delta + K: K = -delta / 2 + noise, whose sum of norms would be far above."""
    convs = [nn.Conv2d(3, 3, 3, padding=1, padding_mode=padding_mode, dtype=torch.float64) for _ in range(2)]
    for conv in convs:
        conv.weight.data *= 0.3
        conv.weight.data[:, :, 1, 1] -= torch.eye(3, dtype=torch.float64) / 2
    net = Branches(form, *convs[: 2 if form == "difference" else 1]).eval()
    truth, bound = seen(net, (3, 8, 8)), upper(net, (3, 8, 8))
    # Exact on the torus (rank 3: 1.3e-4); on 8 x 8 pixels of zero padding the truth is up to 9 % below.
    assert truth <= bound * (1 + 1e-12) + 1e-12
    assert bound <= truth * (1.0002 if padding_mode == "circular" else 1.15) + 1e-12


def test_taps_of_different_reach_are_aligned():
    """3 x 3, 1 x 5 and even kernels with their own centres, groups and dilation, summed over one image."""

    def forward(self, x):
        return self.a(x) - self.b(x) + self.c(x) / 2 - x

    def conv(k, padding, **options):
        return nn.Conv2d(2, 2, k, padding=padding, padding_mode="circular", dtype=torch.float64, **options)

    even = nn.Sequential(nn.CircularPad2d((1, 0, 0, 1)), nn.Conv2d(2, 2, 2, dtype=torch.float64))
    net = network(forward, a=conv(3, 2, dilation=2, groups=2), b=conv((1, 5), (0, 2)), c=even)
    truth, bound = seen(net, (2, 6, 5)), upper(net, (2, 6, 5))
    assert truth * (1 - 1e-12) <= bound <= truth * 1.0002


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # an even kernel: torch warns about a copy
@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
@pytest.mark.parametrize(
    ("k", "dilation"), [(2, 1), (2, 3), pytest.param(4, 1, marks=pytest.mark.slow), (3, 2), ((2, 5), 1)]
)
def test_same_padding_has_its_centre_where_torch_has_it(k, dilation, padding_mode):
    """x - K x with one tap where the pixel itself is read: nothing is left of it."""
    conv = nn.Conv2d(1, 1, k, padding="same", dilation=dilation, padding_mode=padding_mode, bias=False)
    image = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    image[..., 4, 4] = 1.0
    conv = conv.double().requires_grad_(False)
    for tap in range(conv.weight.numel()):
        conv.weight.zero_().view(-1)[tap] = 1.0
        left = float((image - conv(image)).norm())  # 0 at the centre, else two pixels
        bound = upper(Branches("difference", nn.Identity(), conv).eval(), (1, 9, 9))
        assert bound < 1e-12 if left == 0 else left <= bound <= 2 * (1 + 1e-9)


def test_layers_without_an_activation_between_are_one():
    """Two dense layers, a pointwise convolution behind another and a batch norm behind it: the joint norm."""
    dense = nn.Sequential(nn.Linear(4, 6), layers.Scale(-2.0), nn.Linear(6, 3)).eval()
    norm = nn.BatchNorm2d(3)
    norm.running_var.data = torch.tensor([0.01, 1.0, 4.0])
    convs = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 3, 3, padding=1, padding_mode="circular"), norm).eval()
    for net, shape in ((dense, (4,)), (convs, (3, 6, 6))):
        truth, bound = seen(net.requires_grad_(False), shape), upper(net, shape)
        assert truth * (1 - 1e-12) <= bound <= truth * 1.0002
        separate = math.prod(layer.upper for layer in lipschitz_bound(net, input_shape=shape).layers)
        assert separate > 1.05 * bound


def test_a_joint_map_out_of_range_leaves_the_terms():
    """1e200 twice is no float; the product of the bounds is infinite as well, but no error."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).double().requires_grad_(False)
    for layer in net:
        layer.weight.fill_(1e200)
    assert upper(net, (2,)) == math.inf


def dense(value):
    """Multiplication by a float64."""
    layer = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    layer.weight.data.fill_(value)
    return layer


def normed(weight, variance):
    norm = nn.BatchNorm1d(1, dtype=torch.float64)
    norm.weight.data.fill_(weight)
    norm.running_var.fill_(variance)
    return norm


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(dense(1e-200), dense(1e-200), dense(1e308), nn.ReLU(), dense(1e100)),
        nn.Sequential(dense(1e-200), dense(1e-200), dense(1e308), dense(1e100)),
        nn.Sequential(dense(1e-200), layers.Scale(1e-200), dense(1e308), dense(1e100)),
        nn.Sequential(dense(1e-200), normed(1e-200, 1.0), dense(1e308), dense(1e101)),
        nn.Sequential(normed(5e-324, 5.0), dense(1e308), nn.ReLU(), dense(1e25)),
        nn.Sequential(dense(1.0), normed(5e-324, 5.0), dense(1e308), dense(1e25)),
        network(lambda self, x: self.b(self.a(x) / 1e200 * 1e-200) * 1e100, a=dense(1.0), b=dense(1e308)),
    ],
)
def test_what_underflows_on_the_way_is_no_zero(net):
    """All of these multiply by 1e8 or more in real arithmetic, and by 0 in float64."""
    assert 1e8 <= upper(net.eval(), (1,)) <= math.inf


def test_what_does_not_fold_is_bounded_term_by_term():
    """Zero beside circular padding, another size, an activation between: sums and products, and sound. The first two
    kernels are the same, so all that their difference sees is the border."""
    zeros, torus = (nn.Conv2d(2, 2, 3, padding=1, padding_mode=mode) for mode in ("zeros", "circular"))
    torus.weight.data = zeros.weight.data
    for net in (
        Branches("difference", zeros, torus),
        Branches("difference", nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3)),
        Branches("additive", nn.Sequential(torus, nn.ReLU())),
        nn.Sequential(zeros, torus),
    ):
        net = net.eval().double()
        assert seen(net, (2, 6, 6)) <= upper(net, (2, 6, 6)) * (1 + 1e-12)


@pytest.mark.parametrize(("form", "channels"), [("split", 2), ("sliced", 2)])
@pytest.mark.parametrize("gain", [0.5, 1.0, 3.0])
def test_branches_of_disjoint_parts_take_the_maximum(form, channels, gain):
    check(Branches(form, turn(channels, gain)).eval(), max(1.0, gain), 1e-9)


def test_nested_blocks_multiply():
    """Isometric blocks stay isometric, through splits of splits and reuse."""
    inner = Branches("split", turn(2)).eval()
    net = nn.Sequential(Branches("sliced", turn(2)), layers.MaxMin(), Branches("twice", inner), turn()).eval()
    check(net, 1.0, 1e-9)


def test_a_tensor_beside_its_own_pieces():
    """Pieces share no atom with what they are cut from, nor with what that was made of."""

    def beside(self, x):
        first, second = x.chunk(2, dim=1)
        return torch.cat([x, second, first / 100], dim=1)

    def behind(self, x):
        y = self.f(torch.cat([2 * x, 3 * x], dim=1).relu()[:, :4])  # several rows, then one
        first, second = y.chunk(2, dim=1)
        return torch.cat([y, first, second], dim=1)

    check(network(beside), math.sqrt(2), 1e-9)
    check(network(behind, f=turn(4, 0.1)), 0.1 * math.sqrt(13) * math.sqrt(2))


def test_three_pieces_of_two_branches():
    """(a, f(b), c) with |f| = 3 and (a, b, g(c)) with |g| = 5, one behind the other and added."""

    def forward(self, x):
        a, b, c = torch.split(x, [1, 2, 1], dim=1)
        y = torch.cat([a, self.f(b), c], dim=1)
        d, e, h = y[:, :1], y[:, 1:3], y[:, 3:]
        return torch.cat([d, e, self.g(h)], dim=1)

    check(network(forward, f=turn(2, 3.0), g=turn(1, 5.0)), 15.0)


def test_input_normalisation_divides_by_the_smallest_deviation():
    """1 / min(std), not 1 / max(std)."""
    net = Normalise(4).eval().requires_grad_(False)
    net.std.copy_(torch.tensor([0.5, 0.25, 1.0, 2.0]).reshape(4, 1, 1))
    net.gain.copy_(torch.tensor([1.0, 1.0, -2.0, 2.0]).reshape(4, 1, 1))
    check(net, 4.0, 1e-9)  # not 1 / 0.25 times the gain of another channel
    net.gain.fill_(1.0)
    check(net, 4.0, 1e-9)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d])
def test_batch_norm_in_eval(kind):
    norm = kind(4).eval().requires_grad_(False)
    norm.running_var.copy_(torch.tensor([4.0, 0.01, 1.0, 9.0]))
    norm.weight.copy_(torch.tensor([1.0, -0.3, 2.0, 1.0]))
    shape = SHAPE if kind is nn.BatchNorm2d else (4, 5)
    check(norm, 0.3 / math.sqrt(float(torch.tensor(0.01)) + 1e-5) * (float(torch.tensor(0.3)) / 0.3), 1e-9, shape)
    with pytest.raises(ValueError, match=r"statistics of the batch.*network.eval\(\)"):
        upper(norm.train(), shape)
    with pytest.raises(ValueError, match="statistics of the batch"):
        upper(kind(4, track_running_stats=False).eval(), shape)
    norm.eval().running_var[0] = -1.0
    with pytest.raises(ValueError, match="variance"):
        upper(norm, shape)


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (nn.AvgPool2d(3, 1, 1), 1.0),
        (nn.AvgPool2d(3, 2, 1), 5 / 9),
        (nn.AvgPool2d(2, 3), 1 / 2),
        (nn.AvgPool2d((1, 2), (1, 1)), 1.0),
        (nn.AvgPool2d(2, 1, divisor_override=2), 2.0),
    ],
)
def test_overlapping_averages(pool, expected):
    """The supremum over all sizes, which 16 x 16 pixels nearly reach: 1.7 % from each axis of the border."""
    shape = (1, 16, 16)
    truth = seen(pool, shape)
    assert upper(pool, shape) == pytest.approx(expected, rel=1e-12)
    assert expected * 0.96 < truth <= expected * (1 + 1e-12)


@pytest.mark.parametrize(
    ("pool", "expected"),
    [(nn.LPPool2d(2, 3, 1), 3.0), (nn.LPPool2d(2, 3, 2), 2.0), (nn.LPPool2d(2, (1, 2), (1, 1)), math.sqrt(2))],
)
def test_overlapping_l2_pooling(pool, expected):
    assert upper(pool, (1, 9, 9)) == pytest.approx(expected, rel=1e-12)
    points = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    points[..., 4, 4] = 1.0  # one pixel alone moves every window that it is in
    moved = (pool(1.5 * points) - pool(points)).norm() / 0.5
    assert float(moved) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", [nn.ReflectionPad2d, nn.ReplicationPad2d])
@pytest.mark.parametrize("pad", [(1, 1, 1, 1), (2, 0, 1, 1), (0, 2, 2, 2)])
@pytest.mark.parametrize("size", [(3, 3), (5, 4)])
def test_repeated_pixels_multiply(kind, pad, size):
    """The root of the largest number of copies, an axis at a time."""
    check(kind(pad), seen(kind(pad), (1, *size)), 1e-12, (1, *size))


def test_the_copies_of_a_reflected_pixel():
    assert upper(nn.ReflectionPad2d((1, 1, 0, 0)), (1, 5, 5)) == root_up(2)
    assert upper(nn.ReflectionPad2d((2, 2, 0, 0)), (1, 5, 3)) == root_up(3)  # the middle one, on both sides
    assert upper(nn.ReplicationPad2d((2, 0, 0, 0)), (1, 5, 5)) == root_up(3)


@pytest.mark.parametrize("k", [1, pytest.param(2, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("stride", [1, pytest.param(2, marks=pytest.mark.slow), (1, 2)])
@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"dilation": 2}, {"padding": 1}], ids=str)
def test_transposed_convolutions_are_adjoints(k, stride, options):
    """Bounded as the convolution with the same kernel; a finite image reaches less."""
    options = {**options, "padding": min(options.get("padding", 0), k - 1)}
    conv = nn.ConvTranspose2d(2, 4, k, stride, **options).requires_grad_(False)
    truth, known, bound = seen(conv, (2, 6, 6)), upper(conv, (2, 6, 6)), lipschitz_bound(conv).upper
    assert truth <= known * (1 + 1e-12)
    assert known <= bound * 1.0002  # Gram's truncation differs
    assert bound < 1.5 * truth
    groups = conv.weight.double().chunk(conv.groups)
    plain = [nn.Conv2d(len(g[0]), len(g), k, stride, **{**options, "groups": 1}) for g in groups]
    for one, weight in zip(plain, groups, strict=True):
        one.weight.data = weight
    assert bound == pytest.approx(max(lipschitz_bound(one).upper for one in plain), rel=1e-12)


def test_output_padding_and_spectrum_of_transposed_convolutions():
    conv = nn.ConvTranspose2d(1, 1, 3, 2, output_padding=1, bias=False)
    assert seen(conv, (1, 5, 5)) <= upper(conv, (1, 5, 5))
    with pytest.raises(ValueError, match="no exact spectrum"):
        upper(conv, (1, 5, 5), method="spectrum")


def test_broadcasting_repeats():
    """A row that is added to all rows moves them all: sqrt(4)."""
    check(network(lambda self, x: x[:, :, :1] + x[:, :, 1:]), math.sqrt(3 + 1), None, (1, 4, 3))
    check(network(lambda self, x: x.mean(dim=2, keepdim=True) * self.c, c=torch.ones(4, 1)), 1.0, 1e-9, (1, 4, 3))
    check(network(lambda self, x: self.c + x[:, :, :1], c=torch.ones(4, 1)), 2.0, 1e-9, (1, 4, 3))


def test_constants_of_any_kind():
    check(network(lambda self, x: 3 - 2 * x), 2.0, 1e-9)
    check(network(lambda self, x: (x - 1) / 4 - self.b, b=torch.randn(4, 1, 1)), 0.25, 1e-9)
    check(network(lambda self, x: -x.mul(self.g).add(1).sub(0.5).div(2), g=torch.tensor(3.0)), 1.5, 1e-9)


def test_functions_are_read_as_modules():
    def forward(self, x):
        x = F.relu(F.max_pool2d(x, 2)).abs()
        return torch.flatten(F.dropout(F.lp_pool2d(x, 2, 2), training=self.training), 1)

    found = trace(network(forward), SHAPE).graph
    assert [node.operation for node in found.nodes[1:]] == ["MaxPool2d", "ReLU", "Abs", "LPPool2d", "Flatten"]
    check(network(forward), 1.0)
    check(network(lambda self, x: F.adaptive_avg_pool2d(F.avg_pool2d(x, 2), 1).flatten(1)), 0.25, 1e-9)
    check(network(lambda self, x: F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2).relu()), 1.0, 1e-9)
    check(network(lambda self, x: abs(x - 1)), 1.0, 1e-9)


def test_every_function_is_one_that_torch_has():
    for target in (*CALLS, *READ_ONLY):
        assert callable(target) or hasattr(torch.Tensor, target)
    assert len({operation.name for operation in BUILT_IN}) == len(BUILT_IN)
    assert len(CALLS) == sum(len(operation.calls) for operation in BUILT_IN)


def test_reshapes_keep_examples_apart():
    for forward in (
        lambda self, x: x.view(x.size(0), -1),
        lambda self, x: x.reshape(x.shape[0], x.shape[1], -1),
        lambda self, x: torch.reshape(x, (-1, 64)),
        lambda self, x: x.reshape((x.shape[0], x.shape[1] // 2, 2 * x.shape[2] * x.shape[3])),
    ):
        check(network(forward), 1.0, 1e-9)
    for forward in (
        lambda self, x: x.view(-1, 32),
        lambda self, x: x.reshape(2, 64),
        lambda self, x: torch.reshape(x, (x.shape[1], -1)),
    ):
        with pytest.raises(ValueError, match=r"'(view|reshape)'.*(mix the examples|cannot take)"):
            upper(network(forward))


REFUSED = [
    (
        lambda self, x: torch.sigmoid(x),
        r"function 'sigmoid', called by network module '' \(Function\), has no .*register",
    ),
    (lambda self, x: x * x, "multiplies two tensors"),
    (lambda self, x: x / x.mean(dim=1, keepdim=True), "divides by a tensor"),
    (lambda self, x: 1 / x, "divides|cannot take"),
    (lambda self, x: x @ x.transpose(2, 3), "'matmul'.*no Lipschitz rule"),
    (lambda self, x: torch.matmul(self.w, x), "'matmul'"),
    (lambda self, x: F.linear(x, self.w), "'linear'"),
    (lambda self, x: x[:1], "part of the batch"),
    (lambda self, x: x[0], "part of the batch"),
    (lambda self, x: x[:, [0, 0]], r"indexed by \[0, 0\]"),
    (lambda self, x: x[:, None], "indexed by None"),
    (lambda self, x: x.mean(), "'mean'.*known is only .*dim"),
    (lambda self, x: x.mean(dim=0), "examples of a batch"),
    (lambda self, x: x.mean(dim=-4, keepdim=True), "examples of a batch"),
    (lambda self, x: torch.cat([x, x]), "examples of a batch"),
    (lambda self, x: x.chunk(2)[0], "examples of a batch"),
    (lambda self, x: x.chunk(x.shape[0], 1)[0].mean(1), "'chunk'.*batch size as another dimension"),
    (lambda self, x: x.split(x.shape[0], 1)[0].mean(1), "'split'.*batch size as another dimension"),
    (lambda self, x: x.split([x.shape[0], 2], 1)[0].mean(1), "'split'.*batch size as another dimension"),
    (lambda self, x: x.view(x.shape[0], x.shape[0], -1).mean(1), "'view'.*batch size as another dimension"),
    (lambda self, x: x.reshape(-1, x.size(0), 32).mean(1), "'reshape'.*batch size as another dimension"),
    (lambda self, x: x.permute(1, 0, 2, 3), "moves the batch"),
    (lambda self, x: x.transpose(0, 1), "examples of a batch"),
    (lambda self, x: torch.cat([x, self.c], 1), "joins a tensor with a constant"),
    (lambda self, x: x + self.c, "reaches into the batch"),
    (lambda self, x: x.flatten(1) + x, "cannot take|different ranks"),
    (lambda self, x: x.mean(dim=(1, 2)) + x, "different ranks|cannot take"),
    (lambda self, x: torch.add(x, x, alpha=2), "alpha=2"),
    (lambda self, x: torch.sub(x, x, alpha=2), "alpha=2"),
    (lambda self, x: torch.div(x, 2, rounding_mode="floor"), "'div'.*known is only .input, other."),
    (lambda self, x: x * float("inf"), "operand inf"),
    (lambda self, x: x * 10**400, "'mul'.*cannot take these arguments"),
    (lambda self, x: x * x.shape[0], "operand"),
    (lambda self, x: x * torch.ones(3)[0], "neither parameter nor buffer"),
    (lambda self, x: x.data, "reads .data of a tensor"),
    (lambda self, x: x.detach(), "'detach'"),
    (lambda self, x: x.half(), "'half'"),
    (lambda self, x: torch.flatten(x), "start_dim=0"),
    (lambda self, x: F.max_pool2d(x, 2, 1), "overlap"),
    (lambda self, x: F.dropout(x), "training mode"),
    (lambda self, x: F.pad(x, (1, 1), mode="reflect"), "'pad'.*no Lipschitz rule"),
    (lambda self, x: x if x.sum() > 0 else -x, "cannot be traced by torch.fx.*register_operation"),
    (lambda self, x: nn.Linear(4, 4)(x), "cannot be traced"),
    (lambda self, x: (x, x), "return one"),
    (lambda self, x: self.w, "return one"),
    (lambda self, x: torch.randn(4) + x, "cannot be traced|neither|register"),
    (lambda self, x: x.add_(1), "'add_'"),
]


@pytest.mark.parametrize(("forward", "message"), REFUSED)
def test_what_is_not_known_is_refused(forward, message):
    with pytest.raises(ValueError, match=message):
        upper(network(forward, w=torch.eye(4), c=torch.zeros(2, 4, 4, 4)))


def test_changes_in_place_are_refused():
    """torch.fx records x += y as x = x + y, which other names of the tensor do not see: this one returns 3 x."""

    def tripled(self, x):
        y = x
        y *= 3
        return x

    def assigned(self, x):
        y = x.abs()
        y[:, 0] = 0
        return y

    assert torch.equal(network(tripled)(torch.ones(1, 2)), torch.full((1, 2), 3.0))
    for forward, message in ((tripled, "changed in place"), (assigned, "cannot be traced.*assignment")):
        with pytest.raises(ValueError, match=message):
            upper(network(forward))


def test_a_forward_pass_that_was_not_recorded_is_refused():
    """It depends on what no module holds."""
    calls = []

    def forward(self, x):
        calls.append(x)
        return x * len(calls)

    with pytest.raises(ValueError, match="something else than the calls that torch.fx records"):
        upper(network(forward))


@pytest.mark.parametrize(
    ("dtype", "growth", "gain"),
    [(torch.float32, 1e-3, 1.0), (torch.float32, 1e-3, 1e30), (torch.float64, 1e-7, 1.0), (torch.float64, 1e-7, 1e300)],
)
def test_a_small_drift_is_seen_too(dtype, growth, gain):
    """Other than by rounding, and beside a result that overflows."""
    calls = []

    def forward(self, x):
        calls.append(x)
        return torch.cat([x * (1 + growth * len(calls)), self.f(x) * self.gain], dim=1)

    net = network(forward, f=layers.Scale(gain), gain=torch.full((1, 1), gain, dtype=dtype))
    with pytest.raises(ValueError, match="something else than the calls that torch.fx records"):
        upper(net, (2,))


@pytest.mark.parametrize("size", [0.0, 1.0])
def test_two_recordings_must_be_the_same(size):
    """A number that drifts by less than rounding can in one call, as by a counter that no attribute shows."""
    calls = []

    def forward(self, x):
        calls.append(x)
        return x * (1 + 1e-15 * len(calls)) + size

    with pytest.raises(ValueError, match="two calls need not be the same function"):
        upper(network(forward), (2,))


def test_a_module_that_changes_its_input_is_refused():
    class Doubling(nn.Module):
        def forward(self, x):
            x.mul_(2)
            return x.clone()

    register_operation(Doubling, rule=lambda call: 2.0)
    try:
        with pytest.raises(ValueError, match=r"'f' \(Doubling\) changes its input in place"):
            upper(network(lambda self, x: self.f(x) - x, f=Doubling()))
    finally:
        del REGISTERED[Doubling]


def test_networks_with_a_memory_are_refused():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 1
            self.register_buffer("seen", torch.ones(()))

    class Numbers(Counter):
        def forward(self, x):
            self.calls += 1
            return x * self.calls

    class Buffers(Counter):
        def forward(self, x):
            self.seen.add_(1)
            return x * self.seen

    for kind in (Numbers, Buffers):
        with pytest.raises(ValueError, match="changes its own tensors or attributes|something else"):
            upper(kind().eval())


def test_replaced_methods_are_refused():
    conv = nn.Conv2d(4, 4, 1)
    conv._conv_forward = lambda x, weight, bias: 9 * x
    with pytest.raises(ValueError, match=r"'0' \(Conv2d\) has a forward hook or a replaced _conv_forward"):
        upper(nn.Sequential(conv))


def test_in_place_modules_are_for_chains():
    """x + relu_(x) is 2 relu(x), since the first operand is overwritten."""
    rectify = nn.ReLU(inplace=True)
    assert upper(nn.Sequential(turn(), rectify)) == pytest.approx(1)
    assert lipschitz_bound(nn.Sequential(rectify, turn()), input_shape=SHAPE).lower == pytest.approx(1)

    def overwritten(self, x):
        y = x * 1
        self.f(y)
        return y

    for forward in (lambda self, x: x + self.f(x), lambda self, x: x.flatten(1) + self.f(x.flatten(1)), overwritten):
        with pytest.raises(ValueError, match=r"'f' \(ReLU\) works in place.*inplace=False"):
            upper(network(forward, f=rectify))


def test_modules_that_reach_into_the_batch_are_refused():
    """Zero padding of vectors, by two axes, adds examples."""
    assert nn.ZeroPad2d(1)(torch.zeros(2, 4)).shape == (4, 6)
    for padding in (1, (0, 0, -1, 1), (0, 0, 1, -1)):
        with pytest.raises(ValueError, match=r"'0' \(ZeroPad2d\) needs images of shape"):
            upper(nn.Sequential(nn.ZeroPad2d(padding)), (4,))


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        (lambda x: x.roll(1, 0), "mixes the examples of a batch"),
        (lambda x: x - x.mean(0), "mixes the examples of a batch"),
        (lambda x: x.cumsum(0), "mixes the examples of a batch"),
        (lambda x: torch.cat([x, x]), "returns something else than one tensor for each example"),
    ],
)
def test_a_module_of_ones_own_that_mixes_examples_is_refused(mix, message):
    class Mixing(nn.Module):
        def forward(self, x):
            return mix(x)

    register_operation(Mixing, rule=lambda call: 9.0)
    try:
        with pytest.raises(ValueError, match=rf"'0' \(Mixing\) {message}"):
            upper(nn.Sequential(Mixing()))
    finally:
        del REGISTERED[Mixing]


def test_empty_tensors_are_refused():
    for forward in (lambda self, x: x[:, 4:] * 2, lambda self, x: x[:, :0], lambda self, x: self.f(x)):
        with pytest.raises(ValueError, match="with no entries"):
            upper(network(forward, f=nn.ZeroPad2d((0, 0, 0, -4))))


def test_global_hooks_are_refused():
    hooks = nn.modules.module
    for register in (hooks.register_module_forward_hook, hooks.register_module_forward_pre_hook):
        hook = register(lambda *_: None)
        try:
            with pytest.raises(ValueError, match="has a global forward hook"):
                upper(nn.Sequential(nn.ReLU()))
        finally:
            hook.remove()
    assert upper(nn.Sequential(nn.ReLU())) == 1


def test_a_weight_that_is_a_plain_tensor_is_refused():
    """Nothing would notice that it changes."""
    linear = nn.Linear(2, 2)
    weight = linear.weight.detach()
    del linear.weight
    linear.weight = weight
    with pytest.raises(ValueError, match=r"'0' \(Linear\) has a weight that is neither parameter nor buffer"):
        upper(nn.Sequential(linear), (2,))


class Tripling(torch.Tensor):
    """A tensor that has its own product."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs)
        return 3 * result.as_subclass(torch.Tensor) if function is F.linear else result


@pytest.mark.parametrize("weight", [torch.eye(2).as_subclass(Tripling), torch.eye(2).to_sparse()])
def test_tensors_of_another_kind_are_refused(weight):
    linear = nn.Linear(2, 2)
    linear.weight = nn.Parameter(weight)
    with pytest.raises(ValueError, match=r"tensor '0.weight' is (a|of).*plain"):
        upper(nn.Sequential(linear), (2,))
    with pytest.raises(ValueError, match=r"tensor '0.weight' is (a|of).*plain"):
        margin_bounds(nn.Sequential(linear), torch.rand(1, 2), torch.tensor([0]), 0.1)


def test_compiled_modules_are_refused():
    """Calls go to whatever was compiled."""
    linear = nn.Linear(2, 2)
    linear._compiled_call_impl = lambda x: 3 * x
    for name, net in (("", linear), ("0", nn.Sequential(linear))):
        with pytest.raises(ValueError, match=rf"network module '{name}' \(Linear\) is compiled"):
            upper(net, (2,))
    with pytest.raises(ValueError, match=r"'0' \(Linear\) is compiled"):
        margin_bounds(nn.Sequential(linear), torch.rand(1, 2), torch.tensor([0]), 0.1)


def test_names_say_where():
    block = Branches("additive", nn.Conv2d(4, 4, 1)).eval()
    found = trace(nn.Sequential(block, block), SHAPE).graph
    assert [node.name for node in found.nodes] == ["input", "0.branches.0", "0/add", "0.branches.0#2", "0/add#2"]
    assert found["0/add"].inputs == ("input", "0.branches.0")
    assert found["0/add"].module == "0"
    assert found["0.branches.0#2"].tensors == {"weight": "0.branches.0.weight", "bias": "0.branches.0.bias"}
    with pytest.raises(ValueError, match=r"'sigmoid', called by network module '0.1' \(Function\)"):
        upper(nn.Sequential(nn.Sequential(turn(), network(lambda self, x: torch.sigmoid(x)))))


def test_graphs_are_json():
    net = nn.Sequential(nn.CircularPad2d((1, 0, 1, 0)), nn.Conv2d(4, 2, 2), nn.Flatten(), nn.Linear(32, 2))
    found = trace(net, SHAPE).graph
    assert found.is_chain
    assert Graph.from_json(found.to_json()) == found
    first = json.loads(found.to_json())["nodes"][1]
    assert first["options"]["circular_padding"] == [1, 0, 1, 0]
    assert (first["name"], first["operation"], first["shape"]) == ("1", "Conv2d", [2, 4, 4])
    assert not trace(Branches("additive", turn()).eval(), SHAPE).graph.is_chain


def test_chains_need_no_size_and_functions_do():
    assert lipschitz_bound(nn.Sequential(turn(), nn.ReLU())).upper == pytest.approx(1)
    with pytest.raises(ValueError, match=r"'add'.*pass input_shape"):
        lipschitz_bound(Branches("additive", turn()).eval())


def test_unread_calls_are_checked_but_do_not_count():
    def forward(self, x):
        self.f(x)
        return x

    found = lipschitz_bound(network(forward, f=turn(4, 7.0)), input_shape=SHAPE)
    assert (found.upper, found.layers) == (1.0, ())
    with pytest.raises(ValueError, match="Sigmoid"):
        upper(network(forward, f=nn.Sigmoid()))


def test_training_mode_is_refused_where_a_forward_pass_was_read():
    class Moody(nn.Module):
        def forward(self, x):
            return 2 * x if self.training else x

    net = nn.Sequential(Moody())
    with pytest.raises(ValueError, match=r"'0' \(Moody\) is in training mode"):
        upper(net)
    assert upper(net.eval()) == 1


def test_a_rule_of_ones_own():
    class Sine(nn.Module):
        def forward(self, x):
            return torch.sin(x)

    with pytest.raises(ValueError, match="'sin'.*register_operation"):
        upper(nn.Sequential(Sine()).eval())
    register_operation(Sine, rule=lambda call: 1.0)
    try:
        assert upper(nn.Sequential(Sine(), layers.Scale(2.0))) == 2
        assert trace(Sine(), SHAPE).graph.nodes[1].operation.endswith(".Sine")
        with pytest.raises(ValueError, match="kind=Sine has a rule already"):
            register_operation(Sine, rule=lambda call: 1.0)
    finally:
        del REGISTERED[Sine]
    for kind in (nn.Sequential, Sine(), int):
        with pytest.raises(ValueError, match="must be a class of modules"):
            register_operation(kind, rule=lambda call: 1.0)


def test_baked_blocks_of_constrained_layers():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Sequential(layers.BCOPConv2d(4, 4, 3), layers.MaxMin())

        def forward(self, x):
            return 0.5 * (x + self.f(x))

    net = bake(nn.Sequential(Block(), nn.Flatten(), layers.OrthogonalLinear(64, 3)))
    assert 1 - 1e-6 < upper(net) < 1 + 1e-6


def test_fingerprints_see_plain_attributes():
    """A number that only a forward pass reads; it is printed nowhere."""

    class Times(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, x):
            return self.factor * x

    assert len({fingerprint(Times(2.0)), fingerprint(Times(3.0)), fingerprint(Times((2.0,)))}) == 3
    assert fingerprint(Times(2.0)) == fingerprint(Times(2.0).train())


def test_reach_is_the_bound_up_to_there():
    found = lipschitz_bound(Branches("dense", identity_twice(2.0), identity_twice(3.0)).eval(), input_shape=SHAPE)
    reach = {layer.name: layer.reach for layer in found.layers}
    assert reach["branches.0"] == pytest.approx(2, rel=1e-12)
    assert reach["concatenate"] == pytest.approx(math.sqrt(5), rel=1e-12)
    assert reach["concatenate#2"] == found.upper == pytest.approx(math.sqrt(14), rel=1e-12)


def test_the_formula_is_never_below_the_worst_atoms():
    """|sum_g C_g a_g| for random atoms of the permitted lengths; equality for one group, and for rows that differ."""
    generator = np.random.default_rng(0)
    for trial in range(60):
        groups, count = Groups(), {0: 1, 1: 2, 2: 3}
        groups.lengths |= {1: 2.0, 2: 0.5}
        value = tuple(
            {
                (g, i): float(generator.integers(0, 4))
                for g in count
                for i in range(count[g])
                if generator.random() < 0.5
            }
            for _ in range(1 + trial % 4)
        )
        bound = groups.norm(value)
        for _ in range(5):
            atoms = {}
            for g, n in count.items():
                a = np.abs(generator.normal(size=n))
                atoms |= {(g, i): groups.lengths[g] * x / np.linalg.norm(a) for i, x in enumerate(a)}
            length = math.sqrt(sum(sum(c * atoms[atom] for atom, c in row.items()) ** 2 for row in value))
            assert length <= bound * (1 + 1e-12)
    assert Groups().norm(({(0, 0): 3.0}, {(0, 0): 4.0})) == 5
    two = Groups()
    two.lengths[1] = 2.0
    assert two.norm(({(0, 0): 3.0}, {(1, 0): 2.0})) == 5
    assert two.norm(({(0, 0): 3.0, (1, 0): 2.0},)) == 7
    assert two.norm(({(0, 0): math.inf}, {(1, 0): 2.0})) == math.inf


def test_nodes_are_frozen():
    with pytest.raises(AttributeError):
        Node("a", "ReLU").name = "b"


def test_float32_may_lie_further_apart_on_an_accelerator_only():
    """TensorFloat-32 rounds operands to 2^-11; float64 is never rounded to it."""
    assert _apart(torch.zeros(1, device="meta")) == SAME == 2**-7
    assert _apart(torch.zeros(1)) == torch.finfo(torch.float32).eps ** 0.5 < SAME / 20
    assert _apart(torch.zeros(1, device="meta", dtype=torch.float64)) == torch.finfo(torch.float64).eps ** 0.5
    assert _apart(torch.zeros(1, dtype=torch.bfloat16)) == SAME
    assert _apart(torch.zeros(1, dtype=torch.int64)) == 0
