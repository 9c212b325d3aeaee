"""What a fresh or reset layer holds: the scales of Li et al. 2019 and of torch.nn, drawn anew for every tensor."""

from functools import partial
from math import sqrt

import pytest
import torch
from torch import nn

import lconvnet as lc
from lconvnet.kernels import BCOP, L2NE, OSSN, RKL2NE, RKO, SVCM, FixedBCOP, Kernel, Orthogonal, SpectralNorm
from lconvnet.layers import LipschitzConv2d, LipschitzLinear

INPUTS, OUTPUTS, SIDE = 3, 40, 2  # of a convolution; 12 = 3 * 2 * 2 inputs per output
CONVOLUTIONS = [BCOP, FixedBCOP, RKO, RKL2NE, OSSN, SVCM]
DENSE = [Orthogonal, L2NE, SpectralNorm]
MODELS = [
    partial(lc.models.mlp, 16, 3, widths=(8,)),
    *(
        partial(lc.models.small_convnet, 1, 28, 10, conv=partial(LipschitzConv2d, kernel=kernel))
        for kernel in CONVOLUTIONS
    ),
    partial(lc.models.dcgan_critic, 3, 32),
]


def conv(kernel):
    return LipschitzConv2d(INPUTS, OUTPUTS, SIDE, kernel=kernel, input_size=8, dtype=torch.float64)


def linear(kernel):
    return LipschitzLinear(25, OUTPUTS, kernel=kernel, dtype=torch.float64)


def matrices(layer):
    """The matrices that the layer makes orthogonal, as (n of its scale 1 / sqrt(n), matrix)."""
    kernel = layer.kernel
    if isinstance(kernel, BCOP):
        c = max(INPUTS, OUTPUTS)
        return [(c, kernel.H), *((c, R) for R in kernel.R)]
    if isinstance(kernel, RKO):
        return [(INPUTS * SIDE**2, kernel.W)]
    return [(25, kernel.V)]


@pytest.mark.parametrize(
    "layer", [conv(BCOP), conv(FixedBCOP), conv(RKO), linear(Orthogonal)], ids=lambda x: type(x.kernel).__name__
)
def test_orthogonal_parameters_start_with_equal_singular_values_of_the_original_s_scale(layer):
    for n, matrix in matrices(layer):
        values = torch.linalg.svdvals(matrix.detach()) * sqrt(n)
        assert (values - 1).abs().max() < 1e-12  # float64 QR of at most 40 columns


def is_uniform(values, bound):
    """Within the bound, and of its standard deviation to four standard errors of n draws (of kurtosis 1.8)."""
    spread = values.square().mean().sqrt() * sqrt(3) / bound
    return values.abs().max() <= bound and (spread - 1).abs() < 4 * sqrt(0.8 / values.numel()) / 2


@pytest.mark.parametrize(
    "layer", [conv(RKL2NE), conv(OSSN), linear(L2NE), linear(SpectralNorm)], ids=lambda x: type(x.kernel).__name__
)
def test_other_parameters_start_as_in_torch(layer):
    W = layer.kernel.W.detach()
    assert is_uniform(W, 1 / sqrt(W[0].numel()))


def test_clipped_parameters_start_as_in_torch_and_projected(monkeypatch):
    projected = []
    monkeypatch.setattr(SVCM, "project_", lambda self: projected.append(self.W.detach().clone()))
    kernel = SVCM(INPUTS, OUTPUTS, SIDE, input_size=(8, 8))
    assert len(projected) == 1 and torch.equal(projected[0], kernel.W)
    assert is_uniform(kernel.W.detach(), 1 / sqrt(INPUTS * SIDE**2))


@pytest.mark.parametrize("kernel", CONVOLUTIONS)
def test_biases_of_convolutions_start_in_the_original_s_range(kernel):
    bound = 1 / sqrt(OUTPUTS if issubclass(kernel, BCOP) else INPUTS * SIDE**2)
    assert is_uniform(torch.cat([conv(kernel).bias.detach() for _ in range(5)]), bound)


@pytest.mark.parametrize("kernel", DENSE)
def test_biases_of_dense_layers_start_in_the_original_s_range(kernel):
    assert is_uniform(torch.cat([linear(kernel).bias.detach() for _ in range(5)]), 1 / 5)


@pytest.mark.parametrize("kernel", [*CONVOLUTIONS, *DENSE])
def test_a_reset_layer_holds_what_a_fresh_one_holds(kernel):
    build = linear if kernel in DENSE else conv
    layer = build(kernel)
    torch.manual_seed(5)
    fresh = build(kernel).state_dict()
    torch.manual_seed(5)
    layer.reset_parameters()
    for name, value in layer.state_dict().items():
        # the power iterations start anew from the same vector: the same numbers in the same order
        assert torch.equal(value, fresh[name]), name
    assert all(p.requires_grad != kernel.frozen for p in layer.parameters())


@pytest.mark.parametrize("build", MODELS)
def test_resetting_every_module_draws_every_tensor_anew(build):
    model = build()
    before = {name: p.clone() for name, p in model.named_parameters()}
    for module in model.modules():
        if hasattr(module, "reset_parameters"):  # as people write it
            module.reset_parameters()
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []


def test_a_kernel_that_does_not_say_how_to_draw_its_parameters_is_named():
    class Unsaid(Kernel):
        promise = lc.kernels.Promise.LIPSCHITZ

        def __init__(self, inputs, outputs, kernel_size, **_):
            super().__init__()
            self.W = nn.Parameter(torch.zeros(outputs, inputs, kernel_size, kernel_size))

        def forward(self):
            return self.W

    with pytest.raises(ValueError, match="Unsaid does not say how to draw its parameters: define reset_parameters"):
        LipschitzConv2d(2, 2, 3, kernel=Unsaid).reset_parameters()


@pytest.mark.parametrize(
    "build",
    [
        lc.layers.FixedBCOPConv2d,
        partial(lc.models.small_convnet, image_size=28, classes=10, conv=lc.layers.FixedBCOPConv2d),
    ],
)
def test_fixed_convolutions_learn_nothing_at_all(build):
    model = build(2, 4, 3) if build is lc.layers.FixedBCOPConv2d else build(1)
    convolutions = [module for module in model.modules() if isinstance(module, LipschitzConv2d)]
    assert convolutions and not any(p.requires_grad for c in convolutions for p in c.parameters())
    assert all(p.requires_grad for m in model.modules() if isinstance(m, LipschitzLinear) for p in m.parameters())
