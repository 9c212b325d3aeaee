"""What an attack finds does not depend on a positive scale of the logits, nor, in strength, on a shift of them."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lconvnet import attacks, bake, certify, models
from lconvnet.attacks.gradient import LOSSES, SPREAD, Normalized, loss_of, unit
from lconvnet.layers import Scale

LIBRARIES = {
    "apgd": {"steps": 8},
    "apgd-ratio": {"steps": 8, "loss": "logit-difference-ratio"},
    "autoattack": {},
    "square": {"queries": 30},
    "deepfool": {"steps": 10},
    "fmn": {"steps": 10},
    "ddn": {"steps": 10},
    "carlini_wagner": {"steps": 20, "binary_search_steps": 3, "step_size": 0.05},
}
OURS: dict[str, dict[str, object]] = {f"{name}-{loss}": {"loss": loss} for name in ("pgd", "fgsm") for loss in LOSSES}
OURS["pgd-callable"] = {"loss": F.cross_entropy}
BALLS = ("pgd", "fgsm", "apgd", "autoattack", "square")


@pytest.fixture(scope="module")
def subject():
    torch.manual_seed(0)
    network = bake(models.mlp(64, 5, widths=(32,)))
    images = torch.rand(16, 1, 8, 8) * 0.8 + 0.1
    return network, images, certify(network, images)


def found_behind(scale, name, options, subject):
    network, images, found = subject
    kind = name.partition("-")[0]
    eps = [4 * float(found.radius.median())] if kind in BALLS else []
    scaled = nn.Sequential(network, Scale(scale)).eval()
    return getattr(attacks, kind)(scaled, images, found.label, *eps, **options)


@pytest.mark.parametrize(("name", "options"), OURS.items(), ids=list(OURS))
def test_ours(name, options, subject):
    plain = found_behind(1.0, name, options, subject)
    assert plain.success.sum() > 0, "the attack has to find something"
    for power in (2.0**-99, 2.0**99):  # multiplied without rounding: the same attack to the last digit
        assert torch.equal(found_behind(power, name, options, subject).adversarial, plain.adversarial)
    for scale in (1e-30, 1e-3, 10, 1e3, 1e30):  # rounding may turn the last image at the boundary
        assert (found_behind(scale, name, options, subject).success != plain.success).sum() <= 1


@pytest.mark.parametrize(
    ("name", "options"),
    [pytest.param(*one, id=one[0], marks=[pytest.mark.slow] * (one[0] == "autoattack")) for one in LIBRARIES.items()],
)
def test_libraries(name, options, subject):
    pytest.importorskip("foolbox", reason="attack libraries come with the extra: pip install 'lconvnet[attacks]'")
    plain = found_behind(1.0, name, options, subject)
    assert plain.success.any()
    for power in (2.0**-99, 2.0**99):
        assert torch.equal(found_behind(power, name, options, subject).adversarial, plain.adversarial)


ALONE = {
    "fgsm": {"loss": "cross-entropy"},
    "pgd": {"loss": "cross-entropy", "steps": 5},
    "deepfool": {"steps": 10},
    "fmn": {"steps": 10},
    "ddn": {"steps": 10},
    "carlini_wagner": {"steps": 20, "binary_search_steps": 3, "step_size": 0.05},
}


@pytest.mark.parametrize("name", ALONE)
def test_an_image_is_attacked_alone_as_in_company(name, subject, monkeypatch):
    """But for random starts, here of pgd, which are drawn for the batch; 1e-4 for another order of float32 sums."""
    if name not in BALLS:
        pytest.importorskip("foolbox", reason="attack libraries come with the extra: pip install 'lconvnet[attacks]'")
    monkeypatch.setattr("lconvnet.attacks.gradient._uniform_cube", lambda images, generator: torch.zeros_like(images))
    network, images, found = subject
    eps = [4 * float(found.radius.median())] if name in BALLS else []
    attack = getattr(attacks, name)
    company = attack(network, images, found.label, *eps, **ALONE[name])
    for i in range(0, 16, 3):
        alone = attack(network, images[i : i + 1], found.label[i : i + 1], *eps, **ALONE[name])
        torch.testing.assert_close(alone.adversarial[0], company.adversarial[i], rtol=0, atol=1e-4)


class Step(nn.Module):
    """A network whose gradient is zero everywhere: the second logit wins from a mean of one half on."""

    def forward(self, images):
        above = (images.flatten(1).mean(1) >= 0.5).to(images.dtype)
        return torch.stack([1 - above, above], dim=1) + 0 * images.flatten(1)[:, :1]


@pytest.mark.parametrize("name", ["pgd", "fgsm", "apgd"])
def test_what_is_fooled_has_not_a_gradient_of_zero(name):
    if name == "apgd":
        pytest.importorskip("pyautoattack", reason="it comes with the extra: pip install 'lconvnet[attacks]'")
    images, labels = torch.full((8, 1, 2, 2), 0.49), torch.zeros(8, dtype=torch.long)
    result = getattr(attacks, name)(Step(), images, labels, 0.5)
    assert not (result.success & result.zero_gradient).any()
    assert (result.success | result.zero_gradient).all()
    assert result.success.any() or name == "fgsm"  # the random starts


@pytest.mark.parametrize("loss", LOSSES)
def test_the_unit_takes_no_notice_of_a_shift(loss, subject):
    """Logits shifted by 100 lose two decimal digits of their differences; the attack is as strong."""
    network, images, found = subject
    eps, shifted = 4 * float(found.radius.median()), nn.Sequential(network, Shifted()).eval()
    assert unit(shifted, images) == pytest.approx(unit(network, images), rel=1e-4)
    one, other = (attacks.pgd(f, images, found.label, eps, loss=loss).success for f in (network, shifted))
    assert (one != other).sum() <= 1


class Shifted(nn.Module):
    def forward(self, logits):
        return logits + 100


def test_losses_see_logits_of_one_spread(subject):
    network, images, _ = subject
    noise = torch.rand(10_000, *images.shape[1:])
    shown = Normalized(network, images)(noise)
    spread = shown.amax(1) - shown.amin(1)
    assert spread.median() == pytest.approx(SPREAD, rel=0.2)  # the unit is of 32 images
    logits = Normalized(network, images)(images)
    assert torch.equal(logits.argsort(1), network(images).argsort(1))


def test_losses_are_what_they_are_called():
    logits, labels = torch.tensor([[1.0, 4.0, 2.5, 0.0], [3.0, 1.0, 1.5, 2.0]]), torch.tensor([0, 0])
    assert LOSSES["margin"](logits, labels).item() == 3 - 1
    assert LOSSES["logit-difference-ratio"](logits, labels).item() == pytest.approx(3 / 3 - 1 / 1.5)
    expected = sum(math.log(sum(math.exp(z) for z in row)) - row[0] for row in logits.tolist()) / 2
    assert LOSSES["cross-entropy"](logits, labels).item() == pytest.approx(expected)


def test_a_loss_is_refused_that_is_not_there(subject):
    network, images, found = subject
    for name in ("pgd", "fgsm", "apgd"):
        with pytest.raises(ValueError, match="loss='ce'"):
            getattr(attacks, name)(network, images, found.label, 0.1, loss="ce")
    two, pair = bake(models.mlp(64, 2, widths=(8,))), torch.zeros(len(images), dtype=torch.long)
    for name in ("pgd", "fgsm", "apgd"):
        with pytest.raises(ValueError, match="needs three classes or more, the network has 2"):
            getattr(attacks, name)(two, images, pair, 0.1, loss="logit-difference-ratio")
    assert loss_of(F.cross_entropy) is F.cross_entropy


class Flat(nn.Module):
    """Logits that stay where they are for the images that begin with a dark pixel."""

    def forward(self, images):
        dark = images.flatten(1)[:, :1] < 0.3
        x = images.flatten(1)[:, 1:]
        logits = torch.stack([x.sum(1), x[:, :3].sum(1) - 1, x[:, :1].sum(1) - 2], dim=1)
        return torch.where(dark, torch.tensor([1.0, 0.0, -1.0]), logits)


@pytest.mark.parametrize("name", ["pgd", "fgsm", "apgd", "deepfool", "ddn", "fmn"])
def test_images_with_a_gradient_of_zero_are_told(name):
    if name not in ("pgd", "fgsm"):
        pytest.importorskip("foolbox", reason="attack libraries come with the extra: pip install 'lconvnet[attacks]'")
    images = torch.full((4, 1, 5, 5), 0.5)
    images[:2, 0, 0, 0] = 0.1
    labels = torch.tensor([0, 1, 0, 1])  # the odd ones are answered wrongly: nobody attacks them
    eps = [0.1] if name in BALLS else []
    result = getattr(attacks, name)(Flat(), images, labels, *eps)
    assert result.zero_gradient.tolist() == [True, False, False, False]


def test_a_gradient_that_is_not_finite_is_none():
    class Root(nn.Module):
        def forward(self, images):
            x = images.flatten(1)
            return torch.stack([(x - x.detach()).abs().sqrt().sum(1) + 1, x.sum(1) * 0], dim=1)

    result = attacks.fgsm(Root(), torch.full((2, 1, 4, 4), 0.5), torch.tensor([0, 1]), 0.1)
    assert result.zero_gradient.tolist() == [True, False]
    assert result.norm.tolist() == [0, 0]


def test_attacks_by_the_answers_need_no_gradient():
    pytest.importorskip("foolbox", reason="attack libraries come with the extra: pip install 'lconvnet[attacks]'")
    images, labels = torch.full((2, 1, 5, 5), 0.1), torch.tensor([0, 0])
    for result in (
        attacks.square(Flat(), images, labels, 0.1, queries=3),
        attacks.pointwise(Flat(), images, labels),
    ):
        assert not result.zero_gradient.any()
