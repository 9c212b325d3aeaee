"""Block convolution with projectors against polynomials of matrices, and its gradient."""

import pytest
import torch

from lconvnet.ops.block_conv import append_factor, block_orthogonal_kernel
from lconvnet.ops.orthogonalize import polar_eigh


def symbol(X, z):
    """The matrix polynomial sum_ab X[a, b] z_1^a z_2^b at one point."""
    powers = [torch.stack([point**a for a in range(size)]) for point, size in zip(z, X.shape[:2], strict=True)]
    return torch.einsum("a,b,abmn->mn", *powers, X.to(torch.complex128))


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize(("m", "n", "rank"), [(3, 3, 1), (2, 5, 2), (1, 1, 0)])
def test_the_symbol_is_the_product_of_its_factors(k, m, n, rank):
    H = polar_eigh(torch.randn(m, n, dtype=torch.float64))
    R = torch.randn(2 * (k - 1), n, rank, dtype=torch.float64)
    X = block_orthogonal_kernel(H, R)
    assert X.shape == (k, k, m, n)
    z = torch.exp(2j * torch.pi * torch.rand(2, dtype=torch.float64))
    expected = H.to(torch.complex128)
    for index, factor in enumerate(R):
        U = torch.linalg.svd(factor, full_matrices=False).U
        P = (U @ U.mT).to(torch.complex128)
        expected = expected @ (P + (torch.eye(n) - P) * z[index % 2])
    assert torch.allclose(symbol(X, z), expected, atol=1e-12)
    assert torch.allclose(symbol(X, z) @ symbol(X, z).mH, torch.eye(m, dtype=torch.complex128), atol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("rank", [0, 2])
def test_gradient(k, rank):
    H = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    R = torch.randn(2 * (k - 1), 4, rank, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block_orthogonal_kernel, (H, R), atol=1e-6)


def test_a_factor_grows_one_axis():
    X = torch.randn(2, 3, 2, 4)
    kept = X @ torch.eye(4)
    assert append_factor(kept, X - kept, 0).shape == (3, 3, 2, 4)
    assert torch.equal(append_factor(kept, X - kept, 1)[:, :3], X)
