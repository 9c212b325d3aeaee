"""Networks: products, lower bounds, and the refusal of everything that is not known."""

import math
from collections import OrderedDict
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from lconvnet import bake, layers, models
from lconvnet.bounds import Bound, LayerBound, fingerprint, lipschitz_bound, operations
from lconvnet.bounds.lower import jacobian_norm
from lconvnet.bounds.rules import RULES

CONVS = [
    layers.BCOPConv2d,
    layers.FixedBCOPConv2d,
    layers.RKOConv2d,
    layers.OSSNConv2d,
    layers.SVCMConv2d,
    layers.RKL2NEConv2d,
]


def jacobian(network, x):
    """Dense Jacobian at one point, by torch's own reverse mode."""
    return torch.autograd.functional.jacobian(lambda v: network(v[None])[0], x).reshape(-1, x.numel())


@pytest.mark.parametrize("conv", CONVS, ids=lambda conv: conv.keywords["kernel"].__name__)
@pytest.mark.parametrize("build", [models.small_convnet, pytest.param(models.large_convnet, marks=pytest.mark.slow)])
def test_baked_networks(conv, build):
    network = bake(build(1, 8, 3, conv=conv))
    bound = lipschitz_bound(network, input_shape=(1, 8, 8))
    copy = network.double()
    seen = max(np.linalg.norm(jacobian(copy, torch.rand(1, 8, 8, dtype=torch.float64)).numpy(), 2) for _ in range(5))
    assert 0 < bound.lower <= bound.upper
    assert seen <= bound.upper
    assert bound.lower > 0.7 * seen  # two samples of the same quantity
    assert all(layer.lower <= layer.upper * (1 + 1e-12) for layer in bound.layers)


def test_knowing_the_size_only_tightens():
    network = bake(models.small_convnet(1, 8, 3, conv=layers.OSSNConv2d))
    tight, free = lipschitz_bound(network, input_shape=(1, 8, 8)), lipschitz_bound(network)
    assert tight.upper < free.upper < 1.2  # the grid's correction, 1.6 % a layer of 2 taps, and finite sizes


def test_bcop_is_one_to_five_digits():
    bound = lipschitz_bound(bake(models.small_convnet(1, 28, 10)))
    assert 1 <= bound.upper < 1 + 1e-5
    assert {layer.method for layer in bound.layers} == {"exact", "residual"}
    assert bound.lower is None
    assert all(
        layer.lower is None for layer in bound.layers if layer.name.startswith("conv") and layer.name[-1] in "12"
    )


def test_spectrum_agrees_with_the_certificates():
    network = bake(models.small_convnet(1, 8, 3))
    exact = lipschitz_bound(network, input_shape=(1, 8, 8), method="spectrum")
    assert 1 - 1e-6 < exact.upper <= lipschitz_bound(network).upper * (1 + 1e-12)


def test_names_and_order_follow_the_nesting():
    inner = nn.Sequential(OrderedDict(pad=nn.CircularPad2d(1), conv=nn.Conv2d(1, 2, 3), act=nn.ReLU()))
    network = nn.Sequential(OrderedDict(block=inner, scale=layers.Scale(-2.0)))
    assert [layer.name for layer in lipschitz_bound(network).layers] == ["block.conv", "block.act", "scale"]
    assert [step.input_shape for step in operations(network, (1, 4, 5))] == [(1, 4, 5), (2, 4, 5), (2, 4, 5)]


def test_upper_is_the_product_and_scale_counts():
    first, second = nn.Linear(5, 4), nn.Linear(4, 3)
    network = nn.Sequential(first, layers.MaxMin(), layers.Scale(-3.0), second)
    bound = lipschitz_bound(network, input_shape=(5,))
    exact = 3 * math.prod(np.linalg.norm(m.weight.detach().double().numpy(), 2) for m in (first, second))
    assert exact * (1 - 1e-14) <= bound.upper <= exact * 1.001  # twelve steps of rank 4 and 3
    assert bound.body_upper * bound.layers[-1].upper == pytest.approx(bound.upper, rel=1e-12)
    assert bound.layers[2].upper == 3
    assert (bound.level, bound.input_shape) == ("analytic", (5,))


