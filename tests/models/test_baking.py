"""Baking beyond the paper's networks."""

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import lconvnet as lc
from lconvnet.layers import LipschitzConv2d, LipschitzLinear, MaxMin


def test_a_module_used_twice_stays_twice():
    activation = MaxMin()
    model = nn.Sequential(LipschitzLinear(4, 4), activation, LipschitzLinear(4, 4), activation).eval()
    network = lc.bake(model)
    assert len(network) == 4
    x = torch.randn(3, 4)
    # one float32 evaluation of the weights against one in float64
    assert torch.allclose(network(x), model(x), atol=1e-5)


def test_no_layer_loses_its_place_to_a_padding():
    model = nn.Sequential(OrderedDict(conv_pad=nn.ZeroPad2d(1), conv=LipschitzConv2d(1, 4, 2))).eval()
    network = lc.bake(model)
    assert [type(layer) for layer in network] == [nn.ZeroPad2d, nn.CircularPad2d, nn.Conv2d]
    x = torch.rand(2, 1, 4, 4)
    assert torch.allclose(network(x), model(x), atol=1e-5)


def test_sequences_are_flattened():
    model = nn.Sequential(nn.Sequential(LipschitzConv2d(1, 4, 2), MaxMin()), nn.Sequential(nn.Flatten())).eval()
    network = lc.bake(model)
    assert [type(layer) for layer in network] == [nn.CircularPad2d, nn.Conv2d, MaxMin, nn.Flatten]
    assert torch.allclose(network(torch.ones(1, 1, 4, 4)), model(torch.ones(1, 1, 4, 4)), atol=1e-5)


def test_a_layer_shared_by_two_names_is_baked_under_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = self.second = LipschitzLinear(3, 3)

        def forward(self, x):
            return self.second(self.first(x))

    network = lc.bake(Twice())
    assert type(network.first) is type(network.second) is nn.Linear


def test_what_baking_cannot_keep_is_refused():
    hooked = nn.Sequential(LipschitzLinear(3, 3))
    hooked[0].register_forward_hook(lambda module, inputs, output: 3 * output)
    with pytest.raises(ValueError, match=r"'0' \(LipschitzLinear\) has forward hooks"):
        lc.bake(hooked)
    for model in (nn.Sequential(LipschitzLinear(3, 3)), LipschitzLinear(3, 3)):
        model.forward = lambda x: 3 * x
        with pytest.raises(ValueError, match=r"has forward hooks or a replaced forward"):
            lc.bake(nn.Sequential(model))
    model = nn.Sequential(LipschitzLinear(3, 3))
    model.forward = model.forward  # as Fabric leaves it: a method of its class
    assert type(lc.bake(model)[0]) is nn.Linear
    hook = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: 3 * output)
    try:
        with pytest.raises(ValueError, match="global forward hook"):
            lc.bake(nn.Sequential(LipschitzLinear(3, 3)))
    finally:
        hook.remove()

    class Tripled(LipschitzLinear):
        def forward(self, x):
            return 3 * super().forward(x)

    with pytest.raises(ValueError, match="Tripled overrides forward or bake alone"):
        lc.bake(nn.Sequential(Tripled(3, 3)))


class Halved:
    """What a class may put before a layer's: each replaces something that forward and bake use."""

    class Weight(LipschitzConv2d):
        @property
        def weight(self):
            return super().weight / 2

    class CurrentWeight(LipschitzConv2d):
        def current_weight(self):
            return super().current_weight() / 2

    class ExactWeight(LipschitzConv2d):
        def exact_weight(self):
            return super().exact_weight() / 2

    class Fill(LipschitzConv2d):
        def fill(self, plain, weight):
            super().fill(plain, weight / 2)

    class Padding(LipschitzConv2d):
        padding = (0, 2)

    class Call(LipschitzConv2d):
        def __call__(self, x):
            return super().__call__(x) / 2

    class Check(LipschitzConv2d):
        def _check(self, x):
            x.div_(2)

    class Checked(LipschitzConv2d):
        def checked(self, weight):
            return weight / 2

    class Mixed(Weight):
        """Two classes away from the layer."""


HALVED = {name: cls for name, cls in vars(Halved).items() if isinstance(cls, type)}


@pytest.mark.parametrize("name", HALVED)
def test_a_class_that_replaces_what_both_maps_use_is_refused(name):
    model = nn.Sequential(HALVED[name](1, 2, 3))
    with pytest.raises(ValueError, match=rf"{name} overrides _*\w+, on which forward and bake of LipschitzConv2d"):
        lc.bake(model)


