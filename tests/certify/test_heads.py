"""Radii from the rows of the head: any rows, any graph before it, scalings behind it; and attacks that must fail."""

import math

import pytest
import torch
from torch import nn

from lconvnet import certify, layers, lipschitz_bound
from tests.bounds.networks import Branches
from tests.certify.test_certify import linear

ROWS = [[3.0, 0.0], [0.0, 1.0], [-1.0, 0.5]]


class Behind(nn.Module):
    """A head with something behind it."""

    def __init__(self, head, function):
        super().__init__()
        self.head, self.function = head, function
        self.register_buffer("offset", torch.tensor([0.5, -0.25, 0.0]))

    def forward(self, x):
        return self.function(self.head(x), self.offset)


def exact(rows, x, offset=(0.0, 0.0, 0.0), factor=1.0):
    """Distance to the nearest boundary of an affine classifier."""
    W = torch.tensor(rows, dtype=torch.float64) * factor
    z = W @ x.double() + torch.tensor(offset, dtype=torch.float64)
    i = int(z.argmax())
    return min(float((z[i] - z[j]) / (W[i] - W[j]).norm()) for j in range(len(W)) if j != i)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize(
    ("function", "offset", "factor"),
    [
        (lambda z, b: z, (0.0, 0.0, 0.0), 1.0),
        (lambda z, b: 4 * z, (0.0, 0.0, 0.0), 4.0),
        (lambda z, b: z / 0.25 + b, (0.5, -0.25, 0.0), 4.0),
        (lambda z, b: -(b - z) - 1, (-0.5, 0.25, 0.0), 1.0),
        (lambda z, b: 1 - 2 * z, (0.0, 0.0, 0.0), -2.0),
    ],
)
def test_heads_with_scalings_behind_are_exact(normalised, function, offset, factor):
    """The pairwise radius of an affine classifier is the distance itself."""
    rows = [[v / math.hypot(*row) for v in row] for row in ROWS] if normalised else ROWS
    network = Behind(linear(rows), function).eval()
    x = torch.rand(6, 2, generator=torch.Generator().manual_seed(1))
    stored = network.head.weight.double().tolist()
    for image, radius in zip(x, certify(network, x).radius.tolist(), strict=True):
        truth = exact(stored, image, offset, factor)
        assert truth * (1 - 1e-9) < radius <= truth * (1 + 1e-12)


def test_the_minimum_is_over_ratios_not_over_margins():
    """The runner-up in the logits is farther away than the third."""
    network = nn.Sequential(linear([[1.0, 0.0], [-1.0, 0.0], [0.9, 0.1]]))
    x = torch.tensor([[1.0, 0.0]])
    margins = {1: 2.0, 2: 0.1}
    distances = {1: 2.0, 2: math.hypot(0.1, 0.1)}
    assert min(margins[j] / distances[j] for j in margins) == margins[2] / distances[2]
    assert float(certify(network, x).radius) == pytest.approx(0.1 / math.hypot(0.1, 0.1), rel=1e-6)


def test_what_treats_logits_differently_has_the_global_radius():
    """A gain for each class changes the rows, so those of the dense layer say nothing."""
    network = Behind(linear(ROWS), lambda z, b: z * b).eval()
    x = torch.tensor([[1.0, 0.25]])
    upper = lipschitz_bound(network, input_shape=(2,)).upper
    found = certify(network, x)
    assert float(found.radius) == pytest.approx(float(found.margin) / (math.sqrt(2) * upper), rel=1e-9)


def test_normalised_rows_are_never_worse_than_the_global_radius():
    """With unit rows the pairwise radius is at least that of logits that are each 1-Lipschitz."""
    head = nn.Linear(8, 5, bias=False).requires_grad_(False)
    head.weight.data = nn.functional.normalize(head.weight, dim=1)
    network, x = nn.Sequential(head), torch.rand(20, 8)
    found = certify(network, x)
    assert (found.radius >= found.margin / 2 * (1 - 1e-6)).all()


def classifier(seed):
    """A random residual classifier of 1 x 4 x 4 images."""
    torch.manual_seed(seed)
    form = ("additive", "halved", "convex", "l2", "reused")[seed % 5]
    body = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), layers.MaxMin())
    first = nn.Conv2d(1, 2, 2, stride=2)
    network = nn.Sequential(first, layers.Abs(), Branches(form, body), nn.Flatten(), nn.Linear(8, 4), layers.Scale(2.0))
    for tensor in network.parameters():
        tensor.data = torch.randn_like(tensor)
    return network.eval().requires_grad_(False)


def test_no_attack_succeeds_below_the_radius():
    """Projected gradient ascent of the margin inside 0.999999 of the radius, in float64; and at three times it, some
    succeed, so the attack is one."""
    fooled = 0
    for seed in range(10):
        network = classifier(seed)
        x = torch.rand(8, 1, 4, 4)
        found = certify(network, x)
        for reach, allowed in ((1 - 1e-6, False), (3.0, True)):
            adversarial = attack(network.double(), x.double(), found.label, reach * found.radius)
            changed = network(adversarial).argmax(1) != found.label
            assert allowed or not changed.any(), seed
            fooled += int(changed.sum())
        network.float()
    assert fooled > 5


def attack(network, x, labels, radius, steps=40):
    d = torch.zeros_like(x).requires_grad_()
    for _ in range(steps):
        z = network(x + d)
        others = z.scatter(1, labels[:, None], -math.inf).amax(1)
        (slope,) = torch.autograd.grad((others - z.gather(1, labels[:, None])[:, 0]).sum(), d)
        d = d + radius.reshape(-1, 1, 1, 1) / 4 * nn.functional.normalize(slope.flatten(1)).reshape(x.shape)
        length = d.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
        d = (d * (radius.reshape(-1, 1, 1, 1) / length.clamp(min=1e-300)).clamp(max=1.0)).detach().requires_grad_()
    return (x + d).detach()
