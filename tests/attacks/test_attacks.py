"""Attacks: they stay in the ball, they are as strong as they claim, and they never break a certificate."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lconvnet import bake, models
from lconvnet.attacks import Attack, fgsm, pgd, score
from lconvnet.attacks.gradient import _uniform_cube
from lconvnet.certify import certify
from lconvnet.ops.margins import margin


@pytest.fixture(scope="module")
def subject():
    """A baked random network whose answers are taken as the labels; images with room on both sides."""
    torch.manual_seed(0)
    network = bake(models.small_convnet(1, 8, 4))
    images = torch.rand(64, 1, 8, 8) * 0.8 + 0.1
    return network, images, certify(network, images)


def linear_classifier(d=8):
    network = nn.Linear(d, 2, bias=False).requires_grad_(False)
    network.weight.copy_(torch.stack([torch.ones(d), -torch.ones(d)]) / math.sqrt(d))
    return network


@pytest.mark.parametrize("run", [fgsm, pgd], ids=["fgsm", "pgd"])
@pytest.mark.parametrize("eps", [0.0, 1e-3, 0.3, 5.0])
def test_results_stay_in_the_ball_and_in_the_box(subject, run: Attack, eps):
    network, images, found = subject
    result = run(network, images, found.label, eps)
    distance = (result.adversarial.double() - images.double()).flatten(1).norm(dim=1)
    assert torch.equal(result.norm, distance)
    # 1e-8: eps near float32's resolution of a pixel, where the norm may leave the ball and then counts as
    # failed
    assert (distance <= eps + 1e-8 + (1e-6 if eps == 1e-3 else 0)).all()
    assert (distance[result.success] <= eps).all()
    assert result.adversarial.min() >= 0
    assert result.adversarial.max() <= 1
    assert result.adversarial.dtype == images.dtype
    assert torch.equal(result.success, (network(result.adversarial).argmax(1) != found.label) & (distance <= eps))


def test_certified_and_attacked_never_both(subject):
    network, images, found = subject
    assert (found.radius > 0).all()
    for eps in torch.quantile(found.radius, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).tolist():
        for result in (
            fgsm(network, images, found.label, eps),
            pgd(network, images, found.label, eps, restarts=2),
        ):
            assert not (result.success & (found.radius > eps)).any()
            assert not (result.success & (result.norm < found.radius)).any()


def test_attack_just_below_each_radius_fails_and_far_above_succeeds(subject):
    """PGD at 0.99 r has zero successes; the certificate is not vacuous either."""
    network, images, found = subject
    assert not pgd(network, images, found.label, 0.99 * found.radius).success.any()
    far = pgd(network, images, found.label, 8 * float(found.radius.max()))
    assert far.success.float().mean() > 0.9


def test_pgd_is_at_least_as_strong_as_fgsm_on_average(subject):
    """Three starts, for every wrong class has a maximum of its own, and a start on the sphere may be near another."""
    network, images, found = subject
    for eps in (0.05, 0.1, 0.2):
        one, many = fgsm(network, images, found.label, eps), pgd(network, images, found.label, eps, restarts=3)
        assert many.success.sum() >= one.success.sum()
        left = ~many.success  # the others stop where the answer turns
        ahead = [margin(network(r.adversarial[left]), found.label[left]).mean() for r in (one, many)]
        assert ahead[1] <= ahead[0] * (1 + 1e-2)


@pytest.mark.parametrize("run", [fgsm, pgd], ids=["fgsm", "pgd"])
def test_linear_classifier_breaks_exactly_at_its_distance(run):
    """The logits differ by 2 |w| = 2 times the distance 0.3 to the plane; the attack needs that and no
    less."""
    x = torch.full((1, 8), 0.3 / math.sqrt(8))
    assert not run(linear_classifier(), x, torch.tensor([0]), 0.299).success.item()
    # the box forbids the optimum, so move the plane inside it
    network = nn.Sequential(nn.Linear(8, 2)).requires_grad_(False)
    network[0].weight.copy_(linear_classifier().weight)
    network[0].bias.copy_(torch.tensor([-1.0, 1.0]))
    x = torch.full((1, 8), 1.3 / math.sqrt(8))
    assert not run(network, x, torch.tensor([0]), 0.299).success.item()
    options = {"step_size": 0.3} if run is pgd else {}  # long steps: the projection turns towards the plane
    assert run(network, x, torch.tensor([0]), 0.301, **options).success.item()
    radius = certify(network, x).radius.item()
    assert radius == pytest.approx(0.3, rel=1e-5)


def test_score_does_not_trust_the_attack():
    network, x, label = linear_classifier(), torch.full((3, 8), 0.5), torch.zeros(3, dtype=torch.long)
    network.weight.neg_()  # class 1 everywhere: each answer is wrong
    claimed = torch.stack([x[0] + 0.5, x[1] + 0.01, torch.full((8,), math.nan)])
    result = score(network, x, label, claimed, 0.1)
    assert result.success.tolist() == [False, True, False]
    outside = score(network, x, label, x + 7, 10.0)
    assert outside.adversarial.max() == 1
    assert outside.norm.tolist() == pytest.approx([math.sqrt(8) / 2] * 3)


def test_random_starts_are_uniform_in_the_cube():
    points = _uniform_cube(torch.zeros(20000, 3), torch.Generator().manual_seed(0))
    assert points.abs().max() <= 1
    assert points.square().mean() == pytest.approx(1 / 3, abs=5e-3)  # four standard errors
    assert points.norm(dim=1).max() > 1.6, "the corners, at norm 1.73, are reached"
    assert points.mean(0).abs().max() < 0.02


def test_the_margin_is_what_is_climbed():
    """Behind a linear map its gradient is the nearest class's row less the label's; a step leads straight there."""
    torch.manual_seed(0)
    network, x = nn.Linear(8, 4).requires_grad_(False), torch.full((1, 8), 0.5)
    logits = network(x)[0]
    order = logits.argsort(descending=True)
    towards = network.weight[order[1]] - network.weight[order[0]]
    moved = fgsm(network, x, order[:1], 0.01).adversarial - x
    assert F.cosine_similarity(moved[0], towards, dim=0) == pytest.approx(
        1, abs=1e-4
    )  # rounding of x + step to float32
    blurred = fgsm(network, x, order[:1], 0.01, loss="cross-entropy").adversarial - x
    assert F.cosine_similarity(blurred[0], towards, dim=0) < 0.99


def test_pgd_starts_from_the_cube():
    """Where nothing is climbed the start stays: a point of the cube is nearly always beyond the ball and projected."""
    network = nn.Linear(64, 2).requires_grad_(False)
    network.weight.zero_()
    network.bias.copy_(torch.tensor([1.0, 0.0]))
    images, labels = torch.full((100, 64), 0.5), torch.zeros(100, dtype=torch.long)
    result = pgd(network, images, labels, 0.3)
    assert result.zero_gradient.all()
    assert torch.allclose(result.norm, torch.full_like(result.norm, 0.3), rtol=1e-5)  # ends 1e-6 inside the ball
    cube = (pgd(network, images, labels, 0.3, norm="linf").adversarial - images) / 0.3
    assert cube.square().mean() == pytest.approx(1 / 3, abs=0.015)  # four standard errors of 6,400 uniform points


def test_the_seed_decides_and_the_global_generator_is_left_alone(subject):
    network, images, found = subject
    state = torch.get_rng_state()
    runs = [pgd(network, images, found.label, 0.1, steps=2, seed=seed).adversarial for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert torch.equal(state, torch.get_rng_state())


def test_restarts_and_steps_only_help(subject):
    network, images, found = subject
    one = pgd(network, images, found.label, 0.12, steps=3)
    more = pgd(network, images, found.label, 0.12, steps=3, restarts=4)
    assert (more.success | ~one.success).all()


def test_the_loss_is_what_is_increased():
    def towards_zero(logits, labels):
        return -logits.square().sum()

    network, x = linear_classifier(), torch.full((1, 8), 0.5)
    result = fgsm(network, x, torch.tensor([0]), 0.3, loss=towards_zero)
    assert network(result.adversarial).abs().max() < network(x).abs().max()


def test_a_vanishing_gradient_moves_nothing():
    network = nn.Linear(4, 2).requires_grad_(False)
    network.weight.zero_()
    result = fgsm(network, torch.full((1, 4), 0.5), torch.tensor([0]), 0.3)
    assert result.norm.item() == 0


@pytest.mark.parametrize("run", [fgsm, pgd], ids=["fgsm", "pgd"])
def test_bad_input(run):
    network, x, label = linear_classifier(), torch.full((1, 8), 0.5), torch.tensor([0])
    for arguments, message in (
        ((x * math.nan, label, 0.1), "NaN"),
        ((x + 1, label, 0.1), r"\[0, 1\]"),
        ((x, label.float(), 0.1), "integers"),
        ((x, label, -1.0), "eps=-1"),
        ((x, label, math.nan), "eps=nan"),
    ):
        with pytest.raises(ValueError, match=message):
            run(network, *arguments)
    for options, message in (
        ({"steps": 0}, "steps=0"),
        ({"restarts": 0}, "restarts=0"),
        ({"step_size": -1}, "step_size=-1"),
    ):
        with pytest.raises(ValueError, match=message):
            pgd(network, x, label, 0.1, **options)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("run", [fgsm, pgd], ids=["fgsm", "pgd"])
def test_every_image_has_its_own_eps(subject, run, norm):
    network, images, found = subject
    eps = torch.linspace(0.05, 0.5, len(images), dtype=torch.float64)
    result = run(network, images, found.label, eps, norm=norm)
    assert (result.norm[result.success] <= eps[result.success]).all()
    assert (result.norm > 0.5 * eps)[~result.success].all(), "each ball is used"
    same = run(network, images, found.label, torch.full((len(images),), 0.25), norm=norm)
    assert torch.equal(same.adversarial, run(network, images, found.label, 0.25, norm=norm).adversarial)
    with pytest.raises(ValueError, match=r"eps='0.1': pass one number"):
        run(network, images, found.label, "0.1")
    with pytest.raises(ValueError, match=r"eps has shape \(3,\)"):
        run(network, images, found.label, eps[:3])
