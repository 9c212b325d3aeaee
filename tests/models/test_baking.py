"""Baking beyond the paper's networks."""

import torch
from torch import nn

import lconvnet as lc
from lconvnet.layers import LipschitzLinear, MaxMin


def test_a_module_used_twice_stays_twice():
    activation = MaxMin()
    model = nn.Sequential(LipschitzLinear(4, 4), activation, LipschitzLinear(4, 4), activation).eval()
    network = lc.bake(model)
    assert len(network) == 4
    x = torch.randn(3, 4)
    # one float32 evaluation of the weights against one in float64
    assert torch.allclose(network(x), model(x), atol=1e-5)
