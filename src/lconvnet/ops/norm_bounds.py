"""Upper bounds on the norms of matrices and convolutions, every rounding accounted for.

**Residual.** With the lag-s correlation of the taps, A(s) = sum_a K[:, :, a]^T K[:, :, a + s], and
R(s) = A(s) - delta_{s = 0} I,

    sup_w |K_hat(w)|_2 <= sqrt(1 + rho),        rho = max_i sum_{j, s} |R_ij(s)|,

because ``K_hat^* K_hat - I`` is the Fourier transform of R, and a Hermitian matrix is bounded by its largest row sum.
The supremum bounds the convolution for every image size, circular or zero padded, strided or dilated.

**Gram iteration** (Delattre et al. 2023). From |G|_2 <= |G|_F and |G^* G|_2 = |G|_2^2, repeating G <- G^* G and taking
the final 2^t-th root,

    |G|_2 <= |G_t|_F^(2^-t),        relative slack at most r^(2^-(t+1)) - 1 with r the rank.

G is rescaled by powers of two, which is exact, and the exponents are kept as integers. The root is t square roots, each
followed by a step upward. A bound on the rounding of the products is added at the end.

Sources: Delattre et al. 2023 (matrices) and 2024 (kernels), Pfister & Bresler 2019 (grids).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lconvnet.ops.circular import to_unshuffled
from lconvnet.ops.float64 import power_of_two, rescaled, row_norms, to_float64
from lconvnet.ops.fourier import by_taps, phases
from lconvnet.ops.rounding import UNIT_ROUNDOFF, gamma, up

CHUNK_ELEMENTS = 2**21  # complex numbers held at once: 32 MB
TINY = 2.0**-1022  # the least normal number: below it even a product with a power of two is rounded


def self_correlation(G: Tensor) -> Tensor:
    """Taps of ``G G^*``: H[i, j, s] = sum_{m, a} G[i, m, a + s] G[j, m, a].

    Args:
        G: kernel ``(p, q, kh, kw)``.

    Returns:
        ``(p, p, 2 kh - 1, 2 kw - 1)`` with lag 0 in the middle. Only half the lags are summed; the others are their
        transposes.

    >>> self_correlation(torch.ones(1, 1, 1, 2)).flatten().tolist()
    [1.0, 2.0, 1.0]
    """
    height, width = G.shape[-2:]
    H = G.new_empty(G.shape[0], G.shape[0], 2 * height - 1, 2 * width - 1)
    for dy in range(height):
        for dx in range(-width + 1 if dy else 0, width):
            later = G[:, :, dy:, max(dx, 0) : width + min(dx, 0)]
            earlier = G[:, :, : height - dy, max(-dx, 0) : width - max(dx, 0)]
            lag = later.flatten(1) @ earlier.flatten(1).T
            H[:, :, height - 1 + dy, width - 1 + dx] = lag
            H[:, :, height - 1 - dy, width - 1 - dx] = lag.T
    return H


def residual_bound(weight: Tensor, *, stride: int = 1) -> float:
    """The bound ``sqrt(1 + rho)`` on the norm of a matrix or a convolution, tight if it is nearly orthogonal.

    Args:
        weight: matrix ``(m, n)`` or kernel ``(co, ci, kh, kw)`` of any floating dtype, read as exact numbers.
        stride: stride of the convolution. The bound is that of the unshuffled kernel. It holds for zero padding, and
            for circular padding if both sides of the image are multiples of the stride.

    Returns:
        The bound, rounded outward; infinite if the numbers are too large for the formula.

    Raises:
        ValueError: for another number of dimensions, or an empty, non-float or non-finite weight.

    >>> 1 <= residual_bound(torch.eye(8)) < 1 + 1e-14
    True
    >>> residual_bound(2 * torch.ones(1, 1, 1, 1)) >= 2
    True
    """
    K = as_kernel(to_float64(weight), stride)
    K = K if K.shape[0] <= K.shape[1] else K.transpose(0, 1)  # |K_hat(w)| = |K_hat(w)^T|: take the smaller side
    terms = K[0].numel()
    A = self_correlation(K)
    absolute = self_correlation(K.abs())
    identity = torch.eye(K.shape[0], dtype=torch.float64)
    R = A.clone()
    R[:, :, K.shape[2] - 1, K.shape[3] - 1] -= identity
    # One product and fewer than `terms` additions per entry, then the subtraction; TINY covers what underflows.
    error = gamma(terms + 2) * absolute + terms * TINY
    rho = float((R.abs() + error).sum(dim=(1, 2, 3)).max())
    if not math.isfinite(rho):
        return math.inf
    rho *= 1 + 2 * gamma(A[0].numel() + terms + 8)
    return up(math.sqrt(up(1 + rho)))


def as_kernel(weight: Tensor, stride: int = 1) -> Tensor:
    """Return a matrix as a 1 x 1 kernel, and a strided kernel as its polyphase kernel.

    >>> as_kernel(torch.zeros(3, 2)).shape, as_kernel(torch.zeros(4, 2, 3, 3), 2).shape
    (torch.Size([3, 2, 1, 1]), torch.Size([4, 8, 2, 2]))
    """
    if weight.ndim not in (2, 4) or weight.numel() == 0:
        raise ValueError(f"weight has shape {tuple(weight.shape)}: expected a non-empty (m, n) or (co, ci, kh, kw)")
    return to_unshuffled(weight if weight.ndim == 4 else weight[:, :, None, None], stride)


def dense_bound(matrix: Tensor, *, steps: int = 20) -> float:
    """Gram iteration of a matrix: at most ``r^(2^-(steps+1))`` times its norm.

    Args:
        matrix: ``(m, n)``.
        steps: t; the slack at 20 is 3e-6 for rank 512, even if all singular values are nearly equal.

    >>> 1 <= dense_bound(torch.eye(4)) < 1 + 1e-6
    True
    """
    W = to_float64(matrix)
    if W.ndim != 2 or W.numel() == 0:
        raise ValueError(f"matrix has shape {tuple(W.shape)}: expected a non-empty (m, n)")
    return _largest_norm(W[None], steps)


def circular_bound(K: Tensor, size: tuple[int, int], *, steps: int = 12) -> float:
    """Gram iteration of ``K_hat(w)`` at all frequencies of an h x w image: nearly exact for circular padding.

    Args:
        K: kernel ``(co, ci, kh, kw)``, stride 1.
        size: (h, w); an axis with one tap needs only one frequency.

    >>> 1 <= circular_bound(torch.ones(1, 1, 2, 2) / 4, (8, 8)) < 1 + 1e-12
    True
    """
    kernel = as_kernel(to_float64(K))
    height, width = (n if k > 1 else min(n, 1) for n, k in zip(size, kernel.shape[2:], strict=True))
    largest = 0.0
    for matrices in _transfer_chunks(kernel, (height, width)):
        largest = max(largest, _largest_norm(matrices, steps, largest))
    return up(largest + _transfer_error(kernel))


def grid_bound(K: Tensor, *, grid: int = 64, steps: int = 10) -> float:
    """A bound on ``sup_w |K_hat(w)|_2`` from N x N frequencies: for every image size, circular or zero padded.

        |K|_sup <= M_N prod_axes min( 1 / cos(pi t / 2),  (1 - t)^(-1/2) ),        t = (k - 1) / N

    where M_N is the maximum over the grid. The first factor holds because Re v* K_hat u is, up to a shift, a
    trigonometric polynomial of degree (k - 1) / 2. Within delta of its maximum it is at least cos((k - 1) delta / 2)
    times that maximum (M. Riesz; Ehlich & Zeller 1964), and a frequency of the grid lies within pi / N. The second
    factor (Pfister & Bresler 2019) is better below N = 2 (k - 1).

    Args:
        K: kernel ``(co, ci, kh, kw)``, stride 1.
        grid: N, at least max(kh, kw).

    >>> 1 <= grid_bound(torch.ones(1, 1, 2, 2) / 4) < 1.002
    True
    """
    taps = tuple(K.shape[-2:])
    if grid < max(taps):
        raise ValueError(f"grid={grid} is coarser than the {taps} kernel: take at least {max(taps)}")
    factor = math.prod(_between((k - 1) / grid) for k in taps)
    return circular_bound(K, (grid, grid), steps=steps) * factor * (1 + 32 * UNIT_ROUNDOFF)


def _between(t: float) -> float:
    """The factor for one axis: how far the maximum may exceed that on the grid."""
    return 1 / math.cos(math.pi * t / 2) if t <= 0.5 else 1 / math.sqrt(1 - t)


def kernel_space_bound(K: Tensor, *, steps: int = 3) -> float:
    """A bound on ``sup_w |K_hat(w)|_2``: for every image size, circular or zero padded (Delattre et al. 2024).

        |K|_sup <= (max_i sum_{j, s} |H_ij(s)|)^(2^-t),        H the t-fold self-correlation

    Args:
        K: kernel ``(co, ci, kh, kw)``, stride 1.
        steps: t >= 1; the kernel's side grows to 2^t (k - 1) + 1. One step is the AOL bound.

    >>> 1 <= kernel_space_bound(torch.ones(1, 1, 2, 2) / 4) < 1 + 1e-12
    True
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: the row sum bounds a Hermitian operator only, take at least 1")
    G = as_kernel(to_float64(K))
    G = G if G.shape[0] <= G.shape[1] else G.transpose(0, 1)
    exponent, slack = torch.zeros(1, dtype=torch.int64), 0.0
    for _ in range(steps):
        unit, shift = rescaled(G[None])
        G, exponent = unit[0], 2 * (exponent + shift)
        # A row and a column of |G| have l1 norms <= sqrt(columns taps) |G| and sqrt(rows taps) |G|: by Schur's test
        # the error of a product is at most g(N) |abs(G)|^2 <= g(N) sqrt(rows columns) taps |G|^2.
        taps = G.shape[2] * G.shape[3]
        slack = max(slack, gamma(G[0].numel() + 2) * math.sqrt(G.shape[0] * G.shape[1]) * taps)
        G = self_correlation(G)
    norm = G.abs().sum(dim=(1, 2, 3)).amax(dim=0, keepdim=True) * (1 + gamma(G[0].numel() + 2))
    if slack >= 0.25:
        return math.inf
    return up(float(_root(norm, exponent, steps)) * (1 + 2 * slack))


