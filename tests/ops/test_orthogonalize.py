"""Orthogonalisation engines against the singular value decomposition, scalar maps and finite differences."""

from functools import partial

import pytest
import torch

from lconvnet.ops.orthogonalize import default_engine, orthogonal_linear, orthogonalize, polar_eigh, polar_linear
from lconvnet.ops.polynomials import (
    SAFETY,
    bjorck,
    bjorck_step,
    coefficients,
    odd_polynomial,
    polar_express,
    residual,
    safe_scale,
)
from lconvnet.ops.products import BLOCK
from lconvnet.ops.whitening import cholesky, cholesky_linear

ENGINES = [
    polar_eigh,
    partial(bjorck, order=1, iterations=40),
    partial(bjorck, order=2, iterations=30),
    partial(bjorck, order=3, iterations=25),
    partial(polar_express, iterations=9, cubic_steps=2),
]


def conditioned(*shape):
    """A matrix with singular values between 0.9 and 1.1, so that rounding is that of one product."""
    U, _, Vh = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    return (U * torch.linspace(0.9, 1.1, min(shape[-2:]), dtype=torch.float64)) @ Vh


@pytest.mark.parametrize("shape", [(5, 5), (4, 9), (9, 4), (3, 4, 7), (1, 6)], ids=str)
@pytest.mark.parametrize("engine", ENGINES)
def test_engines_give_the_polar_factor(engine, shape):
    W = torch.randn(shape, dtype=torch.float64)
    U, _, Vh = torch.linalg.svd(W, full_matrices=False)
    # the iterations end where float64 does; random matrices of this size have condition numbers of at most thousands
    assert torch.allclose(engine(W), U @ Vh, atol=1e-9)


@pytest.mark.parametrize("shape", [(5, 5), (4, 9), (9, 4), (2, 4, 6)], ids=str)
def test_implicit_gradient(shape):
    W = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(polar_eigh, (W,), eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(6, 6), (4, 9)], ids=str)
def test_engines_agree_on_the_gradient(shape):
    W = torch.randn(shape, dtype=torch.float64)
    G = torch.randn(shape, dtype=torch.float64)
    gradients = []
    for engine in ENGINES:
        leaf = W.clone().requires_grad_()
        engine(leaf).backward(G)
        gradients.append(leaf.grad)
    assert all(torch.allclose(gradients[0], other, atol=1e-7) for other in gradients[1:])


@pytest.mark.parametrize("shape", [(5, 5), (4, 9), (9, 4), (2, 4, 6)], ids=str)
def test_cholesky_orthonormalises_in_the_order_of_the_rows(shape):
    W = conditioned(*shape)
    wide = W if shape[-2] <= shape[-1] else W.mT
    Q, R = torch.linalg.qr(wide.mT)
    expected = (Q * R.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)).mT
    U = cholesky(W)
    # the ridge, 2^-18 |S|_F with |S|_F below 2.5, turns rows by half of what it is relative to the eigenvalues of S
    assert torch.allclose(U, expected if shape[-2] <= shape[-1] else expected.mT, rtol=0, atol=1e-5)
    assert residual(U).max() < 1e-14
    W = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(cholesky, (W,), atol=1e-6)


@pytest.mark.parametrize("linear", [cholesky_linear, polar_linear])
@pytest.mark.parametrize("shape", [(4, 6), (6, 4)], ids=str)
def test_gradients_of_products_that_form_no_factor(linear, shape):
    x = torch.randn(3, shape[1], dtype=torch.float64, requires_grad=True)
    W = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(linear, (x, W), atol=1e-6)
    for frozen in ((x.detach(), W), (x, W.detach())):
        assert torch.autograd.gradcheck(linear, frozen, atol=1e-6)


@pytest.mark.parametrize("linear", [cholesky_linear, polar_linear])
@pytest.mark.parametrize("shape", [(BLOCK + 1, BLOCK + 9), (BLOCK + 9, BLOCK + 1), (2 * BLOCK + 3,) * 2], ids=str)
def test_gradients_beyond_one_block(linear, shape):
    """Forming the factor is the oracle, whose gradient is checked above; batched gradients agree with single ones."""
    x = torch.randn(7, shape[1], dtype=torch.float64, requires_grad=True)
    W = conditioned(*shape).requires_grad_()
    engine = cholesky if linear is cholesky_linear else polar_eigh
    G = torch.randn(2, 7, shape[0], dtype=torch.float64)
    y, formed = linear(x, W), x @ engine(W).mT
    # what forms no factor is not finished: 3/8 t^2 with t = 2^-18 sqrt(259) / 0.9^2, and what gradients make of it
    atol = 1e-6 if linear is cholesky_linear else 1e-11
    assert torch.allclose(y, formed, rtol=0, atol=atol)
    expected = [torch.autograd.grad(formed, (x, W), g, retain_graph=True) for g in G]
    batched = torch.autograd.grad(y, (x, W), G, is_grads_batched=True, retain_graph=True)
    for index, theirs in enumerate(expected):
        ours = torch.autograd.grad(y, (x, W), G[index], retain_graph=True)
        assert all(torch.allclose(a, b, rtol=0, atol=atol) for a, b in zip(ours, theirs, strict=True))
        # batched gradients are recorded, and 1e-16 of a sign weighs as much as the slope of f at rho, 2^24
        assert all(torch.allclose(a[index], b, rtol=0, atol=1e-9) for a, b in zip(batched, ours, strict=True))


