"""Losses against torch's own implementation and against their formulas, written out."""

import math

import pytest
import torch
from torch.nn import MultiMarginLoss

from lconvnet.losses import Hinge, OffsetCrossEntropy

LOGITS = torch.randn(64, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mul(2)
LABELS = torch.randint(0, 7, (64,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("eps", [0.1, 0.5, 1.5])
@pytest.mark.parametrize("lipschitz", [1.0, 3.0])
def test_hinge_equals_torch_multi_margin_loss(eps: float, lipschitz: float) -> None:
    expected = MultiMarginLoss(margin=math.sqrt(2) * eps * lipschitz)(LOGITS, LABELS)
    # Same sums in another order: float64 round-off on numbers around 1.
    torch.testing.assert_close(Hinge(eps, lipschitz)(LOGITS, LABELS), expected, rtol=1e-13, atol=0)


def test_hinge_gradient_equals_torch() -> None:
    ours, theirs = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    Hinge(1.5)(ours, LABELS).backward()
    MultiMarginLoss(margin=math.sqrt(2) * 1.5)(theirs, LABELS).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("p", "factor"), [(1, 1.0), (2, math.sqrt(2)), (math.inf, 2.0)])
def test_hinge_margin_depends_on_the_norm(p: float, factor: float) -> None:
    assert Hinge(0.3, 2.0, p).margin == pytest.approx(0.3 * 2.0 * factor, rel=1e-15)


def test_hinge_is_zero_exactly_when_every_image_is_certified() -> None:
    loss = Hinge(eps=1.0)
    logits = torch.tensor([[loss.margin, 0.0, -1.0]], dtype=torch.float64)
    assert loss(logits, torch.tensor([0])).item() == 0
    assert loss(logits - torch.tensor([1e-9, 0.0, 0.0]), torch.tensor([0])).item() > 0


@pytest.mark.parametrize("temperature", [0.25, 1.0, 2.0])
@pytest.mark.parametrize("offset", [None, 0.0, 1.7])
def test_offset_cross_entropy_equals_its_formula(temperature: float, offset: float | None) -> None:
    loss = OffsetCrossEntropy(0.8, temperature, offset)
    u = math.sqrt(2) * 0.8 if offset is None else offset
    terms = []
    for f, y in zip(LOGITS.tolist(), LABELS.tolist(), strict=True):
        z = [(value - u * (j == y)) / temperature for j, value in enumerate(f)]
        terms.append(temperature * (math.log(math.fsum(map(math.exp, z))) - z[y]))
    assert loss(LOGITS, LABELS).item() == pytest.approx(math.fsum(terms) / len(terms), rel=1e-13)


def test_default_offset_is_the_margin_that_certifies() -> None:
    assert OffsetCrossEntropy(1.58).margin == pytest.approx(math.sqrt(2) * 1.58, rel=1e-15)


def test_losses_follow_the_dtype_of_the_logits() -> None:
    for loss in (Hinge(1.0), OffsetCrossEntropy(1.0)):
        assert loss(LOGITS.float(), LABELS).dtype == torch.float32
        assert loss(LOGITS, LABELS).dtype == torch.float64


def test_losses_are_values() -> None:
    assert Hinge(1.5) == Hinge(1.5) != Hinge(1.0)
    assert hash(OffsetCrossEntropy(1.5)) == hash(OffsetCrossEntropy(1.5))


@pytest.mark.parametrize("eps", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("make", [Hinge, OffsetCrossEntropy])
def test_a_radius_that_is_none_is_refused(make: type, eps: float) -> None:
    with pytest.raises(ValueError, match=r"eps=.*positive and finite.*e\.g\."):
        make(eps)


def test_other_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lipschitz=0: must be positive"):
        Hinge(1.0, lipschitz=0)
    with pytest.raises(ValueError, match=r"p=0\.5: a norm needs p >= 1"):
        Hinge(1.0, p=0.5)
    with pytest.raises(ValueError, match=r"temperature=-1: must be positive"):
        OffsetCrossEntropy(1.0, temperature=-1)
    with pytest.raises(ValueError, match=r"offset=-1: must be finite and not negative"):
        OffsetCrossEntropy(1.0, offset=-1)


@pytest.mark.parametrize("loss", [Hinge(1.0), OffsetCrossEntropy(1.0)])
@pytest.mark.parametrize(("logits", "labels"), [((3,), (3,)), ((3, 4), (2,)), ((3, 4), (3, 1))])
def test_shapes_that_do_not_fit_are_refused(loss: Hinge, logits: tuple[int, ...], labels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"logits of shape .* pass logits \(B, C\)"):
        loss(torch.zeros(logits), torch.zeros(labels, dtype=torch.int64))


@pytest.mark.parametrize("value", ["0.1", None, [0.1], 1j])
def test_what_is_not_a_number_is_refused_by_name(value):
    with pytest.raises(ValueError, match=r"eps=.*must be positive and finite"):
        Hinge(eps=value)
    with pytest.raises(ValueError, match=r"temperature=.*must be positive and finite"):
        OffsetCrossEntropy(eps=1, temperature=value)
    with pytest.raises(ValueError, match="p=.*a norm needs"):
        Hinge(eps=1, p=value)
