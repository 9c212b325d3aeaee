"""Baking beyond the paper's networks."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

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
