"""Certificates: exact on networks that can be computed by hand, refused where nothing is proven."""

import dataclasses
import math
from copy import deepcopy
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lconvnet import bake, models
from lconvnet.bounds import Bound, lipschitz_bound, register_operation
from lconvnet.bounds.operations import REGISTERED
from lconvnet.certify import Certificates, certified_accuracy, certify
from lconvnet.layers import MaxMin, Scale


def linear(weight, bias=None):
    layer = nn.Linear(len(weight[0]), len(weight), bias is not None)
    layer.weight.data = torch.as_tensor(weight, dtype=torch.float32)
    if bias is not None:
        layer.bias.data = torch.as_tensor(bias, dtype=torch.float32)
    return layer.requires_grad_(False)


def test_linear_classifier_has_the_exact_distance_to_the_boundary():
    """|w_i - w_j| is the distance's own denominator, so the pairwise radius is exact."""
    W, b = torch.randn(4, 6), torch.randn(4)
    x = torch.rand(20, 6)
    found = certify(nn.Sequential(linear(W, b)), x)
    for n, z in enumerate(x.double() @ W.double().T + b.double()):
        i = int(z.argmax())
        exact = min(float((z[i] - z[j]) / (W[i].double() - W[j].double()).norm()) for j in range(4) if j != i)
        assert found.label[n] == i
        assert exact * (1 - 1e-12) < found.radius[n] <= exact


def test_radius_in_exact_rationals():
    """A network of dyadic weights, so that float64 is exact up to the radius: r |w_i - w_j| L <= m in
    rationals."""
    first, last = [[2, 0, 0], [0, 2, 0]], [[0.5, 0.25], [-0.25, 0.5], [1, -1]]
    network = nn.Sequential(linear(first), MaxMin(), linear(last, [0.125, 0, -0.5]))
    x = torch.tensor([[0.5, 0.25, 1.0], [0.125, 0.875, 0.0], [1.0, 1.0, 0.5]])
    found = certify(network, x)
    for n, image in enumerate(x.tolist()):
        a, b = (2 * Fraction(v) for v in image[:2])
        hidden = max(a, b), min(a, b)
        rows = [[Fraction(v) for v in row] for row in last]
        logits = [
            sum(w * h for w, h in zip(row, hidden, strict=True)) + Fraction(bias)
            for row, bias in zip(rows, [0.125, 0, -0.5], strict=True)
        ]
        i = max(range(3), key=lambda c: logits[c])
        exact = min(
            (logits[i] - logits[j]) ** 2 / (4 * sum((u - v) ** 2 for u, v in zip(rows[i], rows[j], strict=True)))
            for j in range(3)
            if j != i
        )
        radius = Fraction(float(found.radius[n]))
        assert found.label[n] == i
        assert exact * Fraction(99, 100) < radius**2 <= exact  # Gram on rank 2: 1e-4


def test_without_a_dense_end_the_radius_is_global():
    network = nn.Sequential(linear([[1, 0], [0, 1]]), Scale(2.0))
    found = certify(network, torch.tensor([[1.0, 0.25]]))
    assert found.margin.item() == 1.5
    assert found.radius.item() == pytest.approx(0.75 / math.sqrt(2), rel=1e-9)
    assert found.radius.item() <= 0.75 / math.sqrt(2)


def test_pairwise_is_used_where_it_is_larger():
    network = nn.Sequential(linear([[1, 0], [0.9, 0.1]]))
    image = torch.tensor([[1.0, 0.0]])
    whole = 0.1 / (math.sqrt(2) * float(np.linalg.norm([[1, 0], [0.9, 0.1]], 2)))
    assert certify(network, image).radius.item() > 5 * whole


