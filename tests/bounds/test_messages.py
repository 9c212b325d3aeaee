"""What a user wrote is named where it cannot be bounded: one line, and none of the library's own names."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from lconvnet import bake, certify, convert, layers, lipschitz_bound
from lconvnet.bounds import register_operation
from lconvnet.bounds.operations import REGISTERED
from lconvnet.certify import certificate_documents

INSIDE = re.compile(r"Constant|_Value|Proxy|object at 0x|NoneType|has no attribute|positional argument|list index")


class Net(nn.Module):
    """A forward pass of one's own beside a parameter, a buffer and two layers."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.p = nn.Parameter(torch.rand(4))
        self.register_buffer("mask", torch.ones(4, dtype=torch.bool))

    def forward(self, x):
        return type(self).function(self, x)


def net(function):
    return type("Net", (Net,), {"function": function})(None).eval()


REFUSED = [
    (lambda self, x: x + (-self.p), r"'neg'.*the parameter or buffer 'p' alone.*register_buffer the result"),
    (lambda self, x: x * (2 * self.p), r"'mul'.*'p' alone"),
    (lambda self, x: x + (self.p + self.p), r"'add'.*'p' alone"),
    (lambda self, x: x + self.p.relu(), r"'relu'.*'p' alone"),
    (lambda self, x: x + self.p.view(1, -1), r"'view'.*'p' alone"),
    (lambda self, x: x * torch.sigmoid(self.p), r"'sigmoid'.*'p' alone"),
    (lambda self, x: x - self.p.mean(), r"'mean'.*'p' alone"),
    (lambda self, x: x + self.a.weight[0], r"takes a part of the parameter or buffer 'a.weight': register_buffer"),
    (lambda self, x: x + 2 * self.mask.float(), r"register_buffer it"),
    (lambda self, x: x.T, r"reads .T of a tensor"),
    (lambda self, x: x.to(self.p.device), r"reads .device of a tensor"),
    (lambda self, x: x / x.shape[0], r"has the operand the number of examples"),
    (lambda self, x: x * (x.shape[0] * 2), r"'mul'.*computes with the number of examples"),
    (lambda self, x: x / (x.shape[1] - 4) ** -1, r"cannot take the numbers \(0, -1\)"),
    (lambda self, x: x - x.mean(), r"'mean'.*known is only \(input, dim, keepdim\)"),
    (lambda self, x: x.chunk(2, 1) + 1, r"'add'"),
    (lambda self, x: torch.relu(x.chunk(2, 1)), r"'relu'.*something else than one tensor"),
    (lambda self, x: x[:, self.mask], r"indexed by the parameter or buffer 'mask'"),
    (lambda self, x: x * self.mask, r"'mask' has dtype torch.bool"),
    (lambda self, x: (x, x), r"returns something else than one tensor"),
    (lambda self, x: {"y": x}, r"returns something else than one tensor"),
    (lambda self, x: self.a((x, x)), r"'a' \(Linear\) takes something else than one tensor"),
    (lambda self, x: self.a(self.p), r"'a' \(Linear\) takes something else than one tensor"),
    (lambda self, x: self(x), r"cannot be traced"),
    (lambda self, x: torch.no_grad()(self.a)(x), r"switches gradients on or off"),
]


@pytest.mark.parametrize(("function", "message"), REFUSED)
def test_what_is_refused_is_said_in_the_words_of_the_forward_pass(function, message):
    network = net(function)
    for attempt in (lipschitz_bound, lambda n, input_shape: certify(n, torch.rand(2, *input_shape))):
        with pytest.raises(ValueError, match=message) as error:
            attempt(network, input_shape=(4,))
        assert "\n" not in str(error.value)
        assert not INSIDE.search(str(error.value))


ALLOWED = [
    (lambda self, x: x / self.p.shape[0], 0.25),
    (lambda self, x: x * x.shape[1] ** -0.5, 0.5),
    (lambda self, x: x / x.size(1), 0.25),
    (lambda self, x: torch.relu(input=x), 1.0),
    (lambda self, x: 0.5 - x, 1.0),
    (lambda self, x: x.view(x.size(0), -1) + self.p, 1.0),
    (lambda self, x: x[..., 0], 1.0),
]


@pytest.mark.parametrize(("function", "norm"), ALLOWED)
def test_sizes_are_numbers_like_any_other(function, norm):
    bound = lipschitz_bound(net(function), input_shape=(4,))
    assert bound.lower == pytest.approx(norm, rel=1e-6)  # of power iteration on a multiple of an isometry
    assert bound.upper == pytest.approx(norm, rel=1e-12)


@pytest.mark.parametrize("thing", [None, 3, "abc", nn.Linear, torch.ones(3), [nn.Linear(4, 4)], torch.relu])
def test_what_is_no_module_is_named(thing):
    images = torch.rand(2, 4)
    for attempt in (bake, lipschitz_bound, lambda n: certify(n, images), lambda n: convert(n, (1, 4, 4))):
        with pytest.raises(ValueError, match=r"(network|model|module) is (a|the class) \w+: pass an nn.Module"):
            attempt(thing)


