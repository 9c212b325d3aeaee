"""One graph from image to logits: ``torch.compile(fullgraph=True)`` in training and in eval mode."""

from functools import partial

import pytest
import torch
from torch import nn

from lconvnet import layers, models
from lconvnet.kernels import OSSN, Orthogonal
from lconvnet.ops.polynomials import polar_express

SIDE = 16
CONVS = {
    "bcop": layers.BCOPConv2d,
    "bcop-fixed": layers.FixedBCOPConv2d,
    "rko": layers.RKOConv2d,
    "rkl2ne": layers.RKL2NEConv2d,
    "ossn": layers.OSSNConv2d,
    "svcm": layers.SVCMConv2d,
}
# a GPU's engine, with the fewest steps that are a loop
EXPRESS = partial(layers.LipschitzLinear, kernel=partial(Orthogonal, engine=partial(polar_express, iterations=2)))
LINEARS = {
    "cholesky": layers.CholeskyLinear,
    "polar-express": EXPRESS,
    "spectral-norm": layers.SpectralNormLinear,
}


def one_convolution(conv):
    """The kernel is compiled once, with the fewest steps that are a loop; the dense layer is plain."""
    if conv is layers.OSSNConv2d:
        conv = partial(conv, kernel=partial(OSSN, iterations=2))
    return nn.Sequential(conv(3, 4, 4, 2, input_size=SIDE), layers.MaxMin(), nn.Flatten(), nn.Linear(SIDE**2, 4))


NETWORKS = {name: lambda linear=linear: models.mlp(48, 4, (32,), linear=linear) for name, linear in LINEARS.items()}
NETWORKS |= {name: lambda conv=conv: one_convolution(conv) for name, conv in CONVS.items()}
WHOLE = {
    "large": lambda: models.large_convnet(3, SIDE, 4),
    "dcgan": lambda: models.dcgan_critic(3, 32, conv=layers.RKOConv2d),
} | {f"small-{name}": lambda conv=conv: models.small_convnet(3, SIDE, 4, conv=conv) for name, conv in CONVS.items()}
FAST = NETWORKS.keys() - {"bcop-fixed", "rkl2ne", "svcm"}  # BCOP again; few operations
SIDES = {"dcgan": 32} | dict.fromkeys(LINEARS, 4)


def gradients(model, run, x):
    model.zero_grad()
    run(x).square().sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in FAST)) for name in NETWORKS | WHOLE]
)
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of the compiler's own code
def test_one_graph_with_the_same_result(name, backend):
    torch._dynamo.reset()
    model = (NETWORKS | WHOLE)[name]()
    with torch.no_grad():  # away from norm 1, where the gradient of W / max(1, |W|) jumps
        for parameter in model.parameters():
            parameter.mul_(1.5)
    side = SIDES.get(name, SIDE)
    x = torch.rand(2, 3, side, side)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    state = {key: value.clone() for key, value in model.state_dict().items()}  # power iteration moves in training
    ours = gradients(model, compiled, x)
    model.load_state_dict(state)
    # the compiler may reorder float32 sums of some hundred terms
    theirs = gradients(model, model, x)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(ours, theirs, strict=True))
    model.eval()
    with torch.no_grad():
        assert torch.allclose(compiled(x), model(x), atol=1e-5)
        for parameter in model.parameters():
            parameter.add_(0.1 * parameter.abs().mean() * torch.randn_like(parameter))
        assert torch.allclose(compiled(x), model(x), atol=1e-5)  # no weight of the past