def test_ties_and_non_finite_logits_certify_nothing():
    network = nn.Sequential(linear([[1, 0], [1, 0], [0, 1]]))
    assert certify(network, torch.tensor([[1.0, 0.0]])).radius.item() == 0
    infinite = nn.Sequential(linear([[1, 0], [0, 1]], [math.inf, 0]))
    assert certify(infinite, torch.tensor([[1.0, 0.0]])).radius.item() == 0
    unknown = nn.Sequential(linear([[1, 0], [0, 1]], [math.nan, 0]))
    found = certify(unknown, torch.tensor([[1.0, 0.0]]))
    assert found.radius.item() == 0
    assert certified_accuracy(found, found.label, 0.0) == 0


def test_forward_runs_in_float64_and_in_batches():
    network = bake(models.small_convnet(1, 8, 3))
    images = torch.rand(7, 1, 8, 8)
    whole, parts = certify(network, images), certify(network, images, batch_size=np.int64(2))
    torch.testing.assert_close(whole.margin, parts.margin, rtol=1e-12, atol=1e-14)
    assert whole.margin.dtype == whole.radius.dtype == torch.float64
    assert (whole.label.dtype, len(whole), whole.level) == (torch.int64, 7, "analytic")
    logits = network.double()(images.double()).topk(2).values
    torch.testing.assert_close(whole.margin, logits[:, 0] - logits[:, 1], rtol=1e-12, atol=1e-14)
    assert len(certify(network.float(), images[:0])) == 0


def test_accuracy_falls_with_eps_and_is_strict():
    labels = torch.tensor([0, 1, 2, 1])
    radius = torch.tensor([0.5, 0.25, 1.0, 2.0], dtype=torch.float64)
    found = Certificates(torch.tensor([0, 1, 2, 0]), radius, radius, "analytic", np.full(4, "certified"))
    values = [certified_accuracy(found, labels, eps) for eps in (0, 0.25, 0.3, 0.5, 0.75, 1, 3)]
    assert values == [0.75, 0.5, 0.5, 0.25, 0.25, 0.0, 0.0]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((1, 1, 8, 8), math.nan), "NaN"),
        (torch.full((1, 1, 8, 8), 2.0), r"\[0, 1\]"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), "uint8"),
        (torch.zeros(8), "shape"),
        (torch.zeros(1, 3, 8, 8), r"cannot take an input of shape \(3, 8, 8\)"),
        (torch.zeros(1, 1, 12, 12), r"cannot take an input of shape"),
    ],
)
def test_bad_images(images, message):
    with pytest.raises(ValueError, match=message):
        certify(bake(models.small_convnet(1, 8, 3)), images)


