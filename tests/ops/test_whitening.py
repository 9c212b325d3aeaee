"""Orthonormal bases against projectors from the singular value decomposition."""

import pytest
import torch

from lconvnet.ops.products import BLOCK
from lconvnet.ops.whitening import _factor_or_nan, _inverse_factor, whiten


@pytest.mark.parametrize("shape", [(5, 5), (9, 4), (3, 8, 2), (4, 1)], ids=str)
def test_the_projector_is_that_of_the_span(shape):
    R = torch.randn(shape, dtype=torch.float64)
    U = torch.linalg.svd(R, full_matrices=False).U
    basis, A = whiten(R)
    # random matrices of this size have condition numbers of at most thousands
    assert torch.allclose(basis @ basis.mT, U @ U.mT, atol=1e-11)
    assert torch.allclose(basis.mT @ basis, torch.eye(shape[-1], dtype=torch.float64), atol=1e-14)
    assert torch.equal(A, A.tril()) and torch.allclose(R @ A.mT, basis, atol=1e-12)


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6])
def test_float64_is_orthonormal_to_round_off(condition):
    U, _, Vh = torch.linalg.svd(torch.randn(24, 12, dtype=torch.float64), full_matrices=False)
    R = (U * torch.logspace(0, -torch.tensor(condition).log10().item(), 12).double()) @ Vh
    basis, A = whiten(R)
    # a product with A amplifies rounding by the condition number; by its square, were A that of the first step alone
    assert torch.allclose(R @ A.mT, basis, atol=1e-14 * condition)
    assert torch.allclose(basis.mT @ basis, torch.eye(12, dtype=torch.float64), atol=1e-13)


def test_float32_never_expands():
    for scale in (1e-6, 1.0, 1e6):
        basis, _ = whiten(scale * torch.randn(20, 32, 16))
        norms = torch.linalg.svdvals(basis.double())
        # sixteen columns with condition numbers up to about twenty: eps cond^2 = 5e-5
        assert norms.max() < 1 + 1e-4 and norms.min() > 1 - 1e-4


@pytest.mark.parametrize("R", [torch.ones(4, 2), torch.full((3, 1), float("nan")), torch.zeros(3, 2)])
def test_what_spans_no_basis_is_refused(R):
    with pytest.raises(ValueError, match="span no basis"):
        whiten(R)


def test_the_factorisation_that_never_waits():
    """What runs on an accelerator, where a check would stall it: the same factor, or NaN."""
    S = torch.stack([2 * torch.eye(3), -torch.eye(3), torch.full((3, 3), float("nan"))])
    L = _factor_or_nan(S)
    assert torch.equal(L[0], torch.linalg.cholesky(S[0]))
    assert L[1:].isnan().all()


@pytest.mark.parametrize("m", [BLOCK, BLOCK + 1, 3 * BLOCK + 10])
def test_the_inverse_factor_by_halves(m):
    R = torch.randn(2, m, 2 * m, dtype=torch.float64)
    S = R @ R.mT
    A = _inverse_factor(S + torch.full_like(S, torch.nan).triu(1))  # what stands above the diagonal is not read
    assert torch.equal(A, A.tril())
    # condition numbers of about 34
    assert torch.allclose(A @ torch.linalg.cholesky(S), torch.eye(m, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("row", [3, BLOCK + 2])
@pytest.mark.parametrize("entry", [0.0, float("nan"), float("inf")])
def test_what_spans_no_basis_is_refused_in_every_block(row, entry):
    R = torch.eye(BLOCK + 5)
    R[row, row] = entry
    with pytest.raises(ValueError, match="span no basis"):
        whiten(R)
