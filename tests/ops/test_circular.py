"""Circular convolution, its adjoint and polyphase rearrangement over many shapes."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lconvnet.ops import circular, polyphase, spectrum


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
    strided = polyphase.to_strided(K, stride)
    assert torch.equal(polyphase.to_unshuffled(strided, stride), K)
    side = stride * (k + 1)
    x = torch.randn(2, ci, side, side, dtype=torch.float64)
    unshuffled = torch.nn.functional.pixel_unshuffle(x, stride)
    direct = torch.nn.functional.conv2d(x, strided, stride=stride)
    assert torch.allclose(direct, torch.nn.functional.conv2d(unshuffled, K), atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3))
def test_spectrum_against_a_dense_matrix(height, width, k, ci, co):
    """The dense matrix is built from the wrapped kernel by rolling, so images smaller than the kernel are covered."""
    K = torch.randn(co, ci, k, k, dtype=torch.float64)
    wrapped = spectrum.wrap_kernel(K, (height, width))
    units = torch.eye(ci * height * width, dtype=torch.float64).reshape(-1, ci, height, width)
    columns = sum(
        torch.einsum("oi,nihw->nohw", wrapped[:, :, a, b], units.roll((-a, -b), dims=(2, 3)))
        for a in range(height)
        for b in range(width)
    )
    expected = torch.linalg.svdvals(columns.flatten(1))
    values = spectrum.circular_singular_values(K, (height, width))
    assert len(values) == height * width * min(ci, co)
    assert torch.allclose(values, expected[: len(values)], atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 4), st.integers(2, 4), st.integers(0, 2), st.integers(0, 2))
def test_gradient_of_padding(height, width, before, after):
    x = torch.randn(1, 2, height, width, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda image: circular.pad(image, before, after), (x,))
