"""A weight is a function of the parameters as they are: never an older one, and never a handle on the layer."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrize, vector_to_parameters
from torch.optim.swa_utils import AveragedModel

import lconvnet as lc
from lconvnet.kernels import BCOP, L2NE, OSSN, RKL2NE, RKO, SVCM, FixedBCOP, Orthogonal, SpectralNorm
from lconvnet.layers import LipschitzConv2d, LipschitzLinear
from lconvnet.ops.whitening import cholesky

CONVS = [BCOP, FixedBCOP, RKO, RKL2NE, OSSN, SVCM]
DENSE = {"polar": Orthogonal, "cholesky": partial(Orthogonal, engine=cholesky), "norm": SpectralNorm, "l2ne": L2NE}
LAYERS = {
    **{kernel.__name__: partial(LipschitzConv2d, 3, 4, 2, kernel=kernel, input_size=4) for kernel in CONVS},
    **{name: partial(LipschitzLinear, 4, 3, kernel=kernel) for name, kernel in DENSE.items()},
}
each_layer = pytest.mark.parametrize("name", LAYERS)
# one float64 evaluation by two routes, of outputs of size about 1
CLOSE = {"rtol": 0, "atol": 1e-12}


def made(name, seed=0):
    torch.manual_seed(seed)
    layer = LAYERS[name](dtype=torch.float64).eval()
    with torch.no_grad():
        for parameter in layer.parameters():  # another scale than the normalised one
            parameter.mul_(1.5).add_(0.1 * torch.randn_like(parameter))
    return layer


def batch(layer):
    return torch.linspace(-1, 1, 96, dtype=torch.float64).reshape((2, 3, 4, 4) if hasattr(layer, "stride") else (24, 4))


def through_data(layer, new):
    for name, parameter in layer.named_parameters():
        parameter.data.mul_(0).add_(new[name])


def through_numpy(layer, new):
    for name, parameter in layer.named_parameters():
        np.copyto(parameter.detach().numpy(), new[name].numpy())


def by_exchange(layer, new):
    for name, parameter in layer.named_parameters():
        parameter.data = new[name].clone()


def by_assignment(layer, new):
    layer.load_state_dict(new, assign=True)


def in_inference_mode(layer, new):
    with torch.inference_mode():
        for name, parameter in layer.named_parameters():
            parameter.copy_(new[name])


def by_foreach(layer, new):
    torch._foreach_lerp_([p.data for p in layer.parameters()], [new[name] for name, _ in layer.named_parameters()], 1.0)


def by_vector(layer, new):
    vector_to_parameters(torch.cat([new[name].flatten() for name, _ in layer.named_parameters()]), layer.parameters())


WAYS = [through_data, through_numpy, by_exchange, by_assignment, in_inference_mode, by_foreach, by_vector]


@pytest.mark.parametrize("change", WAYS)
@pytest.mark.parametrize("name", ["OSSN", "SVCM", "polar", "l2ne"])
def test_no_way_to_change_a_parameter_leaves_an_old_weight(name, change):
    layer, other = made(name), made(name, seed=1)
    new = {key: value.clone() for key, value in other.state_dict().items()}
    layer.load_state_dict(new | dict(layer.named_parameters()))  # the divisors of OSSN are buffers and not in question
    other = copy.deepcopy(layer)
    other.load_state_dict(new)
    x = batch(layer)
    with torch.no_grad():
        first = layer(x)
        change(layer, new)
        assert not torch.allclose(first, other(x), atol=1e-3)
        torch.testing.assert_close(layer(x), lc.bake(other)(x), **CLOSE)
        assert torch.equal(layer(x), other(x))


@pytest.mark.parametrize("name", ["OSSN", "norm"])
def test_divisors_are_read_as_they_are(name):
    layer = made(name)
    with torch.no_grad():
        layer(batch(layer))
        layer.kernel.factor.data.mul_(2)
        torch.testing.assert_close(layer(batch(layer)), lc.bake(layer)(batch(layer)), **CLOSE)


def test_the_engine_is_read_as_it_is():
    layer = made("polar")
    with torch.no_grad():
        first = layer(batch(layer))
        layer.kernel.engine = cholesky
        assert not torch.allclose(layer(batch(layer)), first, atol=1e-3)
        torch.testing.assert_close(layer(batch(layer)), lc.bake(layer)(batch(layer)), **CLOSE)


@pytest.mark.parametrize("gradients", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_parameters_given_for_one_call_are_those_of_the_call(gradients):
    layer, x = LipschitzLinear(64, 32).eval(), torch.rand(1, 64)

    def drawn(seed):
        return torch.randn(32, 64, generator=torch.Generator().manual_seed(seed))

    def answer(seed):  # the matrix lives as long as its call, so that addresses come again
        with gradients():
            return functional_call(layer, {"kernel.V": drawn(seed)}, (x,))

    for seed in range(8):
        found = answer(seed)
        expected = nn.functional.linear(x, lc.ops.orthogonalize.polar_eigh(drawn(seed)), layer.bias)
        # float32 sums of 64 products, times a condition number of six
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("average", ["averaged model", "by hand"])
def test_averages_are_evaluated_with_their_weights(average):
    layer = nn.Sequential(made("polar"))
    averaged = AveragedModel(layer).eval() if average == "averaged model" else copy.deepcopy(layer)
    x = batch(layer[0])
    with torch.no_grad():
        before = averaged(x)
        for seed in range(1, 4):
            newer = nn.Sequential(made("polar", seed))
            if isinstance(averaged, AveragedModel):
                averaged.update_parameters(newer)
            else:
                for mean, value in zip(averaged.parameters(), newer.parameters(), strict=True):
                    mean.data.mul_(0.5).add_(value.data, alpha=0.5)
            torch.testing.assert_close(averaged(x), lc.bake(averaged)(x), **CLOSE)
    assert not torch.allclose(averaged(x), before, atol=1e-3)


@each_layer
def test_what_is_written_on_a_weight_is_not_written_on_the_layer(name):
    layer = made(name)
    x, state = batch(layer), copy.deepcopy(layer.state_dict())
    with torch.no_grad():
        before = layer(x)
        layer.weight.mul_(3)
        layer.weight.detach().zero_()
        layer.weight.numpy().fill(7)
        assert torch.equal(layer(x), before)
    assert all(torch.equal(state[key], value) for key, value in layer.state_dict().items())
    assert torch.equal(layer.weight, layer.weight) and layer.weight is not layer.weight


@each_layer
def test_a_gradient_reaches_the_parameters_through_the_weight(name):
    layer = made(name)
    if name == "FixedBCOP":
        assert not layer.weight.requires_grad
        return
    layer.weight.square().sin().sum().backward()
    # the norm of an orthogonal weight is constant, its sines are not
    assert all(p.grad is not None and p.grad.abs().max() > 1e-6 for p in layer.kernel.parameters())


@each_layer
def test_evaluations_in_any_mode_serve_those_in_another(name):
    x = batch(made(name))
    modes = [torch.inference_mode, torch.no_grad, torch.enable_grad]
    expected = made(name)(x).detach()
    for first in modes:
        for frozen in (False, True):
            layer = made(name).requires_grad_(not frozen)
            with first():
                assert torch.equal(layer(x), expected)
            y = layer(x.clone().requires_grad_())
            y.sum().backward()
            assert torch.equal(y, expected)
            assert frozen or name == "FixedBCOP" or all(p.grad is not None for p in layer.kernel.parameters())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own code
def test_a_tangent_of_a_parameter_is_not_lost_without_gradients():
    layer = made("l2ne")
    x, W = batch(layer), layer.kernel.W.detach()
    direction = torch.ones_like(W)
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        layer(x)
        dual = torch.autograd.forward_ad.make_dual(W, direction)
        found = torch.autograd.forward_ad.unpack_dual(functional_call(layer, {"kernel.W": dual}, x)).tangent
    assert found is not None
    t = 1e-6
    with torch.no_grad():
        ahead, behind = (functional_call(layer, {"kernel.W": W + s * direction}, x) for s in (t, -t))
    # a central difference in float64: t^2 of truncation, 1e-16 / t of rounding
    torch.testing.assert_close(found, (ahead - behind) / (2 * t), rtol=0, atol=1e-8)


class Doubled(nn.Module):
    def forward(self, W):
        return 2 * W + torch.eye(*W.shape, dtype=W.dtype)


def set_to_identity(kernel, inputs):
    kernel.V.data = torch.eye(*kernel.V.shape, dtype=kernel.V.dtype)


@pytest.mark.parametrize("alter", ["parametrization", "hook", "pre-hook", "replaced", "subclass"])
def test_what_alters_a_kernel_alters_the_dense_layer(alter):
    layer = made("polar")
    x, kernel = batch(layer), layer.kernel
    if alter == "parametrization":
        parametrize.register_parametrization(kernel, "V", Doubled())
    elif alter == "hook":
        kernel.register_forward_hook(lambda module, inputs, weight: weight / 2)
    elif alter == "pre-hook":
        kernel.register_forward_pre_hook(set_to_identity)
    elif alter == "replaced":
        kernel.forward = lambda: torch.ones(3, 4, dtype=torch.float64) / 4
    else:

        class Halved(Orthogonal):
            def forward(self):
                return super().forward() / 2

        layer = LipschitzLinear(4, 3, kernel=Halved, dtype=torch.float64).eval()
    for mode in (torch.enable_grad, torch.no_grad):
        for training in (True, False):
            with mode():
                expected = nn.functional.linear(x, layer.train(training).kernel(), layer.bias)
                torch.testing.assert_close(layer(x), expected, **CLOSE)
    if alter in ("parametrization", "subclass"):
        torch.testing.assert_close(lc.bake(layer)(x), expected, **CLOSE)
    else:
        with pytest.raises(ValueError, match="has forward hooks or a replaced forward"):
            lc.bake(layer)
