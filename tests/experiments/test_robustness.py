"""Contradictions are judged by the arithmetic that certified: float64."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lconvnet.attacks.result import score
from lconvnet.bounds import lipschitz_bound
from lconvnet.data import Images
from lconvnet.experiments import robustness
from lconvnet.experiments.config import Fgsm


@pytest.fixture
def subject(tmp_path):
    """A white image of class 1 whose logits are 1 and 1 + 2^-24: a tie in float32, which answers 0."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False)).requires_grad_(False)
    network[1].weight.copy_(torch.tensor([[1, 0], [1, 2.0**-24]]))
    images = Images(torch.full((1, 1, 1, 2), 255, dtype=torch.uint8), torch.tensor([1]), 2, "white")
    bound = lipschitz_bound(network, input_shape=(1, 1, 2))
    return robustness.Subject(network, bound, images, tmp_path / "evidence", 8, lambda message: None)


def attacked_by(moved, subject, certificates, monkeypatch):
    """The row of an attack that subtracts `moved` from the second pixel."""

    def attack(network, images, labels, eps):
        result = score(network, images, labels, images - torch.tensor([0, moved]), eps)
        assert result.success.item(), "the float32 network answers 0"
        return result

    monkeypatch.setattr(robustness, "names", SimpleNamespace(ATTACKS={"fgsm": attack}))
    return robustness.attacked_row(subject, certificates, Fgsm(name="fgsm"), 1.5, 1, seed=0)


def test_a_flip_of_float32_alone_contradicts_nothing_fools_nobody_and_is_said(subject, monkeypatch, caplog):
    certificates = robustness.certify_all(subject)
    assert certificates.radius.item() == pytest.approx(1)  # 2^-24 over a row distance of 2^-24
    row = attacked_by(0.5, subject, certificates, monkeypatch)
    assert row == {"fgsm-ub": 1.0, "fgsm-ub-dist": 0.0, "fgsm-ub-success-rate": 0.0}
    assert not subject.evidence.exists()
    assert "fgsm changes the answer to 1 certified images inside their radius in float32" in caplog.text


def test_float64_decides_where_it_agrees_with_the_attack(subject, monkeypatch):
    certificates = dataclasses.replace(robustness.certify_all(subject), radius=torch.tensor([1.25]).double())
    with pytest.raises(robustness.ContradictionError, match="fgsm changed the label of test image 0"):
        attacked_by(1.0, subject, certificates, monkeypatch)
    assert len(list(subject.evidence.iterdir())) == 1