def unfolding_bound(K: Tensor, *, steps: int = 12) -> float:
    """A bound on ``sup_w |K_hat(w)|_2``: for every image size, circular or zero padded (Singla & Feizi 2021).

        |K|_sup <= sqrt(kh kw) min(|R|, |S|, |T|, |U|)_2

    with the unfoldings (co kh, ci kw), (co kw, ci kh), (co, ci kh kw), (co kh kw, ci) and their norms from Gram
    iteration. Exact for a reshaped orthogonal kernel (RKO).

    >>> 1 <= unfolding_bound(torch.ones(1, 1, 2, 2) / 4) < 1 + 1e-12
    True
    """
    kernel = as_kernel(to_float64(K))
    outputs, inputs, height, width = kernel.shape
    unfoldings = (
        kernel.permute(0, 2, 1, 3).reshape(outputs * height, inputs * width),
        kernel.permute(0, 3, 1, 2).reshape(outputs * width, inputs * height),
        kernel.reshape(outputs, inputs * height * width),
        kernel.permute(0, 2, 3, 1).reshape(outputs * height * width, inputs),
    )
    smallest = min(dense_bound(matrix, steps=steps) for matrix in unfoldings)
    return up(up(smallest * up(math.sqrt(height * width))))


def spectrum_bound(weight: Tensor, size: tuple[int, int]) -> float:
    """The largest singular value of ``K_hat(w)`` at all frequencies of an h x w image by SVD, rounded outward.

    It is an upper bound if LAPACK's backward-stable singular values are within 32 max(m, n) u of the norm (Sedghi et
    al. 2019).

    Args:
        weight: kernel ``(co, ci, kh, kw)``, stride 1, or matrix ``(m, n)``; a matrix ignores the size.
        size: (h, w).

    >>> 1 <= spectrum_bound(torch.eye(3), (1, 1)) < 1 + 1e-12
    True
    """
    kernel = as_kernel(to_float64(weight))
    chunks = _transfer_chunks(kernel, size if max(kernel.shape[2:]) > 1 else (1, 1))
    largest = max(float(torch.linalg.svdvals(matrices).max()) for matrices in chunks)
    return up((largest + _transfer_error(kernel)) * (1 + 32 * max(kernel.shape[:2]) * UNIT_ROUNDOFF))


