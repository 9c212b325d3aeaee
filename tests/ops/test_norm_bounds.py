"""Bounds of norms against dense singular values and in exact arithmetic: never below, and close from above."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lconvnet.kernels import BCOP
from lconvnet.ops import norm_bounds
from lconvnet.ops.circular import to_strided
from lconvnet.ops.norm_bounds import dense_bound, residual_bound, self_correlation
from tests.oracles import exceeds_norm

SLACK = 1e-12  # what outward rounding may add: far above gamma(n) of these sizes, far below the truncation


def dense_circular(K, size):
    """Matrix of y[p] = sum_a K[a] x[p + a mod n] by its definition, tap by tap."""
    (co, ci, kh, kw), (h, w) = K.shape, size
    T = np.zeros((co, h, w, ci, h, w))
    for y in range(h):
        for x in range(w):
            for a in range(kh):
                for b in range(kw):
                    T[:, y, x, :, (y + a) % h, (x + b) % w] += K[:, :, a, b].double().numpy()
    return T.reshape(co * h * w, ci * h * w)


def supremum(K, grid=96):
    """sup_w |K_hat(w)| from below: a fine grid of numpy's FFT."""
    hat = np.fft.fft2(K.double().numpy(), (grid, grid)).transpose(2, 3, 0, 1)
    return np.linalg.norm(hat, 2, axis=(2, 3)).max()


