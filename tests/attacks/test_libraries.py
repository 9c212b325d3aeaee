"""Every attack keeps the promises of its result, is reproducible, and never breaks a certificate."""

import logging
import random
import sys

import numpy as np
import pytest
import torch
from torch import nn

from lconvnet import attacks, bake, certify, models

pytest.importorskip("foolbox", reason="attack libraries come with the extra: pip install 'lconvnet[attacks]'")

SHORTEST = {
    "deepfool": {},
    "deepfool-linf": {"norm": "linf", "steps": 20},
    "carlini_wagner": {"steps": 50, "binary_search_steps": 5, "step_size": 0.05},
    "ddn": {"steps": 30},
    "fmn": {"steps": 30},
    "fmn-linf": {"steps": 30, "norm": "linf"},
    "boundary_attack": {"steps": 200},
    "pointwise": {},
    "hop_skip_jump": {"steps": 4, "max_gradient_eval_steps": 100},
    "hop_skip_jump-linf": {"steps": 4, "max_gradient_eval_steps": 100, "norm": "linf"},
}
WITHIN = {
    "apgd": {"steps": 10},
    "apgd-linf": {"steps": 10, "norm": "linf"},
    "square": {"queries": 50},
    "square-linf": {"queries": 50, "norm": "linf"},
    "autoattack": {},
    "pgd-linf": {"steps": 10, "norm": "linf"},
    "fgsm-linf": {"norm": "linf"},
}


@pytest.fixture(scope="module")
def subject():
    """A baked random network whose answers are taken as the labels; images with room on both sides."""
    torch.manual_seed(0)
    network = bake(models.small_convnet(1, 8, 4))
    images = torch.rand(12, 1, 8, 8) * 0.8 + 0.1
    return network, images, certify(network, images)


def run(name, network, images, labels, *eps, **options):
    return getattr(attacks, name.removesuffix("-linf"))(network, images, labels, *eps, **options)


def numpy_state():
    return np.random.get_state()[1].tolist()  # noqa: NPY002 (the libraries draw from it)


def obeys(network, images, labels, result, order, eps=None):
    moved = (result.adversarial.double() - images.double()).flatten(1)
    assert torch.equal(result.norm, torch.linalg.vector_norm(moved, ord=order, dim=1))
    assert 0 <= result.adversarial.min() <= result.adversarial.max() <= 1
    assert (network(result.adversarial).argmax(1) != labels)[result.success].all()
    if eps is not None:
        assert (result.norm[result.success] <= eps).all()


@pytest.mark.parametrize(("name", "options"), SHORTEST.items(), ids=list(SHORTEST))
def test_shortest(name, options, subject):
    network, images, found = subject
    result = run(name, network, images, found.label, **options)
    obeys(network, images, found.label, result, torch.inf if "linf" in name else 2)
    length = (result.adversarial.double() - images.double()).flatten(1).norm(dim=1)
    assert (length[result.success] >= found.radius[result.success]).all()
    assert result.success.float().mean() > 0.5, "an attack that finds nothing proves nothing"


@pytest.mark.parametrize(
    ("name", "options"),
    [pytest.param(*item, id=item[0], marks=[pytest.mark.slow] * (item[0] == "autoattack")) for item in WITHIN.items()],
)
def test_within(name, options, subject):
    network, images, found = subject
    scale = 1 / 8 if "linf" in name else 1.0  # |x|_2 <= 8 |x|_inf in 64 pixels
    order = torch.inf if "linf" in name else 2
    below = run(name, network, images, found.label, 0.999 * float(found.radius.min()) * scale, **options)
    assert not below.success.any()
    eps = 6 * float(found.radius.max()) * scale
    above = run(name, network, images, found.label, eps, **options)
    obeys(network, images, found.label, above, order, eps)
    assert above.success.float().mean() > 0.5


@pytest.mark.parametrize("name", ["deepfool", "boundary_attack", "apgd", "square"])
def test_the_seed_decides_and_global_generators_are_left_alone(name, subject):
    network, images, found = subject
    eps, options = ([0.3], WITHIN[name]) if name in WITHIN else ([], SHORTEST[name])
    states = random.getstate(), numpy_state(), torch.get_rng_state()
    trace, handlers = sys.gettrace(), logging.root.handlers[:]
    first, again = (run(name, network, images, found.label, *eps, **options, seed=1) for _ in range(2))
    assert torch.equal(first.adversarial, again.adversarial)
    assert random.getstate() == states[0]
    assert numpy_state() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert sys.gettrace() is trace
    assert logging.root.manager.disable == logging.NOTSET
    assert logging.root.handlers == handlers
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("name", ["boundary_attack", "pointwise", "hop_skip_jump"])
def test_an_image_without_a_start_counts_as_not_attacked(name):
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).requires_grad_(False)
    network[1].weight.zero_()
    network[1].bias.copy_(torch.tensor([1.0, 0.0, 0.0]))  # one answer to everything
    images = torch.full((2, 1, 2, 2), 0.5)
    result = run(name, network, images, torch.tensor([0, 1]), **SHORTEST[name])
    assert result.success.tolist() == [False, True]
    assert result.norm.tolist() == [0, 0]
    assert torch.equal(result.adversarial, images)


@pytest.mark.slow
def test_autoattack_with_few_classes():
    torch.manual_seed(0)
    network = bake(models.small_convnet(1, 8, 2))
    images = torch.rand(4, 1, 8, 8) * 0.8 + 0.1
    found = certify(network, images)
    assert not attacks.autoattack(network, images, found.label, 0.999 * float(found.radius.min())).success.any()
    assert attacks.autoattack(network, images, found.label, 3 * float(found.radius.max())).success.any()


def test_bad_input(subject):
    network, images, found = subject
    with pytest.raises(ValueError, match="norm='l1'"):
        attacks.deepfool(network, images, found.label, norm="l1")
    with pytest.raises(ValueError, match="norm='l1'"):
        attacks.apgd(network, images, found.label, 0.1, norm="l1")
    with pytest.raises(ValueError, match="square needs"):
        attacks.square(
            nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(9, 10)), images[..., :4], found.label, 0.1
        )
    with pytest.raises(ValueError, match="works in float32"):
        attacks.square(network.double(), images.double(), found.label, 0.1)
    network.float()
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        attacks.ddn(network, images + 1, found.label)
