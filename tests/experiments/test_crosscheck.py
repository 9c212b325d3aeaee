"""Contradictions are judged by the arithmetic that certified: float64."""

import dataclasses

import pytest
import torch
from torch import nn

from lconvnet import certify
from lconvnet.attacks import score
from lconvnet.bounds import lipschitz_bound
from lconvnet.experiments.robustness import Certified, ContradictionError, check


@pytest.fixture
def white():
    """A white image of class 1 whose logits are 1 and 1 + 2^-24: a tie in float32, which answers 0."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False)).requires_grad_(False)
    network[1].weight.copy_(torch.tensor([[1, 0], [1, 2.0**-24]]))
    images, labels = torch.ones(1, 1, 1, 2), torch.tensor([1])
    bound = lipschitz_bound(network, input_shape=(1, 1, 2))
    found = certify(network, images, bound=bound)
    assert found.radius.item() == pytest.approx(1)  # 2^-24 over a row distance of 2^-24
    return network, bound, Certified(torch.tensor([0]), images, labels, found.margin, found.radius)


def moved(network, batch, amount):
    """The second pixel lowered by `amount`, which the float32 network answers with 0."""
    result = score(network, batch.images, batch.labels, batch.images - torch.tensor([0, amount]), 1.5)
    assert result.success.item()
    return result


def test_a_flip_of_float32_alone_contradicts_nothing_fools_nobody_and_is_said(white, tmp_path, caplog):
    network, bound, batch = white
    result = moved(network, batch, 0.5)
    assert not check(network, bound, "analytic", batch, result, name="fgsm", evidence=tmp_path).any()
    assert not list(tmp_path.iterdir())
    assert "fgsm changes the answer to 1 certified images inside their radius in float32" in caplog.text


def test_float64_decides_where_it_agrees_with_the_attack(white, tmp_path):
    network, bound, batch = white
    batch = dataclasses.replace(batch, radius=torch.tensor([1.25]).double())
    with pytest.raises(ContradictionError, match="fgsm changed the label of test image 0"):
        check(network, bound, "analytic", batch, moved(network, batch, 1.0), name="fgsm", evidence=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_distance_is_measured_here_not_believed(white, tmp_path):
    network, bound, batch = white
    honest = moved(network, batch, 1.0)
    lie = dataclasses.replace(honest, norm=torch.zeros(1, dtype=torch.float64))
    assert check(network, bound, "analytic", batch, lie, name="fgsm", evidence=tmp_path).all()


def test_a_flip_inside_the_radius_but_beyond_eps_is_a_contradiction_too(white, tmp_path):
    network, bound, batch = white
    batch = dataclasses.replace(batch, radius=torch.tensor([1.25]).double())
    beyond = score(network, batch.images, batch.labels, batch.images - torch.tensor([0, 1.0]), 0.5)
    assert not beyond.success.any()
    with pytest.raises(ContradictionError, match="fgsm changed the label"):
        check(network, bound, "analytic", batch, beyond, name="fgsm", evidence=tmp_path)


def test_evidence_of_two_contradictions_is_kept(white, tmp_path):
    network, bound, batch = white
    result = moved(network, batch, 1.0)
    for radius in (1.25, 1.5, 1.25):
        wrong = dataclasses.replace(batch, radius=torch.tensor([radius]).double())
        with pytest.raises(ContradictionError):
            check(network, bound, "analytic", wrong, result, name="fgsm", evidence=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