def test_a_class_that_replaces_nothing_of_the_map_is_baked():
    class Described(LipschitzConv2d):
        """With a default of its own, another description and a method that no layer has."""

        def __init__(self, *sizes, kernel_size=3):
            super().__init__(*sizes, kernel_size)

        def extra_repr(self):
            return "described"

        def reset_parameters(self):
            nn.init.zeros_(self.bias)

        def norm(self):
            return self.weight.norm()

    model, x = nn.Sequential(Described(2, 2)).eval(), torch.rand(1, 2, 4, 4)
    # one float32 evaluation of the weights against one in float64
    torch.testing.assert_close(lc.bake(model)(x), model(x), rtol=0, atol=1e-5)


def test_a_class_that_says_the_whole_map_is_baked():
    class Tripled(LipschitzLinear):
        def exact_weight(self):
            return 3 * super().exact_weight()

        def forward(self, x):
            return nn.functional.linear(x, 3 * self.weight, self.bias)

        def bake(self):
            return super().bake()

    model, x = nn.Sequential(Tripled(3, 3)).eval(), torch.rand(2, 3)
    torch.testing.assert_close(lc.bake(model)(x), model(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_layer_may_be_baked_to_any_number_of_parts(count):
    class Parts(LipschitzLinear):
        def forward(self, x):
            for _ in range(count):
                x = nn.functional.linear(x, self.weight, self.bias)
            return x

        def bake(self):
            return nn.Sequential(*(super(Parts, self).bake() for _ in range(count)))

    model, x = nn.Sequential(OrderedDict(a=Parts(4, 4), a_0=MaxMin())).eval(), torch.rand(2, 4)
    network = lc.bake(model)
    assert len(network) == count + 1
    torch.testing.assert_close(network(x), model(x), rtol=0, atol=1e-5)


def test_a_layer_that_is_baked_to_no_module_is_refused():
    class Nothing(LipschitzLinear):
        def forward(self, x):
            return x

        def bake(self):
            return None

    with pytest.raises(ValueError, match=r"layer '0' \(Nothing\) was baked to None, which is not a module"):
        lc.bake(nn.Sequential(Nothing(3, 3)))


class Gain(nn.Module):
    def forward(self, bias):
        return bias * (3 if self.training else 2)


@pytest.mark.parametrize("training", [True, False])
def test_a_parametrised_bias_is_the_one_of_eval_mode(training):
    model, x = nn.Sequential(LipschitzLinear(3, 3)).train(training), torch.rand(2, 3)
    parametrize.register_parametrization(model[0], "bias", Gain())
    network = lc.bake(model)
    assert model.training is training
    # one float32 evaluation of the weights against one in float64
    torch.testing.assert_close(network(x), model.eval()(x), rtol=0, atol=1e-5)


def test_what_is_compiled_or_not_a_module_is_refused():
    inner = nn.Sequential(LipschitzLinear(3, 3))
    compiled = torch.compile(inner, backend="eager")
    for model, name in ((compiled, "'model'"), (nn.Sequential(nn.Flatten(), compiled), "'1'")):
        with pytest.raises(ValueError, match=rf"module {name} is what torch\.compile made: bake .*\._orig_mod"):
            lc.bake(model)
    inner.compile(backend="eager")  # in place: the module is still itself
    assert type(lc.bake(inner)[0]) is nn.Linear
    with pytest.raises(ValueError, match="model is a OrderedDict: pass an nn.Module"):
        lc.bake(inner.state_dict())


def test_what_a_layer_refuses_names_it():
    model = nn.Sequential(OrderedDict(first=nn.Sequential(LipschitzLinear(3, 3)), second=LipschitzLinear(3, 3)))
    model.first[0].kernel.V.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"layer 'first\.0' \(LipschitzLinear\): .*NaN"):
        lc.bake(model)


def test_baking_draws_nothing():
    """Somebody who bakes to validate trains the same network."""
    model = nn.Sequential(lc.layers.BCOPConv2d(2, 4, 3), nn.Flatten(), lc.layers.OrthogonalLinear(4 * 5 * 5, 3))
    state = torch.random.get_rng_state()
    network = lc.bake(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert network(torch.rand(1, 2, 5, 5)).isfinite().all()
