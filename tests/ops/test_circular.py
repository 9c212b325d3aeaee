"""Circular convolution, its adjoint and the rearrangement of strided kernels over many shapes."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lconvnet.ops import circular


def rows(size, k):
    """Indices of a periodically continued axis."""
    return torch.arange(-(k // 2), size + k - 1 - k // 2) % size


SIDES = st.integers(1, 7)


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, st.integers(1, 5), st.integers(1, 3), st.integers(1, 3))
def test_convolution_against_its_definition_and_adjoint(height, width, k, ci, co):
    height, width = max(height, k), max(width, k)
    x = torch.randn(1, ci, height, width, dtype=torch.float64)
    K = torch.randn(co, ci, k, k, dtype=torch.float64)
    expected = torch.zeros(1, co, height, width, dtype=torch.float64)
    for a in range(k):
        for b in range(k):
            moved = x.roll((k // 2 - a, k // 2 - b), dims=(2, 3))
            expected += torch.einsum("oi,nihw->nohw", K[:, :, a, b], moved)
    y = circular.conv2d(x, K)
    assert torch.allclose(y, expected, atol=1e-12)
    z = torch.randn_like(y)
    assert torch.equal(circular.pad(x, k // 2, k - 1 - k // 2), x[:, :, rows(height, k)][..., rows(width, k)])
    assert torch.allclose((y * z).sum(), (x * circular.conv2d_adjoint(z, K)).sum(), atol=1e-10)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_polyphase_round_trip_and_meaning(stride, k, ci, co):
    K = torch.randn(co, ci * stride**2, k, k, dtype=torch.float64)
    strided = circular.to_strided(K, stride)
    assert torch.equal(circular.to_unshuffled(strided, stride), K)
    side = stride * (k + 1)
    x = torch.randn(2, ci, side, side, dtype=torch.float64)
    unshuffled = torch.nn.functional.pixel_unshuffle(x, stride)
    direct = torch.nn.functional.conv2d(x, strided, stride=stride)
    assert torch.allclose(direct, torch.nn.functional.conv2d(unshuffled, K), atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 2), st.integers(0, 2), st.booleans())
def test_strided_convolution_its_adjoint_and_gradients(stride, taps, more_rows, more_columns, biased):
    """The oracle is the stride-1 convolution of the unshuffled image, itself checked against the definition above."""
    height, width = stride * (taps + more_rows), stride * (taps + more_columns)
    x = torch.randn(2, 2, height, width, dtype=torch.float64, requires_grad=True)
    K = torch.randn(3, 2, stride * taps, stride * taps, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True) if biased else None
    y = circular.conv2d(x, K, bias, stride)
    linear = y if bias is None else y - bias[:, None, None]
    unshuffled = torch.nn.functional.pixel_unshuffle(x, stride)
    assert torch.allclose(linear, circular.conv2d(unshuffled, circular.to_unshuffled(K, stride)), atol=1e-12)
    z = torch.randn_like(y)
    assert torch.allclose((linear * z).sum(), (x * circular.conv2d_adjoint(z, K, stride)).sum(), atol=1e-10)
    inputs = (x, K) if bias is None else (x, K, bias)
    assert torch.autograd.gradcheck(lambda *leaves: circular.conv2d(*leaves, stride=stride), inputs, fast_mode=True)


def test_gradients_that_nobody_wants_are_not_made(monkeypatch):
    x, K = torch.randn(1, 2, 4, 4), torch.randn(3, 2, 2, 2)
    with monkeypatch.context() as patch:
        patch.setattr(circular, "conv2d_adjoint", None)
        circular.conv2d(x, K.requires_grad_()).sum().backward()
    assert K.grad is not None
    with monkeypatch.context() as patch:
        patch.setattr(torch.ops.aten, "convolution_backward", None)
        circular.conv2d(x.requires_grad_(), K.detach()).sum().backward()
    assert x.grad is not None


def test_channels_are_last_on_a_cpu():
    y = circular.conv2d(torch.randn(2, 2, 4, 4), torch.randn(3, 2, 2, 2))
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_autocast_reaches_the_convolution():
    x, K = torch.randn(1, 2, 4, 4), torch.randn(3, 2, 2, 2, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = circular.conv2d(x, K)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert K.grad is not None and K.grad.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert circular.conv2d(x.double(), K.double()).dtype == torch.float64
