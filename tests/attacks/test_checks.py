"""What all attacks ask alike: labels that are classes, counts that count, and a network that they leave as it was."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lconvnet import attacks

pytest.importorskip("foolbox", reason="attack libraries come with the extra: pip install 'lconvnet[attacks]'")

WITHIN = {"fgsm": {}, "pgd": {"steps": 2}, "apgd": {"steps": 2}, "square": {"queries": 2}}
SHORTEST = {
    "deepfool": {"steps": 2},
    "carlini_wagner": {"steps": 2, "binary_search_steps": 1},
    "ddn": {"steps": 2},
    "fmn": {"steps": 2},
    "boundary_attack": {"steps": 2},
    "hop_skip_jump": {"steps": 1, "max_gradient_eval_steps": 10},
    "pointwise": {},
}
OPTIONS = WITHIN | SHORTEST
# it has no number of steps that could be small
WITHOUT_POINTWISE = [pytest.param(name, marks=[pytest.mark.slow] * (name == "pointwise")) for name in OPTIONS]
IMAGES = torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2])


def run(name, network, images=IMAGES, labels=LABELS, *, eps: Any = 0.3, **options):
    arguments = () if name in SHORTEST else (eps,)
    return getattr(attacks, name)(network, images, labels, *arguments, **OPTIONS.get(name, {}) | options)


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(36, 3)).to(dtype)


@pytest.mark.parametrize("name", [*OPTIONS, "autoattack"])
def test_unusable_arguments(name):
    for images, labels, message in (
        (IMAGES, LABELS + 5, "labels has the class 7, the network has 3 classes"),
        (IMAGES[:0], LABELS[:0], "nothing to attack"),
        (IMAGES, LABELS[:2], r"expected \(3,\)"),
        (torch.rand(3, 1, 5, 5), LABELS, r"network cannot take an image of shape \(1, 5, 5\)"),
        (IMAGES.to("meta"), LABELS, r"images is on the meta device"),
    ):
        with pytest.raises(ValueError, match=message):
            run(name, network(), images, labels)
    with pytest.raises(ValueError, match="attacks need"):
        run(name, nn.Flatten(0), IMAGES, LABELS)
    for option in inspect.signature(getattr(attacks, name)).parameters:
        for value in {"steps": (0, 2.5, True), "queries": (0,), "step_size": (0, -1, "1"), "seed": (None, 2**70)}.get(
            option, ()
        ):
            with pytest.raises(ValueError, match=f"{option}={value!r}: must be"):
                run(name, network(), **{option: value})
        for eps in ("0.1", None, -1.0, torch.ones(2), 10**400, 1j) if option == "eps" else ():
            with pytest.raises(ValueError, match="eps"):
                run(name, network(), eps=eps)


@pytest.mark.parametrize("name", WITHOUT_POINTWISE)
def test_a_network_in_training_mode_is_attacked_as_in_eval_mode_and_left_alone(name):
    given = network()
    state = {key: value.clone() for key, value in given.state_dict().items()}
    found = run(name, given)
    assert given.training and all(module.training for module in given.modules())
    assert all(torch.equal(value, state[key]) for key, value in given.state_dict().items())
    assert torch.equal(found.adversarial, run(name, given.eval()).adversarial)


@pytest.mark.parametrize("name", WITHOUT_POINTWISE)
def test_modes_of_gradients_and_dtypes_change_nothing(name):
    expected = run(name, network().eval()).adversarial
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(run(name, network().eval(), IMAGES.clone(), LABELS.clone()).adversarial, expected)
    assert torch.equal(run(name, network().eval(), IMAGES.clone().requires_grad_()).adversarial, expected)
    wide = run(name, network(torch.float64))
    assert wide.adversarial.dtype == torch.float32
    assert (wide.norm > 0)[wide.success].any() == (run(name, network()).norm > 0)[wide.success].any()


@pytest.mark.parametrize("name", [*OPTIONS, pytest.param("autoattack", marks=pytest.mark.slow)])
def test_a_network_of_equal_logits_is_attacked_in_vain(name):
    dead = network()
    for parameter in dead[2].parameters():
        nn.init.zeros_(parameter)
    found = run(name, dead, labels=torch.zeros(3, dtype=torch.long))
    assert not found.success.any()


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_unusable_losses(name):
    for loss, message in (
        (nn.CrossEntropyLoss, "loss is the class CrossEntropyLoss: pass a name or a callable"),
        (nn.CrossEntropyLoss(reduction="none"), r"loss gives shape \(3,\)"),
        (lambda logits, labels: 1.0, "loss gives float"),
    ):
        with pytest.raises(ValueError, match=message):
            run(name, network(), loss=loss)


@pytest.mark.parametrize("name", ["pgd", "ddn"])
def test_integers_of_numpy_are_integers(name):
    given = {"steps": np.int64(2), "seed": np.uint8(3)}
    assert torch.equal(run(name, network(), **given).adversarial, run(name, network(), steps=2, seed=3).adversarial)


def test_vectors_have_no_squares():
    with pytest.raises(ValueError, match=r"square needs \(B, C, H, W\)"):
        run("autoattack", nn.Linear(36, 3), IMAGES.flatten(1))
