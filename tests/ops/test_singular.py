"""Matrices that no basis belongs to: engines pass through them, finite, contracting and without a jump."""

from functools import partial

import pytest
import torch

from lconvnet.kernels import BCOP, L2NE, OSSN, RKL2NE, RKO, SVCM, Kernel, Orthogonal, Promise, SpectralNorm
from lconvnet.layers import LipschitzConv2d, LipschitzLinear, constrained
from lconvnet.ops import orthogonalize as choosing
from lconvnet.ops.fourier import transfer_matrices
from lconvnet.ops.orthogonalize import LINEAR, default_engine, orthogonal_linear, orthogonalize, polar_eigh
from lconvnet.ops.polynomials import bjorck, polar_express
from lconvnet.ops.whitening import cholesky

# an engine and the largest slope of its function of a singular value, relative to the norm of the matrix
ENGINES = {
    "cholesky": (cholesky, 2 * 2**9),
    "polar_eigh": (polar_eigh, 2 * 2**8),
    "polar_express": (polar_express, 1.1e4),
    "bjorck": (bjorck, 1.5**20),
    "bjorck2": (partial(bjorck, order=2, iterations=12), 1.875**12),
    "bjorck3": (partial(bjorck, order=3, iterations=8), 2.1875**8),
}
# how far float32 turns a vanishing direction: some roundings times the slope, or what it rounds off S over the ridge
FLOAT32 = dict.fromkeys(ENGINES, 2e-3) | {"polar_eigh": 2e-2, "cholesky": 2e-2}
# the order between the others is slow
every_engine = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "bjorck2")) for name in ENGINES]
)
SHAPES = [(4, 4), (3, 6), (6, 3)]
CROSSINGS = 1000


def crossings(shape, steps):
    """A thousand walks through singular matrices: the smallest singular value changes its sign."""
    U, s, Vh = torch.linalg.svd(torch.randn(CROSSINGS, 1, *shape, dtype=torch.float64), full_matrices=False)
    s = (s / s[..., :1]).expand(-1, len(steps), -1).clone()
    s[..., -1] = torch.as_tensor(steps, dtype=torch.float64)
    return (U * s.unsqueeze(-2)) @ Vh


@every_engine
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_thousand_crossings(name, shape):
    engine, _ = ENGINES[name]
    steps = [sign * size for size in (1e-2, 1e-3, 0.0) for sign in (-1, 1)]
    W = crossings(shape, steps).float().requires_grad_()
    U = engine(W)
    U.backward(torch.randn_like(U))
    assert W.grad is not None and W.grad.isfinite().all()
    values = torch.linalg.svdvals(U.detach().double())
    # a polynomial ends at 1 up to some roundings; a factor of a Gram matrix has those of S, relative to the ridge
    assert values.max() <= 1 + 1e-4
    assert values[..., -2].min() > 0.1  # what is far from singular stays
    exact = engine(W.detach().double())
    assert torch.linalg.matrix_norm(U.detach() - exact, 2).max() < FLOAT32[name]
    assert torch.linalg.matrix_norm(exact, 2).max() <= 1 + 1e-12


@every_engine
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_small_step_is_a_small_step(name, shape):
    engine, slope = ENGINES[name]
    steps = torch.linspace(-1.05e-3, 1.05e-3, 22, dtype=torch.float64)
    U = engine(crossings(shape, steps))
    jumps = torch.linalg.matrix_norm(U.diff(dim=1), 2)
    assert jumps.max() <= slope * 1e-4  # steps are of 1e-4
    assert jumps.max() > 0.02 * slope * 1e-4  # and the vanishing direction does change


@pytest.mark.parametrize("engine", LINEAR)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_that_form_no_factor_cross_too(engine, shape):
    x, G = torch.randn(5, shape[1]), torch.randn(5, shape[0])
    for W in crossings(shape, [1e-3, 0.0, -1e-3]).float()[:30].flatten(0, 1):
        leaves = x.clone().requires_grad_(), W.clone().requires_grad_()
        y = orthogonal_linear(leaves[0], leaves[1], engine=engine)
        gradients = torch.autograd.grad(y, leaves, G)
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert torch.allclose(y, x @ engine(W.double()).float().T, rtol=0, atol=0.1)