def test_a_module_used_twice_counts_twice():
    twice = layers.Scale(2.0)
    assert lipschitz_bound(nn.Sequential(twice, twice)).upper == 4


@pytest.mark.parametrize(
    "module",
    [
        nn.ReLU(),
        nn.Identity(),
        nn.Flatten(),
        nn.Dropout().eval(),
        nn.Dropout2d().eval(),
        nn.AvgPool2d(2),
        nn.AvgPool2d((2, 4)),
        nn.AvgPool2d(2, divisor_override=1),
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveAvgPool2d((2, None)),
        nn.MaxPool2d(2),
        nn.MaxPool2d(2, 3, ceil_mode=True),
        nn.LPPool2d(2, 2),
        nn.LPPool2d(2, (2, 4)),
        nn.ReflectionPad2d((1, 1, 0, 2)),
        nn.ReplicationPad2d((2, 2, 1, 0)),
        nn.ZeroPad2d((1, 0, 2, 1)),
        nn.ZeroPad2d(-1),
        nn.PixelUnshuffle(2),
        nn.PixelShuffle(2),
        layers.MaxMin(),
        layers.GroupSort(2),
        layers.FullSort(),
        layers.Abs(),
        layers.InvertibleDownsampling(2),
        layers.InvertibleUpsampling(2),
        layers.NearestUpsampling(3),
        layers.Scale(0.5),
        layers.Scale(-4.0),
        layers.Normalize((0.5,) * 4, (0.5, 0.25, 2.0, 1.0)),
        layers.TwoSidedReLU(),
        layers.NormPool(2),
    ],
    ids=str,
)
def test_fixed_rules_equal_the_dense_jacobian(module):
    x = torch.randn(4, 4, 4, dtype=torch.float64)
    seen = max(np.linalg.norm(jacobian(module, x + torch.randn_like(x)).numpy(), 2) for _ in range(3))
    bound = lipschitz_bound(module, input_shape=(4, 4, 4))
    assert bound.upper == pytest.approx(seen, rel=1e-12)
    assert bound.lower <= bound.upper
    assert bound.layers[0].method == "exact"


def test_every_rule_has_a_test():
    tested = test_fixed_rules_equal_the_dense_jacobian.pytestmark[0].args[1]
    elsewhere = {nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d}
    assert set(RULES) - {type(module) for module in tested} == elsewhere


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sigmoid(), r"'1' \(Sigmoid\) has no Lipschitz rule, and none is assumed: build .* from Abs"),
        (nn.BatchNorm2d(1), "BatchNorm2d"),
        (nn.AvgPool2d(2, ceil_mode=True), "AvgPool2d.*ceil_mode"),
        (nn.AvgPool2d(3, padding=1, count_include_pad=False), "AvgPool2d.*count_include_pad"),
        (nn.AdaptiveAvgPool2d(1), "AdaptiveAvgPool2d.*pass input_shape"),
        (nn.MaxPool2d(3, 1), "MaxPool2d"),
        (Doubled(4, 4), "Doubled"),
        (nn.MaxPool2d(2, dilation=2), "MaxPool2d.*overlap"),
        (nn.MaxPool2d(2, return_indices=True), "MaxPool2d.*return_indices"),
        (nn.LPPool2d(3, 2), "LPPool2d.*norm_type=3"),
        (nn.LPPool2d(2, 2, ceil_mode=True), "LPPool2d.*ceil_mode"),
        (nn.ReflectionPad2d(1), "ReflectionPad2d.*pass input_shape"),
        (nn.ConvTranspose1d(1, 1, 2), "ConvTranspose1d"),
        (nn.Dropout(0.5), "training mode.*eval"),
        (nn.Flatten(0), "start_dim=0"),
        (layers.OrthogonalLinear(4, 4), r"still owns its kernel.*lconvnet.bake"),
        (nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), "ParametrizedLinear"),
    ],
)
def test_unknown_modules_are_refused_by_name(module, message):
    with pytest.raises(ValueError, match=message):
        lipschitz_bound(nn.Sequential(nn.Identity(), module))


