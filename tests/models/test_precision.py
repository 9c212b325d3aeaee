"""Training under bf16 autocast and in float64: finite losses, orthogonal weights, gradients for everything."""

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch

from lconvnet import layers, models
from lconvnet.kernels import BCOP, L2NE, OSSN, RKL2NE, RKO, Orthogonal, SpectralNorm
from lconvnet.losses import OffsetCrossEntropy
from lconvnet.ops.orthogonalize import orthogonal_linear, orthogonalize
from lconvnet.ops.polynomials import bjorck, polar_express, residual
from lconvnet.ops.whitening import cholesky


def train(dtype, context, linear):
    torch.manual_seed(0)
    model = models.small_convnet(1, 8, 4, linear=linear).to(dtype)
    # at 1e-2 small matrices come near singular ones, where Cholesky's rows are orthonormal up to 1e-4, in float64 too
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    images, labels = torch.rand(16, 1, 8, 8, dtype=dtype), torch.randint(4, (16,))
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        with context():
            logits = model(images)
        loss = OffsetCrossEntropy(eps=0.5)(logits.to(dtype), labels)
        loss.backward()
        assert all(p.grad is not None and p.grad.dtype == dtype for p in model.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    with context():
        dense = [m.kernel() for m in model.modules() if isinstance(m, layers.LipschitzLinear)]
        worst = max(float(residual(W.detach())) for W in dense)
    return losses, worst


@pytest.mark.parametrize("linear", [layers.OrthogonalLinear, layers.CholeskyLinear])
def test_bf16_autocast_keeps_the_weights_orthogonal(linear):
    plain, exact = train(torch.float32, nullcontext, linear)
    mixed, residual_mixed = train(torch.float32, lambda: torch.autocast("cpu", torch.bfloat16), linear)
    assert all(torch.isfinite(torch.tensor(mixed)))
    assert mixed[-1] < mixed[0] and abs(mixed[-1] - plain[-1]) < 0.05 * plain[0]
    # residuals of float32; one in bf16 would be 1e-2
    assert exact < 1e-4 and residual_mixed < 1e-4


@pytest.mark.parametrize("shape", [(48, 64), (64, 48)], ids=str)
@pytest.mark.parametrize("engine", [None, cholesky])
def test_autocast_rounds_the_orthogonal_weight_and_not_the_raw_one(engine, shape):
    U, _, Vh = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    W = (U * torch.logspace(0, -2.5, 48)) @ Vh
    x = torch.randn(32, shape[1])
    exact = x.double() @ orthogonalize(W.double(), engine).mT
    with torch.autocast("cpu", torch.bfloat16):
        y = orthogonal_linear(x, W, engine=engine)
    assert y.dtype == torch.bfloat16
    # two bf16 roundings of 2^-9 each, averaged over the terms; with the raw weight they grow with its condition, 300
    assert (y.double() - exact).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize("linear", [layers.OrthogonalLinear, layers.CholeskyLinear])
def test_float64(linear):
    losses, worst = train(torch.float64, nullcontext, linear)
    assert losses[-1] < losses[0] and worst < 1e-13


ENGINES = {
    "polar": None,
    "cholesky": cholesky,
    "express": polar_express,
    "bjorck": bjorck,
    "bjorck3": partial(bjorck, order=3, iterations=8),
}
KERNELS = {
    **{name: partial(Orthogonal, 6, 4, engine=engine) for name, engine in ENGINES.items()},
    **{f"bcop-{name}": partial(BCOP, 4, 6, 3, engine=engine) for name, engine in ENGINES.items()},
    "rko": partial(RKO, 4, 6, 3, engine=polar_express),
    "rkl2ne": partial(RKL2NE, 4, 6, 3),
    "l2ne": partial(L2NE, 6, 4),
    "spectral-norm": partial(SpectralNorm, 6, 4),
    "ossn": partial(OSSN, 4, 6, 3, input_size=(6, 6)),
}


def first(kernel, G):
    return torch.autograd.grad((kernel() * G).sum(), tuple(kernel.parameters()))


def second(kernel, G):
    parameters = tuple(kernel.parameters())
    gradients = torch.autograd.grad((kernel() * G).sum().square(), parameters, create_graph=True)
    return torch.autograd.grad(sum(gradient.square().sum() for gradient in gradients), parameters)


def functional(kernel, G):
    kernel.eval()  # buffers are not written under a transform
    loss = lambda parameters: (torch.func.functional_call(kernel, parameters, ()) * G).sum()  # noqa: E731
    return tuple(torch.func.grad(loss)(dict(kernel.named_parameters())).values())


@pytest.mark.parametrize("gradients", [first, second, functional])
@pytest.mark.parametrize("name", KERNELS)
def test_gradients_of_weights_do_not_feel_autocast(name, gradients):
    torch.manual_seed(0)
    kernel = KERNELS[name]()
    with torch.no_grad():
        for parameter in kernel.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    G, state, found = torch.randn_like(kernel()), copy.deepcopy(kernel.state_dict()), []
    for context in (nullcontext(), torch.autocast("cpu", torch.bfloat16)):
        kernel.load_state_dict(state)
        with context:
            found.append(gradients(kernel, G))
    assert all(torch.equal(a, b) and a.norm() > 0 for a, b in zip(*found, strict=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of the compiler's own code
@pytest.mark.parametrize(
    "name",
    [
        "bcop-polar",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("polar", "bjorck3")),
        "cholesky",
        "express",
        "l2ne",
    ],
)
def test_compiled_gradients_of_weights_do_not_feel_autocast(name):
    torch.manual_seed(0)
    kernel = KERNELS[name]()
    weight = torch.compile(kernel, fullgraph=True, backend="aot_eager")
    G = torch.randn_like(kernel())
    expected = first(kernel, G)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad((weight() * G).sum(), tuple(kernel.parameters()))
    # the same operations on the same numbers, but for what a compiler reorders
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))
