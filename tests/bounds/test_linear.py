"""Linear bounds: against linear programs, dense networks, exact rationals, and points inside the ball."""

import itertools
import math
from copy import deepcopy
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from lconvnet.bounds.linear import Rectifier, margin_bounds, relaxation
from lconvnet.layers import MaxMin, Normalize, Sum
from lconvnet.models import kw_large, kw_resnet, kw_small
from tests.oracles import dense_matrix


def dense_network(*widths, seed=0):
    torch.manual_seed(seed)
    layers = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after, dtype=torch.float64), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def polygon(centre, eps, sides, *, around):
    """Half-planes A x <= b of a regular polygon inside the disc, or around it."""
    angles = 2 * math.pi * np.arange(sides) / sides
    A = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return A, A @ centre + eps * (1 if around else math.cos(math.pi / sides))


def program(network, centre, eps, *, around, sides=720):
    """Least and largest pre-activations and the least margins, each by a linear program over input and hidden values.

    Variables are (x, h_1, ..., h_L) with a z <= h_k <= a z + b and z = W h_{k-1} + c; lines from the programs before.
    """
    linears = [m for m in network if isinstance(m, nn.Linear)]
    weights = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in linears]
    disc, limit = polygon(centre, eps, sides, around=around)
    total = 2 + sum(W.shape[0] for W, _ in weights[:-1])
    rows = [np.hstack([disc, np.zeros((sides, total - 2))])]
    limits = [limit]
    start, found = 0, []

    def least(c):
        done = linprog(c, np.vstack(rows), np.concatenate(limits), bounds=(None, None), method="highs")
        assert done.success
        return done.fun

    for W, c in weights[:-1]:
        Z = np.zeros((len(W), total))
        Z[:, start : start + W.shape[1]] = W
        low = np.array([least(z) for z in Z]) + c
        high = -np.array([least(-z) for z in Z]) + c
        found.append((low, high))
        slope = np.where(low >= 0, 1, np.where(high <= 0, 0, high / (high - low)))
        height = np.where((low >= 0) | (high <= 0), 0, -slope * low)
        start += W.shape[1]
        H = np.zeros((len(W), total))
        H[:, start : start + len(W)] = np.eye(len(W))
        below, above = slope[:, None] * Z - H, H - slope[:, None] * Z
        rows += [below, above]
        limits += [-slope * c, slope * c + height]
    W, c = weights[-1]
    Z = np.zeros((len(W), total))
    Z[:, start : start + W.shape[1]] = W
    return found, np.array([least(Z[0] - z) for z in Z[1:]]) + c[0] - c[1:]


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_linear_programs(seed):
    network = dense_network(2, 7, 5, 3, seed=seed)
    centre, eps = torch.tensor([[0.3, 0.6]], dtype=torch.float64), 1.0
    ours = margin_bounds(network, centre, torch.tensor([0]), eps)[0, 1:].numpy()
    inside = program(network, centre[0].numpy(), eps, around=False)
    outside = program(network, centre[0].numpy(), eps, around=True)
    # polygons around the disc and inside it differ from it by 1e-5 of eps, which the layers may magnify
    assert np.allclose(outside[1], ours, atol=1e-4) and np.allclose(inside[1], ours, atol=1e-4)
    open_signs = sum(((low < 0) & (high > 0)).sum() for low, high in outside[0])
    assert open_signs >= 3  # else the relaxation would have nothing to do


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def residual_network():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(4, 6, 4, 2, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1))
    return nn.Sequential(
        Normalize((0.4, 0.5), (0.25, 0.5)), nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(),
        Sum(nn.Conv2d(4, 6, 2, 2), body), nn.ReLU(), nn.Flatten(), nn.Linear(96, 9), nn.ReLU(), nn.Linear(9, 3),
    ).double()  # fmt: skip