def test_hooks_and_replaced_forwards_are_refused():
    hooked, replaced = nn.Linear(2, 2), nn.Linear(2, 2)
    hooked.register_forward_hook(lambda module, inputs, output: 2 * output)
    replaced.forward = lambda x: 2 * x
    for module in (hooked, replaced):
        with pytest.raises(ValueError, match="forward hook or a replaced forward"):
            lipschitz_bound(nn.Sequential(module))


def test_a_deviation_that_was_changed_is_refused():
    """1 / min(std) of a negative one would be a bound below 0."""
    module = layers.Normalize((0.0, 0.0), (0.5, 1.0))
    for std in (-0.5, 0.0, math.nan):
        module.std = (std, 1.0)
        with pytest.raises(ValueError, match=r"'0' \(Normalize\) has .* std=.*both must be finite, std positive"):
            lipschitz_bound(nn.Sequential(module))


@pytest.mark.parametrize(
    ("pool", "same"),
    [
        (nn.AvgPool2d([2]), nn.AvgPool2d(2)),
        (nn.AvgPool2d(3, ()), nn.AvgPool2d(3)),
        (nn.MaxPool2d([2], []), nn.MaxPool2d(2)),
        (nn.LPPool2d(2, 2, ()), nn.LPPool2d(2, 2)),
    ],
)
def test_pools_are_read_as_torch_reads_them(pool, same):
    """One number for both axes, and no stride for the window's side."""
    x = torch.rand(1, 1, 6, 6)
    assert torch.equal(pool(x), same(x))
    assert lipschitz_bound(pool, input_shape=(1, 6, 6)).upper == lipschitz_bound(same).upper


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("module", [nn.Linear(3, 3), nn.Conv2d(1, 1, 3)], ids=["linear", "conv"])
@pytest.mark.parametrize("method", ["auto", "spectrum"])
def test_non_finite_weights_are_refused(value, module, method):
    module.weight.data.view(-1)[1] = value
    shape = (3,) if isinstance(module, nn.Linear) else (1, 5, 5)
    with pytest.raises(ValueError, match=r"'0': weight.*NaN or infinity"):
        lipschitz_bound(nn.Sequential(module), input_shape=shape, method=method)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "exact"}, "method='exact' is unknown"),
        ({"method": "spectrum"}, "input_shape=None"),
        ({"input_shape": (3, 0, 4)}, r"input_shape=\(3, 0, 4\) must hold positive integers"),
        ({"input_shape": (2, 5, 5)}, r"'0' \(Conv2d\) cannot take an input of shape \(2, 5, 5\)"),
        ({"input_shape": (1, 2, 2)}, r"cannot take an input of shape"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        lipschitz_bound(nn.Sequential(nn.Conv2d(1, 1, 3)), **options)


def test_lower_bound_is_the_norm_of_an_affine_map():
    W = torch.randn(6, 5, dtype=torch.float64)
    truth = np.linalg.norm(W.numpy(), 2)
    found = jacobian_norm(lambda x: x @ W.T, torch.randn(2, 5, dtype=torch.float64), iterations=300)
    assert truth * (1 - 1e-6) < found < truth
    few = jacobian_norm(lambda x: x @ W.T, torch.randn(2, 5, dtype=torch.float64), iterations=1)
    assert few <= found


def test_lower_bound_works_without_gradients_and_leaves_the_network_alone():
    network = bake(models.mlp(16, 4, widths=(8,)))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    with torch.inference_mode():
        bound = lipschitz_bound(network, input_shape=(16,))
    assert 0.99 < bound.lower <= bound.upper
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert next(network.parameters()).dtype == torch.float32


def test_a_constant_network_has_bound_zero():
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    network[1].weight.data.zero_()
    bound = lipschitz_bound(network, input_shape=(3,))
    assert (bound.lower, bound.upper) == (0, 0)


def test_half_precision_weights_are_read_exactly():
    network = nn.Sequential(nn.Linear(4, 4)).to(torch.bfloat16)
    truth = np.linalg.norm(network[0].weight.detach().double().numpy(), 2)
    bound = lipschitz_bound(network, input_shape=(4,))
    assert bound.lower <= truth <= bound.upper <= truth * 1.001


def test_bounds_are_frozen():
    bound = Bound(1.0, None, ())
    with pytest.raises(AttributeError):
        bound.upper = 0.5


WRONG = [(1.0, "layer '0' .Identity."), (None, "layer '0' .Identity."), (0.4, "the network as a whole")]


@pytest.mark.parametrize(("lower", "culprit"), WRONG)
def test_a_lower_bound_above_the_upper_is_an_incident(monkeypatch, lower, culprit):
    monkeypatch.setitem(RULES, nn.Identity, lambda step, method: LayerBound(step.name, 0.5, lower, "wrong"))
    with pytest.raises(RuntimeError, match=rf"{culprit}.* lower bound .* above .* 0\.5"):
        lipschitz_bound(nn.Sequential(nn.Identity()), input_shape=(3,))


@pytest.mark.parametrize("build", [layers.MaxMin, lambda dim: layers.GroupSort(2, dim), layers.FullSort])
def test_sorting_across_the_batch_is_refused(build):
    for dim, shape in ((0, None), (0, (4,)), (-2, (4,)), (-4, (4, 2, 2))):
        with pytest.raises(ValueError, match=rf"has dim={dim}, .*examples of a batch"):
            lipschitz_bound(nn.Sequential(build(dim)), input_shape=shape)
    with pytest.raises(ValueError, match=r"has dim=-1.*pass input_shape"):
        lipschitz_bound(nn.Sequential(build(-1)))
    assert lipschitz_bound(nn.Sequential(build(-1)), input_shape=(4,)).upper == 1
    assert lipschitz_bound(nn.Sequential(build(-3)), input_shape=(4, 2, 2)).upper == 1


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(2, 2, 1),
        nn.PixelShuffle(1),
        nn.PixelUnshuffle(1),
        layers.InvertibleDownsampling(1),
        layers.InvertibleUpsampling(1),
        layers.NearestUpsampling(1),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(4, 4), (2, 2, 4, 4)])