def test_bounds_that_do_not_certify_are_refused():
    network = nn.Sequential(linear([[1, 0], [0, 1]]))
    images, bound = torch.rand(2, 2), lipschitz_bound(network)
    for changes, message in (
        ({"level": "estimate"}, "bound.level='estimate' does not certify"),
        ({"level": "lower"}, "does not certify"),
        ({"upper": math.nan}, "bound.upper=nan"),
        ({"upper": -1.0}, "bound.upper=-1"),
        ({"fingerprint": "0" * 64}, r"compute it again with lipschitz_bound\(network\)"),
        ({"fingerprint": ""}, r"compute it again with lipschitz_bound\(network\)"),
        ({"input_shape": (3,)}, r"input_shape=\(3,\) does not cover images of shape \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            certify(network, images, bound=dataclasses.replace(bound, **changes))


def test_a_bound_of_other_weights_is_refused():
    """Stale after a change in place, or of a network with the same layers."""
    network = nn.Sequential(linear([[1, 0], [0, 1]]))
    images, bound = torch.rand(2, 2), lipschitz_bound(network)
    certify(network, images, bound=bound)
    certify(deepcopy(network), images, bound=bound)
    for other in (nn.Sequential(linear([[9, 0], [0, 9]])), deepcopy(network).double()):
        with pytest.raises(ValueError, match=r"is of other weights.*again with lipschitz_bound\(network\)"):
            certify(other, images, bound=bound)
    network[0].weight.mul_(10)
    with pytest.raises(ValueError, match=r"is of other weights"):
        certify(network, images, bound=bound)
    with pytest.raises(ValueError, match=r"is of other weights"):
        certify(network, images, bound=Bound(1.0, None, bound.layers))


class Gain(nn.Module):
    """A gain that no public attribute holds."""

    def __init__(self, nested):
        super().__init__()
        self.l, self._gain, self.config = linear([[1, 0], [0, 1]]), 1.0, SimpleNamespace(gain=1.0)
        self.nested = nested

    def change(self):
        self._gain, self.config.gain = (1.0, 10.0) if self.nested else (10.0, 1.0)

    def forward(self, x):
        return self.l(x) * (self.config.gain if self.nested else self._gain)


@pytest.mark.parametrize("nested", [False, True])
def test_a_bound_of_other_numbers_is_refused(nested):
    network, images = Gain(nested).eval(), torch.rand(2, 2)
    bound = lipschitz_bound(network, input_shape=(2,))
    certify(deepcopy(network), images, bound=bound)
    network.change()
    with pytest.raises(ValueError, match=r"another forward pass.*again with lipschitz_bound\(network\)"):
        certify(network, images, bound=bound)


@pytest.mark.parametrize("shape", [None, (2,)])
def test_a_bound_of_a_rule_that_reads_private_numbers_is_refused(shape):
    class Private(nn.Module):
        _gain = 1.0

        def forward(self, x):
            return self._gain * x

    register_operation(Private, rule=lambda call: call.module._gain)
    try:
        network, images = nn.Sequential(linear([[1, 0], [0, 1]]), Private()).eval(), torch.rand(2, 2)
        bound = lipschitz_bound(network, input_shape=shape)
        network[1]._gain = 10.0
        with pytest.raises(ValueError, match="another forward pass"):
            certify(network, images, bound=bound)
    finally:
        del REGISTERED[Private]


def test_what_a_state_dict_says_does_not_count():
    """A hook may write other numbers there; those of the modules are what runs. The truth is 1 / sqrt(2)."""
    network, image = nn.Sequential(linear([[1, 0], [0, 1]])), torch.tensor([[1.0, 0.0]])

    def shrink(module, state, prefix, metadata):
        state[prefix + "0.weight"] = state[prefix + "0.weight"] / 10

    network.register_state_dict_post_hook(shrink)
    for level in ("analytic", "sound"):
        assert 0.7 < float(certify(network, image, level=level).radius) <= 0.5**0.5


class Eager(nn.Module):
    """Its factor is computed in the dtype of the network, whenever it is called."""

    def __init__(self):
        super().__init__()
        self.l = linear([[1, 0], [0, 1]])
        self.register_buffer("a", torch.tensor(0.1))

    def forward(self, x):
        return self.l(x) * torch.sigmoid(self.a).item()


def test_numbers_that_depend_on_the_dtype_are_refused():
    """The float64 evaluation would be that of another network than the bound's: 0.52497917 and 0.52497918."""
    network, images = Eager().eval(), torch.rand(2, 2)
    for call in (
        lambda: certify(network, images, bound=lipschitz_bound(network, input_shape=(2,), diagnose=False)),
        lambda: lipschitz_bound(network, input_shape=(2,)),
    ):
        with pytest.raises(ValueError, match=r"network \(Eager\) computes other numbers in float64.*buffer"):
            call()
    assert float(certify(network.double(), images.double()).radius.min()) >= 0


@pytest.mark.parametrize("shape", [(2, 2, 4), (1, 2, 2, 4, 4)])
def test_a_size_free_bound_does_not_cover_images_of_another_rank(shape):
    network = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Flatten())
    with pytest.raises(ValueError, match=r"\(channels, height, width\)"):
        certify(network, torch.rand(shape), bound=lipschitz_bound(network))


def test_a_margin_lost_in_the_rounding_of_its_logits_certifies_nothing():
    """Logits of 1e16 are multiples of 2: the margin is off by up to 2, the radius was 4/3 of the truth."""
    network = nn.Sequential(linear([[3, 0], [0, 3]], [1e16, 1e16]))
    found = certify(network, torch.tensor([[0.5, 0.0]]))
    assert found.margin.item() > 0
    assert found.radius.item() == 0


@pytest.mark.parametrize(("first", "unit"), [(1.0, 2.0**-53), (2.0**-20, 2.0**-53)])
def test_a_margin_is_certified_above_the_rounding_of_its_logits_only(first, unit):
    """Logits b, b - m, -1 of a float64 sum of two products and a bias: nothing below g(3) (2 b - m), all above."""
    for margin, certified in ((5 * unit * first, False), (7 * unit * first, True)):
        network = nn.Sequential(nn.Linear(2, 3, dtype=torch.float64)).requires_grad_(False)
        network[0].weight.copy_(torch.eye(3, 2))
        network[0].bias.copy_(torch.tensor([first, first - margin, -1.0], dtype=torch.float64))
        assert (certify(network, torch.zeros(1, 2)).radius.item() > 0) is certified


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype):
    network = nn.Sequential(linear([[1, 0], [0, 1]])).to(dtype)
    with pytest.raises(ValueError, match=rf"'0.weight' is {dtype}.*bake the model in float32"):
        certify(network, torch.rand(2, 2))