@pytest.mark.parametrize("name", ["a.b", "", "forward"])
@pytest.mark.parametrize("deep", [False, True])
def test_a_module_under_what_is_no_name_is_refused(name, deep):
    inner = nn.Sequential()
    inner._modules[name] = nn.Linear(4, 4)
    with pytest.raises(ValueError, match=f"holds a module as '{name}', which is not a name"):
        lipschitz_bound((nn.Sequential(layers.Sum(inner)) if deep else inner).eval(), input_shape=(4,))


class Own(nn.Module):
    def forward(self, x):
        return x


UNUSABLE = (-1.0, math.nan, math.inf, "1", True, 1j, -1, torch.ones(2), torch.tensor(-1), np.float32("nan"), None)


@pytest.mark.parametrize("answer", UNUSABLE)
def test_a_rule_that_returns_no_bound_is_named(answer):
    """Two negative ones would make a positive product."""
    register_operation(Own, rule=lambda call: answer)
    try:
        with pytest.raises(ValueError, match=r"'0' \(Own\) has a rule that returns .*a finite number of at"):
            lipschitz_bound(nn.Sequential(Own(), Own()).eval())
    finally:
        del REGISTERED[Own]


@pytest.mark.parametrize(
    ("upper", "expected"),
    [
        (2**53 + 1, 2.0**53 + 2),
        (np.int64(2**53 + 1), 2.0**53 + 2),
        (torch.tensor(2**53 + 1), 2.0**53 + 2),
        (Fraction(1, 3), math.nextafter(1 / 3, 1)),  # the nearest float is below
        (10**400, math.inf),
        (np.float32(0.1), 13421773 / 2**27),
        (torch.tensor([0.1]), 13421773 / 2**27),
        (np.float64(0.1), 0.1),
        (3, 3.0),
    ],
    ids=repr,
)
def test_whatever_number_a_rule_returns_is_rounded_up(upper, expected):
    register_operation(Own, rule=lambda call: upper)
    try:
        found = lipschitz_bound(nn.Sequential(Own()).eval()).upper
    finally:
        del REGISTERED[Own]
    assert type(found) is float and found == expected


def test_images_of_another_precision_are_estimated_in_that_of_the_network():
    network, images = nn.Sequential(nn.Linear(4, 3)).eval(), torch.rand(2, 4, dtype=torch.float64)
    found = certify(network, images, level="estimate")
    assert torch.equal(found.radius, certify(network, images.float(), level="estimate").radius)


@pytest.mark.parametrize("level", ["analytic", "estimate"])
def test_integers_of_other_libraries_are_integers(level):
    network, images = nn.Sequential(nn.Linear(4, 3)).eval(), torch.rand(5, 4)
    found = certify(network, images, batch_size=np.int64(2), level=level)
    assert torch.equal(found.radius, certify(network, images, batch_size=2, level=level).radius)


def test_one_image_is_advised_only_where_that_helps():
    flat, images = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval(), torch.rand(1, 4, 4)
    with pytest.raises(ValueError, match=r"one image \(C, H, W\) is images\[None\]"):
        certify(flat, torch.rand(4, 2, 2))
    rows = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout()).train()
    with pytest.raises(ValueError, match="is in training mode") as error:
        certify(rows, images)
    assert "images[None]" not in str(error.value)


def test_arguments_of_certificates_are_checked():
    network, images = nn.Sequential(nn.Linear(4, 3)).eval(), torch.rand(2, 4)
    other = lipschitz_bound(nn.Sequential(nn.ReLU(), nn.ReLU()))
    bound = lipschitz_bound(network, input_shape=(4,))
    for options, message in (
        ({"batch_size": 1.5}, "batch_size=1.5 must be an integer"),
        ({"batch_size": True}, "batch_size=True must be an integer"),
        ({"batch_size": np.int64(0)}, "batch_size=.*0.* must be an integer"),
        ({"eps": 0.1}, "eps=0.1 is one radius: pass all of them in a sequence"),
        ({"eps": "0.1"}, "eps='0.1' is one radius: pass all of them in a sequence"),
        ({"eps": None}, "eps=None is one radius"),
        ({"eps": ["0.1"]}, "eps='0.1' must be a finite l2 radius, a number"),
        ({"bound": 3}, "bound is a int: use lipschitz_bound"),
    ):
        with pytest.raises(ValueError, match=message):
            certify(network, images, **options)
    for options, message in (
        ({"bound": other, "sources": [{}] * 2}, "bound is of other weights or another network"),
        ({"bound": None, "sources": [{}] * 2}, "bound is a NoneType"),
        ({"bound": bound, "sources": [{}]}, "sources has 1 entries for 2 images"),
    ):
        with pytest.raises(ValueError, match=message):
            certificate_documents(network, images, level="sound", **options)


def test_tensors_that_a_certificate_cannot_name_are_refused():
    network = nn.Sequential(nn.Linear(4, 3)).eval()
    network.register_buffer("seen", torch.ones(3, dtype=torch.bool))
    bound = lipschitz_bound(network, input_shape=(4,))
    with pytest.raises(ValueError, match=r"network tensor 'seen' is torch.bool: a certificate is about tensors of"):
        certificate_documents(network, torch.rand(2, 4), bound=bound, level="sound", sources=[{}] * 2)