def _largest_norm(G: Tensor, steps: int, known: float = 0.0) -> float:
    """An upper bound on the largest norm among the matrices ``(F, m, n)``, or ``known`` if that is larger.

    A matrix is not squared further if its bound after i products is below ``known``, or below the norm that another
    matrix certainly has (that one's bound over ``r^(2^-(i+1))``). Its last bound counts.
    """
    if steps < 0:
        raise ValueError(f"steps={steps} must not be negative")
    longer, rank = max(G.shape[-2:]), min(G.shape[-2:])
    # Relative error of a computed |G|_F, and of all products together: each weighs half as much as the one before.
    norm_error, slack = gamma(2 * rank * longer + 8), 2 * rank * gamma(4 * longer + 4)
    G, exponent = rescaled(G if G.shape[-2] >= G.shape[-1] else G.mT)  # so that products have the smaller side
    largest = known
    for i in range(steps + 1):
        bounds = _root(torch.linalg.matrix_norm(G) * (1 + norm_error), exponent, i) * (1 + slack + norm_error)
        keep = bounds > max(largest, float(bounds.max()) / rank ** (0.5 ** (i + 1)) * (1 - 1e-9))
        if i == steps or not keep.any():
            return max(largest, float(bounds.max()))
        largest = max([largest, *bounds[~keep].tolist()])
        G, shift = rescaled(G[keep].mH @ G[keep])
        exponent = 2 * exponent[keep] + shift
    return largest


