"""The smallest torus, against the general convolution and against shapes that are not its own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lconvnet.layers import BCOPConv2d
from lconvnet.ops import circular
from lconvnet.ops.circular import to_strided

CHANNELS = st.integers(1, 5)


@settings(max_examples=40, deadline=None)
@given(CHANNELS, CHANNELS, st.integers(1, 3), st.integers(0, 3), st.booleans())
def test_values_and_gradients_are_those_of_the_general_convolution(ci, co, stride, batch, with_bias):
    """In float64, where sums of at most 4 x 5 x 9 normal products agree far below 1e-12."""
    x = torch.randn(batch, ci, 2 * stride, 2 * stride, dtype=torch.float64, requires_grad=True)
    K = torch.randn(co, ci * stride**2, 2, 2, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(co, dtype=torch.float64, requires_grad=True) if with_bias else None
    expected = circular.conv2d(x, to_strided(K, stride), bias, stride)
    y = circular.conv2x2(x, K, bias, stride)
    assert y.shape == expected.shape == (batch, co, 2, 2)
    assert torch.allclose(y, expected, atol=1e-12)
    inputs = [t for t in (x, K, bias) if t is not None]
    weights = torch.randn_like(y)
    for ours, theirs in zip(
        torch.autograd.grad((y * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("side", [2, 4, 6])
def test_the_layer_takes_it_where_the_kernel_covers_the_torus_only(side, monkeypatch):
    """A 4 x 4 kernel of stride 2 covers 4 x 4 pixels; on 6 x 6 it does not, and 2 x 2 are refused."""
    calls = []
    conv2x2 = circular.conv2x2
    monkeypatch.setattr(circular, "conv2x2", lambda *arguments: calls.append(1) or conv2x2(*arguments))
    layer, x = BCOPConv2d(3, 8, 4, stride=2).double(), torch.randn(2, 3, side, side, dtype=torch.float64)
    if side == 2:
        with pytest.raises(ValueError, match="kernel_size=4"):
            layer(x)
        return
    assert torch.allclose(layer(x), layer.bake().double()(x), atol=1e-12)
    assert len(calls) == (side == 4)


def test_one_tap_and_other_images_are_left_to_the_general_convolution():
    x = torch.randn(2, 3, 2, 2)
    assert circular.is_conv2x2(x, torch.zeros(8, 3, 2, 2), 1)
    assert not circular.is_conv2x2(x, torch.zeros(8, 3, 1, 1), 1)
    assert not circular.is_conv2x2(torch.randn(2, 3, 2, 4), torch.zeros(8, 3, 2, 2), 1)
    layer = BCOPConv2d(3, 8, 1)
    assert torch.allclose(layer(x), layer.bake()(x), atol=1e-5)


def test_a_recorded_graph_takes_any_number_of_images():
    layer = BCOPConv2d(3, 8, 4, stride=2).requires_grad_(False)
    few, many = torch.randn(2, 3, 4, 4), torch.randn(5, 3, 4, 4)
    exported = torch.export.export(layer, (few,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    assert torch.allclose(exported(many), layer(many), atol=1e-6)


def test_zero_padding_is_not_the_torus():
    layer = BCOPConv2d(3, 8, 4, stride=2, padding_mode="zeros")
    x = torch.randn(2, 3, 4, 4)
    assert torch.allclose(layer(x), layer.bake()(x), atol=1e-5)
    assert not torch.allclose(layer(x), circular.conv2x2(x, layer.weight, layer.bias, 2), atol=1e-2)


def test_an_orthogonal_layer_keeps_the_norm():
    """16 x 4 inputs into as many outputs: every singular value is 1, in float32 up to some roundings of 64 terms."""
    layer = BCOPConv2d(4, 16, 4, stride=2, bias=False)
    x = torch.randn(5, 4, 4, 4)
    assert torch.allclose(layer(x).flatten(1).norm(dim=1), x.flatten(1).norm(dim=1), rtol=1e-5)


def test_autocast_gives_the_dtype_and_nearly_the_values_of_the_general_convolution():
    """bfloat16 has 8 bits: sums of 64 products of order 1/8 may differ by some of its steps, 2^-7 each."""
    layer, x = BCOPConv2d(4, 16, 4, stride=2), torch.randn(3, 4, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        expected = circular.conv2d(x, to_strided(layer.weight, 2), layer.bias, 2)
    assert y.dtype == expected.dtype == torch.bfloat16
    assert torch.allclose(y, expected, atol=0.05)
