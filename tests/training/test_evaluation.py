"""Validation in chunks, and singular values against the dense Jacobian."""

from functools import partial

import pytest
import torch
from torch import nn

from lconvnet.baking import bake
from lconvnet.data import Splits
from lconvnet.kernels import RKO
from lconvnet.layers import LipschitzConv2d, MaxMin, OrthogonalLinear
from lconvnet.training import evaluation


def test_chunks_make_no_difference(digits: Splits, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluation.validate(model, digits.validation, (0.01, 0.05))
    monkeypatch.setattr(evaluation, "CHUNK", 7)
    parts = evaluation.validate(model, digits.validation, (0.01, 0.05))
    assert (parts.clean, parts.certified, parts.lipschitz) == (whole.clean, whole.certified, whole.lipschitz)
    assert 0 < whole.certified[0.05] < whole.certified[0.01] <= whole.clean < 1


@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (2, 1), (4, 2), (2, 2)])
def test_singular_values_are_those_of_the_jacobian(kernel_size: int, stride: int) -> None:
    layer = partial(LipschitzConv2d, kernel=RKO)(2, 4, kernel_size, stride).double()
    network = bake(nn.Sequential(layer, MaxMin(), nn.Flatten(), OrthogonalLinear(4 * (8 // stride) ** 2, 5).double()))
    convolution = nn.Sequential(*list(network)[:-3])
    x = torch.zeros(1, 2, 8, 8, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(convolution, x).reshape(-1, x.numel())
    values = evaluation.singular_values(network, (2, 8, 8))
    assert len(values) == 2
    first, second = values.values()
    expected = torch.linalg.svdvals(jacobian)[: len(first)]
    # Two exact methods in float64 on values around 1.
    torch.testing.assert_close(first.sort(descending=True).values, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(second, torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-12)


def test_layers_inside_nested_sequences_are_found(model: nn.Module) -> None:
    values = evaluation.singular_values(nn.Sequential(bake(model)), (1, 28, 28))
    assert list(values) == ["0.linear1", "0.linear2"]