def special(shape):
    """Zeros, equal rows, a row or a column of zeros, rank 1."""
    generic = torch.randn(shape)
    twice, row, column = generic.clone(), generic.clone(), generic.clone()
    twice[1], row[0], column[:, 0] = twice[0], 0, 0
    return [torch.zeros(shape), twice, row, column, torch.randn(shape[0], 1) @ torch.randn(1, shape[1])]


@every_engine
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("shape", [(4, 4), (6, 3), (130, 132)], ids=str)
def test_special_matrices_of_any_scale(name, scale, shape):
    engine, _ = ENGINES[name]
    for W in special(shape):
        leaf = (scale * W).requires_grad_()
        U = orthogonalize(leaf, engine)
        (U * torch.linspace(-1, 1, U.numel()).view_as(U)).sum().backward()
        assert leaf.grad is not None and leaf.grad.isfinite().all()
        assert torch.linalg.matrix_norm(U.detach().double(), 2) <= 1 + 1e-4
        x = torch.randn(3, shape[1], requires_grad=True)
        y = orthogonal_linear(x, leaf, engine=engine)
        gradients = torch.autograd.grad(y.square().sum(), (x, leaf))
        assert all(gradient.isfinite().all() for gradient in gradients)


@every_engine
def test_the_scale_changes_nothing(name):
    """Powers of two are exact: outputs are the same bits, and gradients as many times larger as weights are smaller."""
    engine, _ = ENGINES[name]
    W, x = torch.randn(5, 7), torch.randn(3, 7)
    for forming in (True, False):
        found = []
        for exponent in (0, -60, 60):
            leaf = (W * 2.0**exponent).requires_grad_()
            y = x @ orthogonalize(leaf, engine).T if forming else orthogonal_linear(x, leaf, engine=engine)
            found.append((y, torch.autograd.grad(y.sum(), leaf)[0] * 2.0**exponent))
        for y, grad in found[1:]:
            assert torch.equal(y, found[0][0]) and torch.equal(grad, found[0][1])


@pytest.mark.parametrize("name", [*ENGINES, "l2ne"])
@pytest.mark.parametrize("shape", [(5, 2), (2, 5), (4, 4), (130, 132)], ids=str)
def test_every_finite_weight_has_an_output_and_a_gradient(name, shape):
    """From subnormal numbers to the largest ones; gradients grow as weights shrink, down to 2^-110."""
    kernel = L2NE if name == "l2ne" else partial(Orthogonal, engine=ENGINES[name][0])
    layer = LipschitzLinear(shape[1], shape[0], kernel=kernel)
    free = next(layer.kernel.parameters())
    start = torch.rand(shape) * 2 - 1
    x = torch.randn(3, shape[1], requires_grad=True)
    expected = None
    for scale in (1.0, 3e38, 1e34, 1e-32, 1e-37, 1e-40, 1e-44):
        with torch.no_grad():
            free.copy_(start * scale)
        y = layer(x)
        gradients = torch.autograd.grad(y.square().sum(), (x, free))
        assert all(gradient.isfinite().all() for gradient in gradients)
        expected = y.detach() if expected is None else expected
        if scale > 1e-33:
            assert gradients[1].abs().max() > 0
            assert (y - expected).norm() < 1e-2 * expected.norm()  # the scale changes nothing
        assert (y - layer.bake()(x)).norm() < 2e-2 * y.norm()