def is_upper_bound_exactly(bound, W):
    return exceeds_norm(bound, [[Fraction(float(x)) for x in row] for row in W])


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 3), (3, 5), (24, 24)])
@pytest.mark.parametrize("steps", [0, 1, 4, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dense_bound_is_two_sided(shape, steps, dtype):
    W = torch.randn(shape, dtype=dtype)
    truth, rank = np.linalg.norm(W.double().numpy(), 2), min(shape)
    bound = norm_bounds.dense_bound(W, steps=steps)
    assert truth * (1 - 1e-15 * max(shape)) <= bound  # numpy's own error
    assert bound <= truth * rank ** (0.5 ** (steps + 1)) * (1 + SLACK)  # the slack of Gram iteration


def test_dense_bound_in_exact_rationals():
    for _ in range(20):
        W = torch.randint(-9, 10, (4, 3)).double() / 7
        bound = norm_bounds.dense_bound(W)
        assert is_upper_bound_exactly(bound, W)
        assert not is_upper_bound_exactly(bound * (1 - 1e-3), W)  # 3^(2^-13) - 1 = 1.4e-4: nearly the norm
    assert is_upper_bound_exactly(norm_bounds.dense_bound(torch.eye(3), steps=20), torch.eye(3))


def test_dense_bound_is_close_where_singular_values_are_clustered():
    """Nearly orthogonal but for one of them, as weights that Björck's iteration has not finished: the worst case of
    Gram iteration, r^(2^-21) - 1 = 2.2e-6 for r = 100, and never below the norm, which is 1 to 1e-14."""
    values = torch.ones(100, dtype=torch.float64)
    values[-1] = 0.5
    U, V = (torch.linalg.qr(torch.randn(n, 100, dtype=torch.float64)).Q for n in (100, 300))
    bound = norm_bounds.dense_bound(U * values @ V.T)
    assert 1 - 1e-14 < bound < 1 + 3e-6


def test_more_steps_stay_above_in_exact_rationals():
    for seed in range(5):
        W = torch.eye(4) + 0.01 * torch.randn(4, 4, generator=torch.Generator().manual_seed(seed))
        for steps in (20, 30):
            assert is_upper_bound_exactly(norm_bounds.dense_bound(W, steps=steps), W)


def test_dense_bound_of_a_rank_one_matrix_is_exact_up_to_rounding():
    ones = torch.full((3, 3), 1 / 3, dtype=torch.float64)  # 1/3 rounds down: the norm is 1 - 2^-54, below 1
    assert is_upper_bound_exactly(norm_bounds.dense_bound(ones), ones)
    assert norm_bounds.dense_bound(ones) < 1 + 1e-13


@pytest.mark.parametrize("exponent", [-900, -600, -100, 100, 600, 990])
def test_scaling_by_powers_of_two_is_exact(exponent):
    """No overflow and no underflow: the bound of 2^e W is 2^e times that of W, where 2^e W keeps all its
    bits."""
    W = torch.randint(-3, 4, (3, 3)).double() + 8 * torch.eye(3)
    scaled = W * 2.0 ** (exponent // 2) * 2.0 ** (exponent - exponent // 2)
    expected = norm_bounds.dense_bound(W)
    ratio = norm_bounds.dense_bound(scaled) * 2.0 ** -(exponent // 2) * 2.0 ** -(exponent - exponent // 2)
    assert expected * (1 - 1e-15) <= ratio <= expected * (1 + 1e-5)
    K = W.reshape(3, 3, 1, 1)
    assert norm_bounds.kernel_space_bound(K) > 8


@pytest.mark.parametrize("row", [[1, 1], [2, 1], [3, 3, 3, 1]])
def test_norms_below_the_normal_numbers_are_rounded_upward(row):
    """In units of the least subnormal number, where a rounding may take away half of a norm."""
    W = torch.tensor([row], dtype=torch.float64) * 2.0**-1074
    assert is_upper_bound_exactly(norm_bounds.dense_bound(W), W)


def test_zero_has_norm_zero():
    assert norm_bounds.dense_bound(torch.zeros(3, 2)) == 0
    assert norm_bounds.circular_bound(torch.zeros(3, 2, 3, 3), (4, 4)) <= 1e-300


def test_steps_decrease_to_the_truth_from_above():
    """Monotone decrease towards the truth, never below; three steps are within 1e-4."""
    K, size = torch.randn(5, 4, 3, 3), (8, 8)
    truth = np.linalg.norm(dense_circular(K, size), 2)
    bounds = [norm_bounds.circular_bound(K, size, steps=t) for t in range(7)]
    assert all(a > b for a, b in pairwise(bounds[:5]))  # 1e-8 above the truth; the others differ by rounding
    assert max(bounds[5:]) <= bounds[4]
    assert bounds[0] > 1.1 * truth
    assert truth <= bounds[6] * (1 + 1e-14)
    assert bounds[6] < truth * 4 ** (1 / 128) * (1 + SLACK)


@pytest.mark.parametrize("k", [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (1, 3), (4, 2)])
@pytest.mark.parametrize("size", [(4, 4), (5, 7), (3, 6), (1, 1)])
def test_circular_bounds_equal_the_dense_norm(k, size):
    K = torch.randn(3, 2, *k)
    truth = np.linalg.norm(dense_circular(K, size), 2)
    for bound, slack in (
        (norm_bounds.circular_bound(K, size), 2 ** (0.5**13) - 1),  # two channels, twelve steps
        (norm_bounds.spectrum_bound(K, size), 0.0),
    ):
        assert truth * (1 - 1e-13) <= bound <= truth * (1 + slack + SLACK)


@pytest.mark.parametrize("bound", [norm_bounds.grid_bound, norm_bounds.kernel_space_bound, norm_bounds.unfolding_bound])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_size_free_bounds_are_above_the_supremum(bound, k):
    for _ in range(5):
        K = torch.randn(4, 3, k, k)
        assert supremum(K) * (1 - 1e-13) <= bound(K)


def test_how_tight_the_size_free_bounds_are():
    """The running example's ratios are 1.09 (three steps) and 1.6 (unfoldings). The grid:
    1 / cos^2(pi / 64) = 1.0024, ten steps of rank 4 leave 0.07 %, and that of the truth misses at most
    1 / cos^2(pi / 96) = 1.0011."""
    K = torch.randn(5, 4, 3, 3)
    truth = supremum(K)
    assert norm_bounds.grid_bound(K) < 1.0045 * truth
    assert norm_bounds.kernel_space_bound(K) < 1.2 * truth
    assert norm_bounds.unfolding_bound(K) < 2 * truth
    steps = [norm_bounds.kernel_space_bound(K, steps=t) for t in (1, 2, 3)]
    assert steps == sorted(steps, reverse=True)


def test_grid_factor_on_random_kernels():
    """Grids barely finer than the kernel are never below the truth."""
    smallest = np.inf
    for trial in range(150):
        k = (2, 3, 5)[trial % 3]
        K = torch.randn(1 + trial % 2, 2, k, k)
        truth = supremum(K, 96)
        bound = norm_bounds.grid_bound(K, grid=k + trial % (2 * k))
        assert truth * (1 - 1e-13) <= bound
        smallest = min(smallest, bound / truth)
    assert smallest < 1.25  # the correction is needed: without it many would fall below


def test_grid_factor_is_attained():
    """1 - i e^{iw} as real 2 x 2 blocks: 2 at w = pi/2, but sqrt(2) on the grid of two."""
    taps = torch.stack([torch.eye(2), torch.tensor([[0.0, 1.0], [-1.0, 0.0]])])
    K = taps.permute(1, 2, 0)[:, :, None]
    assert supremum(K) == pytest.approx(2, rel=1e-12)
    assert 2 <= norm_bounds.grid_bound(K, grid=2) < 2 * 1.002  # 2^(2^-11) - 1 = 0.04 %


def test_the_cosine_is_attained_too():
    """cos(w), but turned by half a step of eight frequencies: taps 1/2 at distance 2, as real 2 x 2 blocks."""
    angle = np.pi / 8
    turn = np.cos(angle) * np.eye(2), np.sin(angle) * np.array([[0.0, 1.0], [-1.0, 0.0]])
    taps = np.stack([(turn[0] + turn[1]) / 2, np.zeros((2, 2)), (turn[0] - turn[1]) / 2])
    K = torch.from_numpy(taps.transpose(1, 2, 0)[:, :, None])
    assert supremum(K) == pytest.approx(1, rel=1e-12)
    assert supremum(K, 8) == pytest.approx(np.cos(angle), rel=1e-12)
    assert 1 <= norm_bounds.grid_bound(K, grid=8) < 1.0005  # 2^(2^-11) - 1 = 0.04 %


def test_reshaped_orthogonal_kernel_is_one_by_the_unfolding():
    Q = torch.linalg.qr(torch.randn(36, 4, dtype=torch.float64))[0].T.reshape(4, 4, 3, 3) / 3
    assert supremum(Q) <= norm_bounds.unfolding_bound(Q) < 1.0003  # 4^(2^-13) - 1 = 1.7e-4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: norm_bounds.dense_bound(torch.zeros(2, 0)), r"matrix has shape \(2, 0\)"),
        (lambda: norm_bounds.dense_bound(torch.tensor([[float("nan")]])), "NaN or infinity"),
        (lambda: norm_bounds.dense_bound(torch.ones(2, 2, dtype=torch.int64)), "floating-point"),
        (lambda: norm_bounds.dense_bound(torch.ones(2, 2), steps=-1), "steps=-1"),
        (lambda: norm_bounds.kernel_space_bound(torch.ones(1, 1, 3, 3), steps=0), "steps=0"),
        (lambda: norm_bounds.grid_bound(torch.ones(1, 1, 3, 3), grid=2), "grid=2 is coarser"),
        (lambda: norm_bounds.circular_bound(torch.ones(1, 1, 3, 3), (0, 3)), r"size=\(0, 3\)"),
        (lambda: norm_bounds.circular_bound(torch.ones(1, 3, 3), (3, 3)), "expected a non-empty"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_every_chunk_of_frequencies_counts(monkeypatch):
    """The norm of a difference filter is reached at the last frequencies only, that of a mean at the first."""
    difference, mean = torch.tensor([1.0, -1.0]).reshape(1, 1, 1, 2), torch.full((1, 1, 1, 2), 0.5)
    whole = [norm_bounds.circular_bound(K.double(), (6, 8)) for K in (difference, mean)]
    monkeypatch.setattr(norm_bounds, "CHUNK_ELEMENTS", 4)
    for K, expected, truth in zip((difference, mean), whole, (2.0, 1.0), strict=True):
        assert truth <= norm_bounds.circular_bound(K.double(), (6, 8)) <= truth * (1 + SLACK)
        assert truth <= expected <= truth * (1 + SLACK)


@pytest.mark.parametrize("period", [7, 97, 1021])
def test_the_transfer_error_bounds_what_rounding_does(period):
    """The largest entry's error against long doubles of eleven more bits: not zero, and below what is allowed."""
    K = torch.randn(3, 2, 3, 5, dtype=torch.float64)
    found = np.concatenate([M.numpy() for M in norm_bounds._transfer_chunks(K, (period, 3))])
    u, v = np.divmod(np.arange(period * 2), 2)
    pi = np.longdouble("3.14159265358979323846264338327950288")
    turns = [np.outer(f, np.arange(k)) % n for f, k, n in ((u, 3, period), (v, 5, 3))]
    angle = (
        2 * pi * (turns[0][:, :, None] * np.longdouble(1) / period + turns[1][:, None, :] * np.longdouble(1) / 3)
    ).reshape(len(u), -1)
    taps = K.flatten(2).permute(2, 0, 1).flatten(1).numpy().astype(np.longdouble)
    real, imaginary = (part.reshape(-1, 3, 2) for part in (np.cos(angle) @ taps, -np.sin(angle) @ taps))
    error = np.hypot(found.real - real, found.imag - imaginary)
    allowed = norm_bounds._transfer_error(K)
    assert 0 < np.sqrt((error**2).sum((1, 2))).max() <= allowed
    assert allowed < 1e-12 * float(K.abs().sum())


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
def test_weights_without_a_residual_are_refused(weight, message):
    with pytest.raises(ValueError, match=message):
        residual_bound(weight)
