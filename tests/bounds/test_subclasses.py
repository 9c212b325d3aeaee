"""A class derived from one with a rule is another module: its base says nothing about it."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from lconvnet.bounds import lipschitz_bound, register_operation
from lconvnet.bounds.operations import REGISTERED
from lconvnet.layers import Scale

DENSE = (nn.Identity, nn.Dropout, nn.Dropout2d, Scale, nn.BatchNorm1d, nn.Linear)
ARGUMENTS = {Scale: (1.0,), nn.BatchNorm1d: (3,), nn.BatchNorm2d: (3,), nn.Linear: (3, 3), nn.Conv2d: (3, 3, 1)}
GAIN = 3.0


@pytest.mark.parametrize("base", [*DENSE, nn.BatchNorm2d, nn.Conv2d])
def test_no_subclass_is_folded_as_its_base(base):
    derived = type("Derived", (base,), {"forward": lambda self, x: GAIN * x})
    register_operation(derived, rule=lambda call: GAIN)
    torch.manual_seed(0)
    try:
        own, shape = derived(*ARGUMENTS.get(base, ())), (3,) if base in DENSE else (3, 2, 2)
        plain = nn.Linear(3, 3, bias=False) if base in DENSE else nn.Conv2d(3, 3, 1, bias=False)
        around = [deepcopy(plain) for _ in range(3)]
        network = nn.Sequential(*around[:2], own, around[2]).double().eval()
        found = lipschitz_bound(network, input_shape=shape).upper
    finally:
        del REGISTERED[derived]
    A, B, C = (layer.weight.detach().reshape(3, 3) for layer in around)
    assert found >= GAIN * float(torch.linalg.matrix_norm(C @ B @ A, 2)) * (
        1 - 1e-12
    )  # the oracle is a float64 product