@pytest.mark.parametrize("engine", [None, cholesky])
@pytest.mark.parametrize("shape", [(5, 5), (4, 9), (9, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_applying_the_factor_equals_forming_it(shape, dtype, engine):
    W = torch.nn.init.orthogonal_(torch.empty(shape, dtype=dtype)) + 0.1 * torch.randn(shape, dtype=dtype)
    x, G = torch.randn(7, shape[1], dtype=dtype), torch.randn(7, shape[0], dtype=dtype)
    results = []
    forming = lambda x, W: x @ orthogonalize(W, engine).T  # noqa: E731
    for apply in (partial(orthogonal_linear, engine=engine), forming):
        leaves = x.clone().requires_grad_(), W.clone().requires_grad_()
        y = apply(*leaves)
        y.backward(G)
        results.append((y, leaves[0].grad, leaves[1].grad))
    # rounding of products with at most nine terms, of matrices with condition numbers of about two
    tolerance = 2e-5 if dtype == torch.float32 else 1e-12
    assert all(torch.allclose(a, b, atol=tolerance) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("about", [0.0, 1.0])
@pytest.mark.parametrize("coefficients", [(1.5, -0.5), (15 / 8, -10 / 8, 3 / 8), (2.0, -3.0, 1.0, 0.5, -0.25)], ids=len)
def test_odd_polynomials_and_their_gradients(coefficients, about):
    X = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    U, s, Vh = torch.linalg.svd(X, full_matrices=False)
    expected = (U * sum(c * s * (s**2 - about) ** k for k, c in enumerate(coefficients)).unsqueeze(-2)) @ Vh
    # sums of some hundred products, of up to 6^9
    assert torch.allclose(odd_polynomial(X, coefficients, about), expected, rtol=1e-11, atol=1e-9)
    f = partial(odd_polynomial, coefficients=coefficients, about=about)
    assert torch.autograd.gradcheck(f, (X,)) and torch.autograd.gradgradcheck(f, (X,))


def apply_to_scalars(step, s):
    """A spectral function acts on a diagonal matrix entry by entry."""
    return step(torch.diag(s)).diagonal()


def test_bjorck_scalar_facts():
    s = torch.linspace(0, 2, 401, dtype=torch.float64)
    assert apply_to_scalars(partial(bjorck_step, order=1), s).abs().max() <= 1
    overshoot = torch.linspace(1, 1.3, 301, dtype=torch.float64)
    assert apply_to_scalars(partial(bjorck_step, order=2), overshoot).max() == pytest.approx(1.084, abs=5e-4)
    assert apply_to_scalars(partial(bjorck_step, order=4), overshoot).max() == pytest.approx(1.031, abs=5e-4)
    assert apply_to_scalars(partial(bjorck_step, order=3), overshoot).max() <= 1 + 1e-15
    inside = torch.linspace(0, 1, 101, dtype=torch.float64)
    for order in range(1, 7):
        image = apply_to_scalars(partial(bjorck_step, order=order), inside)
        assert image.min() >= 0 and image.max() <= 1 + 1e-15


@pytest.mark.parametrize("order", [1, 5, 12, 30])
def test_rounding_does_not_grow_with_the_order(order):
    W = torch.randn(48, 96)
    # a product of 96 terms a hundred times over, each with a rounding error of 6e-8 of what is at most 1
    assert residual(bjorck(W, order=order, iterations=12)).max() < 5e-6


def test_safe_scale_is_an_upper_bound():
    W = torch.randn(200, 4, 7, dtype=torch.float64)
    norms = torch.linalg.matrix_norm(safe_scale(W), 2)
    assert norms.max() <= 1 and norms.min() > 0.2


@pytest.mark.parametrize("iterations", [1, 2, 8])
def test_polar_express_is_its_polynomials(iterations):
    """On a diagonal matrix every singular value goes its own way, through some forty rounded operations."""
    values = torch.tensor([3.0, 2.0, 0.5, 0.01], dtype=torch.float64)
    expected = values / (SAFETY * values.norm())
    for index, (a, b, c) in enumerate(coefficients(iterations)):
        x = expected if index == iterations - 1 else expected / SAFETY
        expected = a * x + b * x**3 + c * x**5
    expected = 1.5 * expected - 0.5 * expected**3
    found = polar_express(values.diag(), iterations=iterations)
    assert torch.allclose(found, expected.diag(), rtol=0, atol=1e-13)


def test_polar_express_published_coefficients():
    published = [
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
        (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
        (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
        (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
        (1.875, -1.25, 0.375),
    ]
    for ours, theirs in zip(coefficients(8), published, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    for ours, theirs in zip(coefficients(6), published[:6], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("lower", [1e-4, 1e-3, 1e-2, 0.1])
def test_polar_express_never_ends_above_one(lower):
    s = torch.logspace(torch.tensor(lower).log10().item(), 0, 300, dtype=torch.float64)
    for iterations in (3, 5, 6, 9):
        x = s / SAFETY
        for index, (a, b, c) in enumerate(coefficients(iterations, lower)):
            safety = SAFETY if index < iterations - 1 else 1.0
            x = a / safety * x + b / safety**3 * x**3 + c / safety**5 * x**5
        cubic = 1.5 * x - 0.5 * x**3
        assert cubic.abs().max() <= 1 + 1e-15
    assert cubic.min() >= 1 - 1e-12


@pytest.mark.parametrize("shape", [(64, 64), (32, 256)], ids=str)
def test_float32_residual(shape):
    W = torch.nn.init.orthogonal_(torch.empty(shape)) + 0.02 * torch.randn(shape)
    # row sums of products with `n` float32 terms each: tens of rounding errors per entry at the very most
    assert 0 < residual(orthogonalize(W)) < 64 * shape[0] * torch.finfo(torch.float32).eps
    assert residual(orthogonalize(W.double())) < 1e-12
    assert residual(W) > 1e-2


def test_residual_bounds_the_singular_values():
    U = orthogonalize(torch.randn(6, 9, dtype=torch.float64))
    W = U * torch.linspace(0.9, 1.1, 6, dtype=torch.float64)[:, None]
    deviation = (torch.linalg.svdvals(W) ** 2 - 1).abs().max()
    assert deviation <= residual(W) + 1e-14 and residual(W) <= 6 * deviation  # equal but for rounding
    assert residual(W.T) == pytest.approx(float(residual(W)))


@pytest.mark.parametrize("condition", [1e1, 1e2, 2e2, 1e3, 1e5])
def test_float64_is_orthogonal_to_round_off_above_the_ridge_and_loses_what_it_says_below(condition):
    U, _, Vh = torch.linalg.svd(torch.randn(32, 48, dtype=torch.float64), full_matrices=False)
    s = torch.logspace(0, -torch.tensor(condition).log10().item(), 32, dtype=torch.float64)
    W = (U * s) @ Vh
    rho = 2**-16 * s.pow(4).sum().sqrt()
    t = (1 - s.square() / rho).clamp_min(0)
    expected = torch.where(t > 0, s * (1 + t / 2 + 3 / 8 * t.square()) / rho.sqrt(), 1)
    assert (expected == 1).all() == (condition < 1e3)
    # round-off of a Gram matrix, relative to its smallest eigenvalue that is not lost
    found = torch.linalg.svdvals(orthogonalize(W))
    assert torch.allclose(found, expected.sort(descending=True).values, rtol=0, atol=1e-10)
    if (expected == 1).all():
        assert residual(orthogonalize(W)) < 1e-12


@pytest.mark.parametrize("rank", [0, 1, 5])
def test_rank_deficient_matrices_give_contractions(rank):
    W = torch.randn(8, rank, dtype=torch.float64) @ torch.randn(rank, 9, dtype=torch.float64)
    assert torch.linalg.matrix_norm(orthogonalize(W), 2) <= 1 + 1e-12
    assert orthogonalize(W.float()).isfinite().all()
    assert residual(orthogonalize(1e-12 * torch.eye(3))) < 1e-6  # tiny but not deficient


def test_engine_follows_device_and_dtype():
    assert default_engine(torch.zeros(2, 2)) is polar_eigh
    assert default_engine(torch.zeros(2, 2, device="meta")) is polar_express
    assert default_engine(torch.zeros(2, 2, device="meta", dtype=torch.float64)) is polar_eigh


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_promoted_and_autocast_is_off(dtype):
    W = torch.randn(16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = orthogonalize(W)
    assert torch.equal(inside, orthogonalize(W))
    assert orthogonalize(W.to(dtype)).dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda W: bjorck(W, order=0), "order=0"),
        (lambda W: bjorck(W, iterations=0), "iterations=0"),
        (lambda W: polar_express(W, iterations=0), "iterations=0"),
        (lambda W: polar_express(W, cubic_steps=0), "cubic_steps=0"),
        (lambda W: polar_express(W, lower=1.0), "lower=1.0"),
    ],
)
def test_options_are_checked(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.eye(2))


@pytest.mark.parametrize("engine", [polar_eigh, cholesky])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_matrices_that_are_not_finite_are_refused(value, engine):
    with pytest.raises(ValueError, match="holds NaN or infinity: load weights that are finite"):
        orthogonalize(torch.full((3, 4), value), engine)
