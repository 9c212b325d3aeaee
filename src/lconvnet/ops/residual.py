"""Residual certificate: a bound on the norm of a nearly orthogonal kernel from how far it is from being
orthogonal.

With the lag-s correlation of the taps, A(s) = sum_a K[:, :, a]^T K[:, :, a + s], and R(s) = A(s) - delta_{s =
0} I,

    sup_w |K_hat(w)|_2 <= sqrt(1 + rho),        rho = max_i sum_{j, s} |R_ij(s)|,

because ``K_hat^* K_hat - I`` is the Fourier transform of R, and a Hermitian matrix is bounded by its largest
row sum. The supremum bounds the convolution for every image size, circular or zero padded, strided or
dilated. Where there are fewer outputs than inputs the same holds for K K^T. Rounding is accounted
for: with N = (terms of one sum),

    rho_sound = (max_i sum_{j, s} |R_ij(s)| + g(N) Abs_ij(s)) (1 + ...),    Abs = the same correlation of |K|.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .polyphase import to_unshuffled
from .rounding import gamma, up


def to_float64(tensor: Tensor, name: str = "weight") -> Tensor:
    """The same numbers in float64 on the CPU, where matrix products are plain sums; refuses NaN and infinity.

    >>> to_float64(torch.ones(2)).dtype
    torch.float64
    """
    if not tensor.is_floating_point():
        raise ValueError(f"{name} has dtype {tensor.dtype}: bounds need floating-point weights")
    values = tensor.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(values).all()):
        raise ValueError(
            f"{name} of shape {tuple(tensor.shape)} holds NaN or infinity: no bound exists; train again or "
            "restore a checkpoint"
        )
    return values


def self_correlation(G: Tensor) -> Tensor:
    """Taps of ``G G^*``: H[i, j, s] = sum_{m, a} G[i, m, a + s] G[j, m, a].

    Args:
        G: kernel ``(p, q, kh, kw)``.

    Returns:
        ``(p, p, 2 kh - 1, 2 kw - 1)``; lag 0 sits in the middle. Only half the lags are summed, the others
        are their transposes.

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
    """An upper bound on the norm of a dense matrix or of a convolution: never below the norm, tight when it
    is nearly orthogonal.

        sup_w |K_hat(w)|_2 <= sqrt(1 + max_i sum_{j, s} |R_ij(s)|)

    Args:
        weight: matrix ``(m, n)`` or kernel ``(co, ci, kh, kw)``, any floating dtype; read as exact numbers.
        stride: stride of the convolution. The certificate is then taken on the polyphase kernel (0.3, 3): it
            holds for zero padding, and for circular padding when both sides of the image are multiples of the
            stride.

    Returns:
        The bound, rounded outward; infinite when the numbers are too large for the formula.

    Raises:
        ValueError: another number of dimensions, an empty, non-float or non-finite weight.

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
    # One product and fewer than `terms` additions per entry, then the subtraction; 2^-1022 covers products
    # that underflow.
    error = gamma(terms + 2) * absolute + terms * 2.0**-1022
    rho = float((R.abs() + error).sum(dim=(1, 2, 3)).max())
    if not math.isfinite(rho):
        return math.inf
    rho *= 1 + 2 * gamma(A[0].numel() + terms + 8)
    return up(math.sqrt(up(1 + rho)))


def as_kernel(weight: Tensor, stride: int = 1) -> Tensor:
    """A matrix as a 1 x 1 kernel, a strided kernel as its polyphase kernel.

    >>> as_kernel(torch.zeros(3, 2)).shape, as_kernel(torch.zeros(4, 2, 3, 3), 2).shape
    (torch.Size([3, 2, 1, 1]), torch.Size([4, 8, 2, 2]))
    """
    if weight.ndim not in (2, 4) or weight.numel() == 0:
        raise ValueError(f"weight has shape {tuple(weight.shape)}: expected a non-empty (m, n) or (co, ci, kh, kw)")
    return to_unshuffled(weight if weight.ndim == 4 else weight[:, :, None, None], stride)
