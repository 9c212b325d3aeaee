"""Why a radius is 0: each reason on a network and an image whose reason is known by arithmetic."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from lconvnet import bake, models
from lconvnet.bounds import lipschitz_bound
from lconvnet.certify import certified_at, certify
from lconvnet.certify.certifier import REASONS
from lconvnet.layers import Scale

LEVELS = "estimate", "analytic", "sound"
PROVED = "analytic", "sound"


def dense(weight, bias=None, dtype=torch.float64):
    layer = nn.Linear(len(weight[0]), len(weight), bias is not None, dtype=dtype)
    layer.weight.data.copy_(torch.tensor(weight, dtype=dtype))
    if bias is not None:
        layer.bias.data.copy_(torch.tensor(bias, dtype=dtype))
    return layer.requires_grad_(False)


EYE = [[1.0, 0.0], [0.0, 1.0]]
TINY = torch.finfo(torch.float64).tiny
HUGE = [[1e200, 0.0], [0.0, 1e200]]


def identity():
    return nn.Sequential(nn.Flatten(), nn.ReLU()).eval()


CASES = {
    # logits (1, 0); the radius is 1 / sqrt(2), as an estimate too
    "a margin of 1": (nn.Sequential(dense(EYE)), [1.0, 0.0], {"estimate": "estimated"}, "certified"),
    # logits (1, 1, 0)
    "a tie": (nn.Sequential(dense([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])), [1.0, 0.0], {}, "tie"),
    # logits 0 of a constant network, whose estimate is 0 / 0
    "a constant tie": (nn.Sequential(dense([[0.0], [0.0]])), [1.0], {}, "tie"),
    # nothing is taken off an estimate: its radius is infinite
    "an infinite bias": (
        nn.Sequential(dense(EYE, [math.inf, 0.0])),
        [1.0, 0.0],
        {"estimate": "estimated"},
        "logits not finite",
    ),
    "a bias that is no number": (nn.Sequential(dense(EYE, [math.nan, 0.0])), [1.0, 0.0], {}, "logits not finite"),
    # logits (1e200, 0), constant 1e400; power iteration finds none, and the estimate is infinite
    "an infinite constant": (
        nn.Sequential(dense(HUGE), dense(HUGE)),
        [1e-200, 0.0],
        {"estimate": "estimated"},
        "no finite bound",
    ),
    # logits (1e308, 0), constant sqrt(2) 1e308: finite, but above half of the largest number, 0.9e308
    "half of the largest": (
        nn.Sequential(Scale(1e150), Scale(1e158)),
        [1.0, 0.0],
        {"estimate": "estimated"},
        "overflow",
    ),
    # logits 1e16 + (2, 0), multiples of 2, each off by up to 1
    "a small difference of large logits": (
        nn.Sequential(dense([[3.0, 0.0], [0.0, 3.0]], [1e16, 1e16])),
        [0.5, 0.0],
        {"estimate": "estimated"},
        "margin below rounding",
    ),
    # logits (0, tiny / 8), and (0, 0) if subnormal numbers are read as 0; the estimate is tiny / 8 sqrt(2)
    "a subnormal pixel": (identity(), [0.0, TINY / 8], {"estimate": "estimated"}, "radius below underflow"),
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", CASES)
def test_reasons_known_by_arithmetic(name, level):
    network, image, other, reason = CASES[name]
    found = certify(network, torch.tensor([image], dtype=torch.float64), level=level)
    assert found.reason.tolist() == [other.get(level, reason)]
    assert (found.radius > 0).tolist() == [found.reason[0] in ("certified", "estimated")]


def test_an_estimate_over_an_infinite_norm():
    network = nn.Sequential(dense(EYE))
    bound = lipschitz_bound(network)
    infinite = replace(bound, layers=(replace(bound.layers[0], lower=math.inf),))
    found = certify(network, torch.tensor([[1.0, 0.0], [0.5, 0.5]]), level="estimate", bound=infinite)
    assert found.radius.tolist() == [0.0, 0.0] and found.reason.tolist() == ["no finite bound", "tie"]


def test_an_estimate_that_underflows():
    """5e-324, the least of all float64, over 4 sqrt(2)."""
    network, image = nn.Sequential(dense([[1.0, 0.0], [0.0, 4.0]])), torch.tensor([[5e-324, 0.0]], dtype=torch.float64)
    found = certify(network, image, level="estimate")
    assert found.margin.item() > 0 == found.radius.item()
    assert found.reason.tolist() == ["radius below underflow"]


def test_overflow_of_the_deployed_network_only():
    """A hidden value of 3e38 is above half of the largest float32, and nothing to float64."""
    weights = [[3e38, 0.0], [0.0, 3e38]], [[1e-30, 0.0], [0.0, 1e-30]]
    network = nn.Sequential(*[dense(weight, dtype=torch.float32) for weight in weights])
    image = torch.tensor([[1.0, 0.125]])
    assert [certify(network, image, level=level).reason[0] for level in PROVED] == ["certified", "overflow"]


def test_rounding_of_the_deployed_network_only():
    """Logits 1 and 1 + 2^-22: float32 may be off by 2^-22 and more, float64 by 2^-50."""
    network = nn.Sequential(dense(EYE, [1.0, 1 + 2**-22], dtype=torch.float32))
    image = torch.zeros(1, 2)
    reasons = [certify(network, image, level=level).reason[0] for level in PROVED]
    assert reasons == ["certified", "margin below rounding"]


@pytest.mark.parametrize("level", PROVED)
def test_a_bound_that_was_made_infinite(level):
    network = nn.Sequential(dense(EYE), Scale(1.0))
    bound = replace(lipschitz_bound(network), upper=math.inf)
    found = certify(network, torch.tensor([[1.0, 0.0], [0.5, 0.5]]), level=level, bound=bound)
    assert found.reason.tolist() == ["no finite bound", "tie"]


@pytest.mark.parametrize("level", LEVELS)
def test_each_image_has_its_own_reason(level):
    """Logits (1 + x, 1), in batches: 1 + 2^-54 is 1, 2^-51 is below what three roundings may change, 1e-12 above."""
    network = nn.Sequential(dense(EYE, [1.0, 1.0]))
    pixels = torch.tensor([1.0, 2.0**-54, 2.0**-51, 1e-12, 0.0], dtype=torch.float64)
    found = certify(network, torch.stack([pixels, torch.zeros(5)], dim=1), level=level, batch_size=2)
    good, near = ("estimated", "estimated") if level == "estimate" else ("certified", "margin below rounding")
    assert found.reason.tolist() == [good, "tie", near, good, "tie"]
    assert ((found.radius > 0).numpy() == (found.reason == good)).all()


@pytest.mark.parametrize("level", LEVELS)
def test_a_radius_is_positive_if_and_only_if_it_is_certified(level):
    """On a convolutional network, with and without eps; its bias nearly ties the first image in float32."""
    network, images = bake(models.small_convnet(1, 8, 2)), torch.rand(20, 1, 8, 8)
    first = network(images[:1])[0]
    network[-1].bias.data[0] += first[1] - first[0]
    bound = lipschitz_bound(network, input_shape=(1, 8, 8))
    good = "estimated" if level == "estimate" else "certified"
    for eps in ((), (0.0,), (0.1,)):
        found = certify(network, images, level=level, eps=eps, bound=bound)
        assert ((found.radius > 0).numpy() == (found.reason == good)).all()
        assert set(found.reason) <= set(REASONS) and len(found.reason) == len(found)
        if level == "sound":
            assert found.reason[0] in ("margin below rounding", "tie")


def test_decisions_at_eps_have_the_reason_of_the_evaluation_that_decided():
    """Float32 leaves the first open at 0: float64 certifies it. A tie stays one."""
    network = nn.Sequential(dense(EYE, [1.0, 1 + 2**-22], dtype=torch.float32))
    images = torch.tensor([[0.0, 0.0], [2**-22, 0.0]])
    assert certify(network, images, eps=(0.0,)).reason.tolist() == ["certified", "tie"]


def test_linear_bounds_change_the_reason_with_the_radius():
    network = nn.Sequential(dense(EYE), Scale(1.0))
    bound = replace(lipschitz_bound(network), upper=math.inf)
    known = certify(network, torch.tensor([[1.0, 0.0], [1.0, 0.5]]), bound=bound)
    assert certified_at(known, torch.tensor([0.1, -0.1]), 0.2).reason.tolist() == ["certified", "no finite bound"]
    assert certified_at(known, torch.tensor([0.1, -0.1]), 0.0).reason.tolist() == ["no finite bound"] * 2, "radius 0"
    assert known.reason.tolist() == ["no finite bound"] * 2, "the certificates given stay as they were"


def test_no_images_have_no_reasons():
    for level in LEVELS:
        found = certify(nn.Sequential(dense(EYE)), torch.zeros(0, 2), level=level)
        assert isinstance(found.reason, np.ndarray) and found.reason.tolist() == []
