"""Training under bf16 autocast and in float64: finite losses, orthogonal weights, gradients for everything."""

from contextlib import nullcontext

import pytest
import torch

from lconvnet import layers, models
from lconvnet.kernels import BCOP, Orthogonal
from lconvnet.losses import OffsetCrossEntropy
from lconvnet.ops.bjorck import residual
from lconvnet.ops.orthogonalize import orthogonal_linear, orthogonalize
from lconvnet.ops.whitening import cholesky


def train(dtype, context, linear):
    torch.manual_seed(0)
    model = models.small_convnet(1, 8, 4, linear=linear).to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)  # a tenth of the entries of the smallest matrices
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


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of the compiler's own code
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "kernel",
    [lambda: BCOP(4, 6, 3), lambda: Orthogonal(6, 4), lambda: Orthogonal(6, 4, engine=cholesky)],
    ids=["bcop", "polar", "cholesky"],
)
def test_gradients_of_factorisations_do_not_feel_autocast(kernel, compiled):
    torch.manual_seed(0)
    kernel = kernel()
    weight = torch.compile(kernel, fullgraph=True, backend="aot_eager") if compiled else kernel
    G, gradients = torch.randn_like(kernel()), []
    for context in (nullcontext(), torch.autocast("cpu", torch.bfloat16)):
        kernel.zero_grad()
        with context:
            (weight() * G).sum().backward()
        gradients.append([p.grad for p in kernel.parameters()])
    # the same operations on the same numbers, but for what a compiler reorders
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))