@every_engine
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_baked_layers_are_the_trained_ones(name, shape):
    engine, _ = ENGINES[name]
    layer = LipschitzLinear(shape[1], shape[0], kernel=partial(Orthogonal, engine=engine))
    x = torch.nn.functional.normalize(torch.randn(50, shape[1]), dim=1)
    for W in [*special(shape)[1:], *crossings(shape, [1e-2, 1e-3, 1e-4, 0.0]).float()[:5].flatten(0, 1)]:
        with torch.no_grad():
            layer.kernel.V.copy_(W)
        plain = layer.bake()
        assert isinstance(plain, torch.nn.Linear)
        assert (layer(x) - plain(x)).norm(dim=1).max() < FLOAT32[name]
        assert torch.linalg.matrix_norm(plain.weight.double(), 2) <= 1 + 1e-6


def as_on_an_accelerator(W):
    """What `default_engine` returns for a tensor of this dtype there."""
    return default_engine(torch.empty(0, device="meta", dtype=W.dtype))


class Called(Kernel):
    """A user's kernel that holds another one."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.part = Orthogonal(inputs, outputs)

    def forward(self):
        return self.part()


@pytest.mark.parametrize(
    "build",
    [
        lambda: LipschitzLinear(6, 6),
        lambda: LipschitzLinear(6, 6, kernel=Called),
        lambda: LipschitzConv2d(6, 6, 3),
        lambda: LipschitzConv2d(6, 6, 1, kernel=RKO),
    ],
    ids=["orthogonal", "a part of a kernel", "bcop", "rko"],
)
def test_what_an_accelerator_chooses_is_what_is_baked(build, monkeypatch):
    """Polar Express and the eigen-decomposition keep 0.86 and 0.17 of a singular value of 1/1000."""
    layer = build()
    with torch.no_grad():
        next(layer.kernel.parameters()).copy_(crossings((6, 6), [1e-3])[0, 0])
    ours = layer.exact_weight()
    for module in (choosing, constrained):
        monkeypatch.setattr(module, "default_engine", as_on_an_accelerator)
    W, exact = layer.weight.detach(), layer.exact_weight()
    # float32 products of six terms, and a slope of Polar Express of 1e3 from there on
    assert (W - exact).norm() < 1e-3 * W.norm()
    assert (W - ours).norm() > 0.03 * W.norm()  # on a CPU it is another function
    assert all(part.engine is None for part in layer.kernel.modules())


KERNELS = {
    "bcop": BCOP,
    "bcop-cholesky": partial(BCOP, engine=cholesky),
    "rko": RKO,
    "rkl2ne": RKL2NE,
    "svcm": partial(SVCM, input_size=(6, 6)),
    "ossn": partial(OSSN, input_size=(6, 6)),
}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("scale", [0.0, 1e-42, 1e-30, 1.0, 1e30, 1e36])
def test_convolution_kernels(kernel, scale):
    """Every free matrix of rank 1, also of any scale or zero: finite, and of norm at most 1."""
    module = KERNELS[kernel](4, 4, 3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * parameter[..., :1].expand_as(parameter))
        if isinstance(module, SVCM):
            module.project_()
        if isinstance(module, OSSN):
            [module() for _ in range(20)]
    K = module()
    (K * torch.randn_like(K)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    # a few per cent where only a bound tells how well, else float32's rounding of a Gram matrix near singular
    slack = 0.05 if module.promise is Promise.APPROXIMATE else 1e-4
    assert torch.linalg.matrix_norm(transfer_matrices(K.detach().double(), (6, 6)), 2).max() <= 1 + slack
    if scale in (1.0, 1e30):
        assert K.abs().max() > 1e-3  # not a kernel of zeros


@pytest.mark.parametrize("kernel", [L2NE, SpectralNorm])
def test_dense_kernels_of_any_scale(kernel):
    module = kernel(6, 4)
    weights = []
    for scale in (1.0, 2.0**100):
        with torch.no_grad():
            module.W.copy_(scale * torch.linspace(1, 2, 24).view(4, 6).sin())
            [module() for _ in range(20)]
        weights.append(module())
        weights[-1].sum().backward()
        assert module.W.grad is not None and module.W.grad.isfinite().all()
    assert torch.allclose(*weights, rtol=1e-5)
    assert 0.3 < torch.linalg.matrix_norm(weights[1], 2) <= 1 + 1e-5