def test_images_must_have_three_dimensions(module, shape):
    """Of rank two, the batch would be taken for the channels."""
    with pytest.raises(ValueError, match=r"\(channels, height, width\)"):
        lipschitz_bound(nn.Sequential(module), input_shape=shape)


def test_fingerprints_tell_networks_apart():
    """By every weight, buffer, name, dtype, shape and option; not by device, mode, or identity."""
    one = nn.Sequential(nn.Linear(4, 2), layers.Scale(2.0)).requires_grad_(False)
    print_of = fingerprint(one)
    assert len(print_of) == 64
    assert print_of == fingerprint(deepcopy(one).train()) == lipschitz_bound(one).fingerprint
    others = [deepcopy(one) for _ in range(6)]
    others[0][0].bias[1] += 1e-6
    others[1].double()
    others[2][1].factor = 2.0000000001
    others[3] = nn.Sequential(OrderedDict(a=others[3][0], b=others[3][1]))
    others[4].register_buffer("extra", torch.zeros(1), persistent=False)
    others[5][0].weight.data = others[5][0].weight.reshape(4, 2)
    assert len({print_of, *map(fingerprint, others)}) == 7


def test_fingerprints_do_not_run_tensors_together():
    """The same bytes, cut elsewhere."""
    values = torch.arange(4.0)
    first, second = nn.Module(), nn.Module()
    for module, cut in ((first, 1), (second, 3)):
        module.register_buffer("a", values[:cut])
        module.register_buffer("b", values[cut:])
    assert fingerprint(first) != fingerprint(second)
    empty = nn.Module()
    empty.register_buffer("none", torch.tensor(1.0, dtype=torch.bfloat16))  # no dimensions, no numpy dtype
    empty.register_buffer("nothing", torch.zeros(0, 3))
    assert len(fingerprint(empty)) == 64


def test_without_diagnosis_the_upper_bound_is_the_same_and_nothing_lies_below():
    network = bake(models.small_convnet(1, 8, 3))
    full = lipschitz_bound(network, input_shape=(1, 8, 8))
    quick = lipschitz_bound(network, input_shape=(1, 8, 8), diagnose=False)
    assert (quick.upper, quick.fingerprint, quick.lower) == (full.upper, full.fingerprint, None)
    assert [layer.upper for layer in quick.layers] == [layer.upper for layer in full.layers]
