"""Singular values of circular convolutions, and batches of matrices that are spread over threads."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lconvnet.ops import fourier
from lconvnet.ops.fourier import map_batch


@settings(max_examples=30, deadline=None)
@given(*[st.integers(1, most) for most in (6, 6, 5, 5, 3, 3)])
def test_spectrum_against_a_dense_matrix(height, width, kh, kw, ci, co):
    """The dense matrix is built tap by tap by rolling, so images smaller than the kernel are covered."""
    K = torch.randn(co, ci, kh, kw, dtype=torch.float64)
    units = torch.eye(ci * height * width, dtype=torch.float64).reshape(-1, ci, height, width)
    columns = sum(
        torch.einsum("oi,nihw->nohw", K[:, :, a, b], units.roll((-a, -b), dims=(2, 3)))
        for a in range(kh)
        for b in range(kw)
    )
    expected = torch.linalg.svdvals(columns.flatten(1))
    values = fourier.circular_singular_values(K, (height, width))
    assert len(values) == height * width * min(ci, co)
    assert torch.allclose(values, expected[: len(values)], atol=1e-10)


@pytest.mark.parametrize("smallest", [1.0, 1e-3, 1e-9, 0.0])
def test_spectrum_of_ill_conditioned_kernels(smallest):
    """A 1x1 kernel has its matrix at every frequency; roots of Gram eigenvalues alone would lose the last values."""
    U, _, Vh = torch.linalg.svd(torch.randn(5, 5, dtype=torch.float64))
    s = torch.tensor([1.0, 1.0, 1.0, 0.5, smallest], dtype=torch.float64)
    K = ((U * s) @ Vh)[:, :, None, None]
    expected = s.repeat(6).sort(descending=True).values
    assert torch.allclose(fourier.circular_singular_values(K, (2, 3)), expected, atol=1e-14)
    for scale in (1e-170, 1e160):  # the Gram matrix of these under- or overflows
        values = fourier.circular_singular_values(scale * K, (2, 3)) / scale
        assert torch.allclose(values, expected, atol=1e-14)


def test_an_image_has_pixels():
    with pytest.raises(ValueError, match="at least one pixel"):
        fourier.circular_singular_values(torch.ones(1, 1, 2, 2), (0, 4))


def test_the_spectrum_can_be_differentiated():
    K = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda K: fourier.circular_singular_values(K, (3, 3)), (K,), atol=1e-6)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 100])
def test_a_batch_in_parts_is_the_batch_in_order(count):
    batch = torch.randn(count, 3, 5, dtype=torch.float64)
    assert torch.equal(map_batch(torch.linalg.svdvals, batch), torch.linalg.svdvals(batch))


@pytest.mark.usefixtures("two_threads")
def test_workers_have_one_thread_and_leave_no_trace():
    seen = set()

    def watched(part):
        seen.add((threading.current_thread() is threading.main_thread(), torch.get_num_threads()))
        return part

    map_batch(watched, torch.zeros(64, 2, 2))
    inherited = []
    newcomer = threading.Thread(target=lambda: inherited.append(torch.get_num_threads()))
    newcomer.start()
    newcomer.join()
    assert seen == {(False, 1)}
    assert torch.get_num_threads() == 2
    assert inherited == [2]


@pytest.mark.usefixtures("two_threads")
def test_an_error_in_a_worker_is_raised_and_the_threads_are_given_back():
    with pytest.raises(RuntimeError, match="square"):
        map_batch(torch.linalg.eigvalsh, torch.zeros(4, 2, 3))
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_gradients_are_recorded():
    batch = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda batch: map_batch(torch.linalg.svdvals, batch), (batch,))