def test_a_size_free_bound_is_refused_where_the_stride_does_not_divide():
    pad, conv = nn.CircularPad2d((0, 1, 0, 1)), nn.Conv2d(1, 2, 2, 2)
    network = nn.Sequential(pad, conv, nn.Flatten(), nn.Linear(8, 2))
    free = lipschitz_bound(network)
    certify(network, torch.rand(2, 1, 4, 4), bound=free)
    with pytest.raises(ValueError, match=r"input_shape=None does not cover images of shape \(1, 3, 3\)"):
        certify(network, torch.rand(2, 1, 3, 3), bound=free)
    certify(network, torch.rand(2, 1, 3, 3))


def test_an_infinite_bound_certifies_nothing():
    network = nn.Sequential(linear([[1, 0], [0, 1]]), Scale(1.0))
    bound = dataclasses.replace(lipschitz_bound(network), upper=math.inf)
    assert certify(network, torch.tensor([[1.0, 0.0]]), bound=bound).radius.item() == 0


def test_one_logit_and_bad_arguments():
    with pytest.raises(ValueError, match="two classes or more"):
        certify(nn.Sequential(linear([[1, 0]])), torch.rand(1, 2))
    for wrong in (0, True, 2.0, None):
        with pytest.raises(ValueError, match=f"batch_size={wrong} must be an integer, at least 1"):
            certify(nn.Sequential(linear([[1, 0], [0, 1]])), torch.rand(1, 2), batch_size=wrong)
    with pytest.raises(ValueError, match="is one radius"):
        certify(nn.Sequential(linear([[1, 0], [0, 1]])), torch.rand(1, 2), eps=np.array(0.1))
    for images in (torch.rand(1, 2, device="meta"), torch.rand(1, 2).to_sparse()):
        with pytest.raises(ValueError, match="images is .*: pass a dense tensor with numbers"):
            certify(nn.Sequential(linear([[1, 0], [0, 1]])), images)
    found = certify(nn.Sequential(linear([[1, 0], [0, 1]])), torch.rand(3, 2))
    with pytest.raises(ValueError, match=r"expected \(3,\) integers"):
        certified_accuracy(found, torch.zeros(2, dtype=torch.long), 0.1)
    with pytest.raises(ValueError, match="eps=nan"):
        certified_accuracy(found, found.label, math.nan)
    with pytest.raises(ValueError, match="empty"):
        certified_accuracy(certify(nn.Sequential(linear([[1, 0], [0, 1]])), torch.rand(0, 2)), found.label[:0], 0.1)
