"""Norms from above at any magnitude, against exact rationals."""

from fractions import Fraction

import pytest
import torch

from lconvnet.ops.gram import circular_bound
from lconvnet.ops.norms import row_norms


@pytest.mark.parametrize("exponent", [-1074, -1060, -1022, -560, -543, 0, 510, 1000])
def test_row_norms_are_never_below_the_exact_ones(exponent):
    generator = torch.Generator().manual_seed(0)
    A = torch.randint(0, 9, (20, 5), generator=generator).double() * 2.0**exponent
    A[0] = 0
    for row, norm in zip(A.tolist(), row_norms(A).tolist(), strict=True):
        square = sum(Fraction(entry) ** 2 for entry in row)
        assert square <= Fraction(norm) ** 2
        step = Fraction(2) ** -1073  # two of the least numbers there are
        assert norm == 0 if square == 0 else (Fraction(norm) - step) ** 2 <= square * (1 + Fraction(1, 10**12))


def test_rows_of_different_magnitude_do_not_hide_each_other():
    W = torch.tensor([[0.0], [1e-200], [1.0]], dtype=torch.float64)
    found = row_norms(W - W[0])
    assert 1e-200 <= found[1] < 1.0001e-200
    assert 1 <= found[2] < 1.0001
    assert found[0] == 0


def test_the_transfer_error_of_a_tiny_kernel_is_that_of_the_scaled_one():
    K = torch.randn(2, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    small = 2.0**-600
    assert circular_bound(K * small, (5, 5)) / small == circular_bound(K, (5, 5))  # powers of two are exact
