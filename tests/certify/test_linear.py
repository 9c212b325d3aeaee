"""Certificates from linear bounds: what they prove no attack breaks, and what they add to a Lipschitz bound."""

import torch
from torch import nn

from lconvnet.attacks import pgd
from lconvnet.bounds.linear import margin_bounds
from lconvnet.certify import certified_at, certify, linear_margins


def fitted():
    """A small network that is sure of some images and not of others."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3))
    x, y = torch.rand(60, 1, 8, 8) * 0.4, torch.arange(60) % 3
    for i in range(60):
        x[i, 0, :, 2 * (i % 3) : 2 * (i % 3) + 3] += 0.05 * (i % 7)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    return network.eval().requires_grad_(False), x


def test_certified_and_attacked_never_both():
    network, images = fitted()
    plain, eps = certify(network, images), 0.1
    margins = linear_margins(network, images, plain.label, eps)
    found = certified_at(plain, margins, eps)
    proved = found.radius > eps
    assert torch.equal(proved, (margins > 0) | (plain.radius > eps))
    assert (plain.radius <= eps)[proved].any()  # more than the product of norms proves
    assert 0 < proved.sum() < len(images)
    fooled = pgd(network, images, found.label, eps, steps=30, step_size=0.02, seed=0).success
    assert not (fooled & proved).any()
    assert fooled.any()


def test_batches_give_the_bounds_of_a_ball_that_is_hardly_wider():
    network, images = fitted()
    labels = torch.zeros(len(images), dtype=torch.long)
    margins = linear_margins(network, images, labels, 0.1, batch_size=7)
    exact = margin_bounds(network, images, labels, 0.1).amin(1)
    assert (margins < exact + 1e-12).all()
    assert torch.allclose(margins, exact, atol=1e-8)  # 1e-12 of the radius, and the order of sums in other batches