def shallow_residual_network():
    """Windows that stay smaller than the image, of different sizes in the two branches."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, (3, 2), padding=(1, 0)))
    return nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.ReLU(), Sum(nn.Conv2d(2, 2, (1, 2)), body), nn.ReLU(), nn.Flatten(), nn.Linear(126, 3),
    ).double()  # fmt: skip


def strange_network():
    """Strides that leave pixels out, dilation, groups, rectangles, two convolutions in a row, no bias."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, (3, 2), (2, 1), padding=(1, 0)), nn.ReLU(), nn.Conv2d(4, 4, 3, dilation=2, padding=2, groups=2),
        nn.Conv2d(4, 3, 3, 3, padding=1, bias=False), nn.ReLU(), nn.Sequential(nn.Flatten(), nn.Linear(18, 3)),
    ).double()  # fmt: skip


def outside_network():
    """Windows that lie wholly outside the image, in one branch and in two."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 2, 1, 3, padding=2), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1))
    shortcut = nn.Conv2d(1, 2, 1, 3, padding=2)
    for conv in (shortcut, body[0]):
        nn.init.ones_(conv.bias)  # the single pixel that is seen counts
    return nn.Sequential(Sum(shortcut, body), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)).double()


def tall_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, (8, 1), padding=(4, 2)), nn.ReLU(), nn.Flatten(), nn.Linear(60, 3)).double()


NETWORKS = {
    "outside": (outside_network, (1, 4, 4)),
    "tall": (tall_network, (1, 4, 2)),
    "residual": (residual_network, (2, 8, 8)),
    "shallow-residual": (shallow_residual_network, (1, 10, 9)),
    "strange": (strange_network, (2, 8, 9)),
    "kw-small": (lambda: seeded(kw_small), (1, 8, 8)),
    "kw-large": (lambda: seeded(kw_large), (1, 8, 8)),
    "kw-resnet": (lambda: seeded(kw_resnet), (1, 8, 8)),
}


def seeded(build):
    torch.manual_seed(0)
    return build(1, 8, 3).double()


def dense(network, shape):
    """The same network with every convolution (and normalisation) as a dense layer, and sums resolved likewise."""
    layers = []
    for module in network:
        x = torch.zeros(1, *shape, dtype=torch.float64)
        after = tuple(module(x).shape[1:])
        if isinstance(module, nn.Conv2d | Normalize | nn.Linear):
            layers.append(affine(module, shape))
        elif isinstance(module, Sum):
            branches = [dense(b if isinstance(b, nn.Sequential) else nn.Sequential(b), shape) for b in module.branches]
            layers.append(Sum(*branches))
        elif isinstance(module, nn.Sequential):
            layers.append(dense(module, shape))
        elif not isinstance(module, nn.Flatten):
            layers.append(module)
        shape = after
    return nn.Sequential(*layers)


def affine(module, shape):
    size = math.prod(shape)
    units = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
    with torch.no_grad():
        offset = module(torch.zeros_like(units[:1])).flatten()
        layer = nn.Linear(size, len(offset), dtype=torch.float64)
        layer.weight.copy_((module(units).flatten(1) - offset).T)
        layer.bias.copy_(offset)
    return layer


EACH = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in ("kw-large", "kw-resnet") else []) for name in NETWORKS],
)


@EACH
def test_convolutions_equal_dense_layers(name, monkeypatch):
    """To rounding, before the budget for it is taken off, which grows with the terms of a sum: 5e-6 for the ResNet."""
    build, shape = NETWORKS[name]
    network, x, y = build(), images(3, *shape), torch.tensor([0, 1, 2])
    found = margin_bounds(network, x, y, 0.1)
    with monkeypatch.context() as unbudgeted:
        unbudgeted.setattr("lconvnet.bounds.linear.gamma", lambda _: 0.0)
        exact = margin_bounds(network, x, y, 0.1)
        flat = margin_bounds(nn.Sequential(*dense(network, shape)), x.flatten(1), y, 0.1)
    assert torch.allclose(exact, flat, rtol=0, atol=1e-12)
    assert (found < exact).logical_or(found.isinf()).all() and torch.allclose(
        found, exact, rtol=0, atol=1e-5 if name == "kw-resnet" else 1e-7
    )
    assert (found < margin_bounds(network, x, y, 0.05)).logical_or(found.isinf()).all()


def margins(network, x, y):
    logits = network(x)
    return logits.gather(1, y[:, None]) - logits


@EACH
def test_no_point_of_the_ball_lies_outside(name):
    build, shape = NETWORKS[name]
    network, x, y, eps = build().requires_grad_(False), images(2, *shape), torch.tensor([0, 2]), 0.3
    bounds = margin_bounds(network, x, y, eps).where(torch.eye(3, dtype=torch.bool)[y].logical_not(), -torch.inf)
    inner = relaxation(network, x, eps).output_bounds()
    points = x[:, None] + eps * sphere(2, 200, *shape)
    for i in range(2):
        assert (margins(network, points[i], y[i].expand(200)) >= bounds[i]).all()
        logits = network(points[i])
        assert (logits >= inner[0][i]).all() and (logits <= inner[1][i]).all()
    lowest = descended(network, x, y, eps)
    assert (lowest >= bounds).all()


@EACH
def test_close_on_small_balls(name):
    build, shape = NETWORKS[name]
    network, x, y, eps = build().requires_grad_(False), images(2, *shape), torch.tensor([0, 2]), 0.001
    others = torch.eye(3, dtype=torch.bool)[y].logical_not()
    reached = (margins(network, x, y) - descended(network, x, y, eps))[others]
    feared = (margins(network, x, y) - margin_bounds(network, x, y, eps))[others]
    # few signs are open there, so the network is nearly linear, where bound and descent agree
    assert (reached <= feared).all() and (reached > 0.5 * feared).all()


def sphere(*shape):
    direction = torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return direction / direction.flatten(2).norm(dim=2).reshape(*shape[:2], 1, 1, 1)


def descended(network, x, y, eps, steps=40):
    """The least margin of every class that projected gradient descent finds inside the ball."""
    found = margins(network, x, y)
    for j in range(found.shape[1]):
        delta = torch.zeros_like(x)
        for _ in range(steps):
            delta.requires_grad_(True)
            value = margins(network, x + delta, y)[:, j]
            (slope,) = torch.autograd.grad(value.sum(), delta) if value.requires_grad else (torch.zeros_like(x),)
            with torch.no_grad():
                delta = delta - eps / 4 * slope / slope.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
                delta = delta * (eps / delta.flatten(1).norm(dim=1).clamp(min=eps))[:, None, None, None]
                delta = delta * (1 - 1e-12)
                found[:, j] = torch.minimum(found[:, j], margins(network, x + delta, y)[:, j])
    return found


def test_exact_where_no_sign_is_open():
    network = dense_network(4, 6, 3)
    with torch.no_grad():
        network[0].bias += 10
    x, y, eps = images(2, 4), torch.tensor([0, 1]), 0.2
    A = network[2].weight @ network[0].weight
    expected = margins(network, x, y) - eps * (A[y][:, None] - A).norm(dim=2)
    found = margin_bounds(network, x, y, eps)
    assert torch.allclose(found[found.isfinite()], expected[found.isfinite()], atol=1e-10)  # budget of rounding
    assert (found[found.isfinite()] <= expected[found.isfinite()]).all()


def test_the_exact_rational_margin_is_above_the_bound_of_the_centre():
    network = dense_network(3, 8, 8, 3).requires_grad_(False)
    with torch.no_grad():
        network[0].weight *= 1e7
        network[4].weight *= 1e7  # logits of 1e13 cancel to margins with an error that shows
    x = images(4, 3)
    found, magnitudes = margin_bounds(network, x, torch.zeros(4, dtype=torch.long), 0.0), []
    for i, point in enumerate(x.tolist()):
        logits = exact(network, point)
        for j in (1, 2):
            true, bound = logits[0] - logits[j], Fraction(found[i, j].item())
            assert bound <= true
            magnitudes.append(float((true - bound) / max(map(abs, logits))))
    assert max(magnitudes) < 1e-10


def exact(network, values):
    values = [Fraction(v) for v in values]
    for module in network:
        if isinstance(module, nn.Linear):
            rows, bias = module.weight.tolist(), module.bias.tolist()
            values = [
                sum((Fraction(w) * v for w, v in zip(row, values, strict=True)), Fraction(b))
                for row, b in zip(rows, bias, strict=True)
            ]
        else:
            values = [max(v, Fraction(0)) for v in values]
    return values


def chain(*matrices):
    layers = [nn.Linear(len(rows[0]), len(rows), dtype=torch.float64) for rows in matrices]
    for layer, rows in zip(layers, matrices, strict=True):
        layer.weight = nn.Parameter(torch.tensor(rows, dtype=torch.float64), requires_grad=False)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


SMALL = 2.0**-537
UNDERFLOWS = {
    "products with the image": (chain([[0.51 * SMALL] * 4 + [-0.49 * SMALL] * 5, [0.0] * 9]), [SMALL] * 9, 0.0),
    "a coefficient of large values": (chain([[2.0**400]], [[2.0**-600]], [[-(2.0**-600)], [0.0]]), [1.0], 0.0),
    "squares of coefficients": (chain([[2.0**-600] * 3, [0.0] * 3]), [0.0] * 3, 0.25),
    "rectified": (
        nn.Sequential(*chain([[2.0**400]]), nn.ReLU(), *chain([[2.0**-600]], [[-(2.0**-600)], [0.0]])),
        [1.0],
        0.0,
    ),
}


def test_what_underflows_in_a_branch_is_taken_off():
    body, nothing = chain([[2.0**-600]], [[-(2.0**-600)], [0.0]]), chain([[0.0], [0.0]])
    network = nn.Sequential(*chain([[2.0**400]]), Sum(nothing, body))
    found = margin_bounds(network, torch.ones(1, 1, dtype=torch.float64), torch.tensor([0]), 0.0)[0, 1].item()
    assert -1e-100 < found <= -(2.0**-800)


def test_magnitudes_that_underflow_are_not_forgotten():
    network = chain([[2.0**-600]], [[2.0**-600]], [[2.0**600]])
    assert relaxation(network, torch.ones(1, 1, dtype=torch.float64), 0.0).magnitude.item() >= 2.0**-600


@pytest.mark.parametrize("name", UNDERFLOWS)
def test_what_underflows_is_taken_off(name):
    """The exact margin at a point of the ball, negative, where the computed one is zero or above."""
    network, point, eps = UNDERFLOWS[name]
    found = margin_bounds(network, torch.tensor([point], dtype=torch.float64), torch.tensor([0]), eps)[0, 1].item()
    lowest = [Fraction(v) - Fraction(eps) / len(point) for v in point]  # not in [0, 1]: the ball is the whole one
    first, second = exact(network, lowest)
    assert first < second and Fraction(found) <= first - second
    assert found > -1e-100  # nothing that an image could feel


ENDS = [(-1.0, 1.0), (-1e-9, 3.0), (-3.0, 1e-9), (-0.1, 0.3), (-5e-324, 5e-324), (-1.5e-323, 1e-323), (-1e200, 1e-200)]


@pytest.mark.parametrize(
    ("low", "high"), [*ENDS, *(tuple(e) for e in (images(200, 2) - torch.tensor([1, 0])).tolist())]
)
def test_lines_enclose_relu_exactly(low, high):
    """In rationals: at zero and at both ends, between which lines and ReLU are straight."""
    line = Rectifier(*(torch.tensor([[end]], dtype=torch.float64) for end in (low, high)))
    slope, intercept = Fraction(line.slope.item()), Fraction(line.intercept.item())
    for z in (Fraction(low), Fraction(0), Fraction(high)):
        assert slope * z <= max(z, 0) <= slope * z + intercept
    # the least intercept over this slope, but for a relative 2^-49
    least = max(-slope * Fraction(low), Fraction(high) * (1 - slope))
    assert intercept <= least * (1 + Fraction(2) ** -49) + Fraction(2) ** -1020


BUDGETED = {
    "dense": (lambda: [nn.Linear(2, 500), nn.Linear(500, 2)], (2,), 500),
    "convolution": (lambda: [nn.Conv2d(1, 64, 3, padding=1), nn.Conv2d(64, 2, 3)], (1, 3, 3), 64 * 9),
    "image": (lambda: [nn.Linear(500, 2)], (500,), 500),
    "relu": (lambda: [nn.Linear(2, 500), nn.ReLU(), nn.Linear(500, 2)], (2,), 500),
}


@pytest.mark.parametrize("name", BUDGETED)
def test_the_budget_covers_the_longest_sum(name):
    """A sum of n products can be off by n u times the sum of their absolute values, whatever its order
    (Higham 2002, section 3.1): at a ball without radius, this is what lower and upper bounds must leave."""
    torch.manual_seed(0)
    build, shape, terms = BUDGETED[name]
    network = nn.Sequential(*build()).double().requires_grad_(False)
    x = images(1, *shape)
    lower, upper = relaxation(network, x, 0.0).output_bounds()
    r = x
    for module in network:
        if not isinstance(module, nn.ReLU):  # R of a rectified value is that of the value, or 0
            module.weight.abs_(), module.bias.abs_()
            r = module(r)
    left, needed = (upper - lower) / 2, terms * 2.0**-53 * r
    if name == "relu":
        needed = needed / 8  # about half of the values are rectified
    assert (left >= needed).all()
    assert (left <= 40 * needed).all()  # and little more


def convolutional(kernel, stride, seed):
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(1, 2, kernel, stride, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )
    network(torch.zeros(1, 1, 3, 3))
    return network.double().requires_grad_(False)


@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 1)])
def test_bounds_lie_below_those_of_exact_rationals(kernel, stride):
    """The same relaxation, its lines taken as they are, carried back in rationals: A x + d - eps |A|."""
    eps, shape = 1.0, (1, 3, 3)
    network, x = convolutional(kernel, stride, 0), images(1, *shape)
    found = margin_bounds(network, x, torch.tensor([0]), eps)[0]
    steps = relaxation(network, x, eps).steps
    assert any(bool(((s.slope > 0) & (s.slope < 1)).any()) for s in steps if isinstance(s, Rectifier))  # open signs
    for j in (1, 2):
        A, constant = [Fraction(int(k == 0) - int(k == j)) for k in range(3)], Fraction(0)
        for module, step in reversed(list(zip(network, steps, strict=True))):
            A, constant = carried_back(module, step, A, constant, shape)
        middle = sum(a * Fraction(v) for a, v in zip(A, x.flatten().tolist(), strict=True)) + constant
        gap = middle - Fraction(found[j].item())
        square = Fraction(eps) ** 2 * sum(a * a for a in A)
        assert gap >= 0 and gap**2 >= square
        assert float(gap) - math.sqrt(square) < 1e-11


def carried_back(module, step, A, constant, shape):
    if isinstance(module, nn.Flatten):
        return A, constant
    if isinstance(step, Rectifier):
        slopes, heights = ([Fraction(v) for v in t.flatten().tolist()] for t in (step.slope, step.intercept))
        constant += sum(a * h for a, h in zip(A, heights, strict=True) if a < 0)
        return [a * s for a, s in zip(A, slopes, strict=True)], constant
    rows, bias = module.weight.tolist(), module.bias.tolist()
    if isinstance(module, nn.Conv2d):
        sides = tuple(step.output_shape[1:])
        linear = deepcopy(module)
        nn.init.zeros_(linear.bias)
        rows = dense_matrix(linear, shape[0], shape[1:]).tolist()  # entries are single weights: nothing is rounded
        bias = [b for b in bias for _ in range(math.prod(sides))]
    constant += sum(a * Fraction(b) for a, b in zip(A, bias, strict=True))
    return [
        sum(a * Fraction(w) for a, w in zip(A, column, strict=True)) for column in zip(*rows, strict=True)
    ], constant


def test_examples_do_not_depend_on_their_batch():
    network, shape = residual_network(), (2, 8, 8)
    x, y = images(4, *shape), torch.tensor([0, 1, 2, 0])
    together = margin_bounds(network, x, y, 0.2)
    for i in range(4):
        # matrix products of another size may sum in another order
        assert torch.allclose(margin_bounds(network, x[i : i + 1], y[i : i + 1], 0.2), together[i : i + 1], atol=1e-9)


def hooked():
    network = dense_network(2, 3, 2)
    network[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    return network


def negated():
    normalise = Normalize((0.0,), (0.5,))
    normalise.std = (-0.5,)
    return nn.Sequential(normalise, nn.Flatten(), nn.Linear(4, 2))


def replaced():
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(4, 2))
    network[0]._conv_forward = lambda x, weight, bias: 9 * x
    return network


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2), MaxMin()), (2,), r"'1' \(MaxMin\) has no linear bounds: build of"),
        (nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular")), (1, 4, 4), "padding_mode='circular'"),
        (nn.Sequential(nn.Conv2d(1, 2, 3)), (4,), r"'0' meets an input of shape \(4,\)"),
        (nn.Sequential(nn.Linear(4, 2)), (1, 2, 2), "flatten first"),
        (nn.Sequential(nn.Linear(4, 1)), (4,), "two or more"),
        (nn.Sequential(nn.Flatten(0)), (4,), "Flatten"),
        (nn.Sequential(Sum(nn.Linear(4, 3), nn.Linear(4, 2))), (4,), "shapes"),
        (hooked(), (2,), "'1' has a hook"),
        (negated(), (1, 2, 2), "std=.*both must be finite, std positive"),
        (replaced(), (1, 2, 2), "'0' has a hook or a replaced _conv_forward"),
        (nn.Sequential(Sum(nn.ReLU(inplace=True), nn.Linear(2, 2))), (2,), "'0.0' works in place.*inplace=False"),
        (nn.Sequential(Sum(nn.Flatten(), nn.Sequential(nn.ReLU(inplace=True)))), (2,), "'0.1.0' works in place"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused(network, shape, message):
    with pytest.raises(ValueError, match=message):
        margin_bounds(network, torch.rand(1, *shape), torch.tensor([0]), 0.1)


def test_global_hooks_are_refused():
    hook = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: 2 * output)
    try:
        with pytest.raises(ValueError, match="has a global forward hook"):
            margin_bounds(dense_network(2, 3, 2), images(1, 2), torch.tensor([0]), 0.1)
    finally:
        hook.remove()


def test_nan_weights_images_and_radii_are_refused():
    network = dense_network(2, 3, 2)
    with pytest.raises(ValueError, match="eps=-1"):
        margin_bounds(network, images(1, 2), torch.tensor([0]), -1)
    with pytest.raises(ValueError, match=r"values from 0 to 2"):
        margin_bounds(network, torch.tensor([[0.0, 2.0]]), torch.tensor([0]), 0.1)
    with torch.no_grad():
        network[0].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="'0': weight .* NaN"):
        margin_bounds(network, images(1, 2), torch.tensor([0]), 0.1)


def test_labels_and_shapes_that_are_none_are_refused():
    network = nn.Sequential(nn.Flatten(), dense_network(12, 3, 2))
    for label, message in (
        (5, "labels has values from 5 to 5: .*classes 0 to 1"),
        (2, "labels has values from 2 to 2: .*classes 0 to 1"),
        (-1, "labels has the class -1: classes count from 0"),
    ):
        with pytest.raises(ValueError, match=message):
            margin_bounds(network, images(1, 12), torch.tensor([label]), 0.1)
    with pytest.raises(ValueError, match=r"images has shape \(1, 3, 4\): linear bounds take"):
        margin_bounds(network, images(1, 3, 4), torch.tensor([0]), 0.1)


@pytest.mark.parametrize("name", ["residual", "strange", "kw-small"])
def test_no_images_have_no_bounds(name):
    build, shape = NETWORKS[name]
    assert margin_bounds(build(), images(0, *shape), torch.zeros(0, dtype=torch.long), 0.1).shape == (0, 3)


def test_overflow_certifies_nothing():
    network = dense_network(2, 3, 2)
    with torch.no_grad():
        network[0].weight *= 1e200
        network[2].weight *= 1e200
    assert not (margin_bounds(network, images(1, 2), torch.tensor([0]), 0.1)[0, 1] > 0)


def test_windows_equal_the_dense_matrix():
    conv = nn.Conv2d(2, 3, 3, 2, padding=1, dtype=torch.float64)
    found = relaxation(nn.Sequential(conv), images(1, 2, 5, 6), 0.5).output_bounds()
    norms = dense_matrix(conv, 2, (5, 6)).norm(dim=1).reshape(3, 3, 3)
    assert torch.allclose((found[1] - found[0])[0] / 2, 0.5 * norms, atol=1e-11)  # float64 and its budget