def _root(mantissa: Tensor, exponent: Tensor, steps: int) -> Tensor:
    """``(mantissa 2^exponent)^(2^-steps)`` by square roots, each rounded upward; infinite out of range."""
    infinity = torch.full_like(mantissa, math.inf)
    for _ in range(steps):
        odd = exponent % 2
        root = torch.nextafter(torch.sqrt(mantissa * (1 + odd)), infinity)
        mantissa, exponent = torch.where(mantissa == 0, mantissa, root), (exponent - odd) // 2
    product = mantissa * power_of_two(exponent.clamp(-1000, 1000))
    product = torch.where((product > 0) & (product < TINY), torch.nextafter(product, infinity), product)
    return torch.where(exponent > 1000, infinity, product)


def _transfer_chunks(K: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
    """Yield ``K_hat`` as ``(F, co, ci)`` on the half plane of frequencies."""
    taps = by_taps(K).to(torch.complex128)
    step = max(1, CHUNK_ELEMENTS // max(taps.shape))
    for chunk in phases(size, (K.shape[2], K.shape[3]), step):
        yield (chunk @ taps).unflatten(1, K.shape[:2])


def _transfer_error(K: Tensor) -> float:
    """A bound on the rounding error of ``K_hat(w)``: 30 u per phase and u per addition, times the absolute sum."""
    taps = K.shape[2] * K.shape[3]
    total = float(row_norms(by_taps(K)).sum())
    return (32 + 4 * taps) * UNIT_ROUNDOFF * total if taps > 1 else 0.0
