"""Products by blocks against the whole ones, at sides below, at and beyond a block."""

import pytest
import torch

from lconvnet.ops.products import BLOCK, congruence, gram, mirrored

SIDES = [1, BLOCK, BLOCK + 1, 2 * BLOCK + 40]


@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
@pytest.mark.parametrize("m", SIDES)
def test_gram(m, batch):
    W = torch.randn(*batch, m, 5, dtype=torch.float64)
    # five terms of size one, in another order
    assert torch.allclose(gram(W).tril(), (W @ W.mT).tril(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
@pytest.mark.parametrize("m", SIDES)
def test_congruence_reads_lower_triangles(m, batch):
    A, C = torch.randn(2, *batch, m, m, dtype=torch.float64).tril()
    expected = A.mT @ (C + C.tril(-1).mT) @ A
    found = congruence(A, C + torch.full_like(C, torch.nan).triu(1))
    # m^2 terms of size one, which sum up to m: at most some hundred rounding errors of that size
    assert torch.allclose(found, expected, rtol=0, atol=1e-13 * m)


def test_mirrored_takes_the_lower_triangle():
    S = torch.randn(2, 3, 3)
    assert torch.equal(mirrored(S).tril(), S.tril()) and torch.equal(mirrored(S), mirrored(S).mT)
