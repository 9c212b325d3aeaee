"""Orthonormal bases against projectors from the singular value decomposition."""

import pytest
import torch

from lconvnet.ops.orthogonalize import polar_eigh
from lconvnet.ops.products import BLOCK
from lconvnet.ops.whitening import _cholesky_or_nan, _inverse_factor, cholesky, whiten


@pytest.mark.parametrize("shape", [(9, 4), (3, 8, 2), (4, 1)], ids=str)
def test_the_projector_is_that_of_the_span(shape):
    R = torch.randn(shape, dtype=torch.float64)
    U = torch.linalg.svd(R, full_matrices=False).U
    basis = whiten(R)
    # orthonormal to round-off, for random matrices of this size have condition numbers below thirty
    assert torch.allclose(basis @ basis.mT, U @ U.mT, atol=1e-13)
    assert torch.allclose(basis.mT @ basis, torch.eye(shape[-1], dtype=torch.float64), atol=1e-14)


@pytest.mark.parametrize(("smallest", "slack"), [(1.0, 1e-14), (0.05, 1e-14), (0.02, 1e-3), (1e-6, 1.0)])
def test_float64_loses_what_the_ridge_takes(smallest, slack):
    """Singular values are those of one Björck step on ``sqrt(1 - t)``, up to 1 where all are close to it."""
    U, _, Vh = torch.linalg.svd(torch.randn(24, 12, dtype=torch.float64), full_matrices=False)
    s = torch.linspace(1, smallest, 12, dtype=torch.float64)
    found = torch.linalg.svdvals(whiten((U * s) @ Vh))
    t = 2**-18 * s.pow(4).sum().sqrt() / s**2
    t = t / (1 + t)
    expected = (1 - t).sqrt() * (1 + t / 2)
    assert found.max() <= 1 + 1e-14
    assert (found >= expected - 1e-12).all() and found.min() >= 1 - slack
    if slack > 1e-14:
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_float32_never_expands():
    for scale in (1e-6, 1.0, 1e6):
        basis = whiten(scale * torch.randn(20, 32, 16))
        norms = torch.linalg.svdvals(basis.double())
        # sixteen columns with condition numbers up to about twenty: eps cond^2 = 5e-5
        assert norms.max() < 1 + 1e-5 and norms.min() > 1 - 1e-4


def test_the_factorisation_that_never_waits():
    """What runs on an accelerator, where a check would stall it: the same factor, or NaN."""
    S = torch.stack([2 * torch.eye(3), -torch.eye(3), torch.full((3, 3), float("nan"))])
    L = _cholesky_or_nan(S)
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
@pytest.mark.parametrize("entry", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_in_every_block(row, entry):
    R = torch.eye(BLOCK + 5)
    R[row, row] = entry
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        whiten(R)


@pytest.mark.parametrize("smallest", [0.06, 0.05, 0.04, 0.033, 0.02])
@pytest.mark.parametrize("engine", [cholesky, polar_eigh])
def test_gradients_of_float64_where_the_polishing_fades(engine, smallest):
    """Between residuals of 2^-14 and 2^-13 a part of the two last steps is taken, and that part depends on W, too."""
    W = torch.tensor([[1.0, 0.0], [1.0, smallest]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(engine, (W,), eps=1e-7, atol=1e-5, rtol=1e-4)  # entries of some 1 / smallest
