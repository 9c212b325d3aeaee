"""Residual certificate: above the norm in exact arithmetic, and within 1e-6 of 1 for orthogonal weights in
float32."""

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lconvnet.kernels import BCOP
from lconvnet.ops.gram import dense_bound
from lconvnet.ops.polyphase import to_strided
from lconvnet.ops.residual import residual_bound, self_correlation


def exact_residual_square(W):
    """1 + max_i sum_j |(W^T W - I)_ij| in rationals."""
    rows = [[Fraction(float(x)) for x in row] for row in W]
    n = len(rows[0])
    gram = [[sum(r[i] * r[j] for r in rows) - (i == j) for j in range(n)] for i in range(n)]
    return 1 + max(sum(map(abs, row)) for row in gram)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounds_outward_in_exact_rationals(dtype):
    for _ in range(20):
        W = torch.linalg.qr(torch.randn(5, 3, dtype=torch.float64))[0].to(dtype)
        exact = exact_residual_square(W)
        assert exact <= Fraction(residual_bound(W)) ** 2 <= exact * (1 + Fraction(1, 10**13))


def test_long_sums_are_rounded_outward():
    """Columns of 30,000 equal numbers, of norm about 1: the rounding errors of a sum have one sign."""
    lost = Fraction(0)
    for c in ((1 + i / 10**5) / 30_000**0.5 for i in range(1, 41)):
        W = torch.full((30_000, 1), c, dtype=torch.float64)
        exact = 30_000 * Fraction(c) ** 2
        lost = max(lost, exact - Fraction(float(W.T @ W)))
        for bound in (residual_bound(W), dense_bound(W, steps=1), dense_bound(W, steps=0)):
            assert exact <= Fraction(bound) ** 2 <= exact * (1 + Fraction(1, 10**9))
    assert lost > Fraction(1, 10**14)  # the plain sum is too small by much more than one rounding


@pytest.mark.parametrize("shape", [(256, 256), (256, 100), (10, 256)])
def test_dense_float32(shape):
    """For n = 256, float32-rounded: bound 1.00000026, truth 1.000000035."""
    m, n = max(shape), min(shape)
    Q = torch.linalg.qr(torch.randn(m, n, dtype=torch.float64))[0].float().reshape(m, n)
    W = Q if shape[0] >= shape[1] else Q.T
    truth = np.linalg.norm(W.double().numpy(), 2)
    assert truth <= residual_bound(W) < 1 + 6e-7


@pytest.mark.parametrize(("ci", "co"), [(4, 4), (6, 4), (4, 6), (1, 5)])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_float32_bcop_is_certified_to_six_digits(ci, co, k):
    with torch.no_grad():
        K = BCOP(ci, co, k).double()().float()
    hat = np.fft.fft2(K.double().numpy(), (32, 32)).transpose(2, 3, 0, 1)
    truth = np.linalg.norm(hat, 2, axis=(2, 3)).max()
    assert truth <= residual_bound(K) < 1 + 1e-6  # 1 + 1e-7, some kernels a little more


def test_stays_tight_under_noise():
    with torch.no_grad():
        K = BCOP(4, 4, 3).double()()
    K += 1e-4 * torch.randn_like(K)
    assert 1 < residual_bound(K) < 1 + 1e-2  # 4 * 25 correlations of order 1e-4


@pytest.mark.parametrize("stride", [2, 3])
def test_strided_orthogonal_kernel_is_certified_on_its_polyphase_kernel(stride):
    with torch.no_grad():
        K = to_strided(BCOP(2 * stride**2, 5, 2).double()(), stride)
    assert 1 <= residual_bound(K, stride=stride) < 1 + 1e-12
    assert residual_bound(K) > 1.1  # the stride-1 residual is large


def test_self_correlation_is_a_convolution():
    K = torch.randn(3, 2, 3, 4, dtype=torch.float64)
    expected = F.conv2d(K, K, padding=(2, 3))  # [i, j, t]: sum_{m, a} K[i, m, a + t - (k - 1)] K[j, m, a]
    torch.testing.assert_close(self_correlation(K), expected, rtol=0, atol=1e-13)


def test_too_large_for_the_formula_is_infinite():
    assert residual_bound(torch.full((2, 2), 1e300, dtype=torch.float64)) == float("inf")
    assert residual_bound(torch.zeros(2, 2)) >= 1


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.tensor([[1.0, float("nan")]]), "NaN or infinity"),
        (torch.tensor([[1.0, float("inf")]]), "NaN or infinity"),
        (torch.ones(3), r"shape \(3,\)"),
        (torch.ones(0, 3), r"shape \(0, 3\)"),
        (torch.ones(2, 2, dtype=torch.int32), "int32"),
    ],
)
def test_what_is_refused(weight, message):
    with pytest.raises(ValueError, match=message):
        residual_bound(weight)
