"""Certified estimates against distances that are known: close, and never above beyond what the interval says."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import RMSprop

from lconvnet.layers import MaxMin, OrthogonalLinear
from lconvnet.models import mlp
from lconvnet.wasserstein import Estimate, dense_critic, estimate
from tests.wasserstein import forms
from tests.wasserstein.forms import Form


def check(found: Estimate, distance: float) -> None:
    """The interval is within 1 % of its middle, reaches 99 % of the distance, and does not lie above it."""
    low, high = found.interval
    assert high - low < 0.02 * distance, found
    assert high >= 0.99 * distance, found
    assert low <= distance * (1 + 1e-9), found  # round-off of a float64 mean


def run(form: Form, **options) -> Estimate:
    return estimate(form.real, form.fake, progress=False, **options)


def test_translation_needs_one_layer():
    critic = nn.Sequential(OrthogonalLinear(10, 1))
    found = run(forms.translation(10), critic=critic, steps=300, held_out=20_000)
    check(found, 5.0)
    assert found.lower_bound == pytest.approx(5.0, rel=3e-3)  # three standard errors of the held-out means


def test_bright_square():
    """One fold is enough; every sample has the same |f|, so that only what was not seen gives the interval a width."""
    critic = mlp(64 * 64, 1, (4,), linear=OrthogonalLinear)
    found = run(forms.squares(), critic=critic, steps=150, batch_size=8, held_out=1000)
    check(found, 35.0)
    assert found.units == "l2 over 1x64x64 values as given"


def test_one_dimension():
    critic = mlp(1, 1, (8,), linear=OrthogonalLinear)
    found = run(forms.widths(), critic=critic, steps=300, batch_size=256, held_out=400_000)
    check(found, forms.widths().distance)


@pytest.mark.slow
@pytest.mark.parametrize(
    "form",
    [forms.translation(10), forms.gaussians(10), forms.shells(2), forms.shells(10), forms.cone(2), forms.cone(10)],
    ids=["translation 10", "gaussians 10", "shells 2", "shells 10", "cone 2", "cone 10"],
)
def test_default_critic(form):
    check(run(form, steps=4000, held_out=100_000), form.distance)


@pytest.mark.slow
@pytest.mark.parametrize("form", [forms.shells(2), forms.cone(2)], ids=["shells", "cone"])
def test_relu_stays_below(form):
    """ReLU cannot keep the norm of gradients on both sides of a kink (Anil, Lucas & Grosse 2019)."""
    points = form.real.sample(64, torch.Generator().manual_seed(0))
    folding, relu = (dense_critic(points, activation=act) for act in (MaxMin, nn.ReLU))
    options = {"steps": 250, "held_out": 2000, "optimizer": partial(RMSprop, lr=1e-2)}
    low, high = run(form, critic=relu, **options), run(form, critic=folding, **options)
    assert low.interval[1] < 0.8 * form.distance < 0.9 * form.distance < high.interval[0]
