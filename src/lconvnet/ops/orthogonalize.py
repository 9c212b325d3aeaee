"""Orthogonalisation as an engine: which algorithm makes a matrix orthogonal, and how well it did.

An engine is a function from a matrix to (nearly) its polar factor. ``polar`` picks one by device and dtype, runs it
with autocast disabled in at least float32, and ``residual`` says how far the result is from orthogonal.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lconvnet.ops.polar import apply_gram_inverse_root, polar_eigh
from lconvnet.ops.polar_express import polar_express

Engine = Callable[[Tensor], Tensor]


def default_engine(W: Tensor) -> Engine:
    """Eigen-decomposition on a CPU and in float64; Polar Express, which is products only, on an accelerator."""
    if W.device.type == "cpu" or W.dtype == torch.float64:
        return polar_eigh
    return polar_express


def polar(W: Tensor, engine: Engine | None = None) -> Tensor:
    """The nearest semi-orthogonal matrix, computed in at least float32 whatever autocast says.

    Args:
        W: matrices ``(..., m, n)``; half precision is promoted to float32.
        engine: the algorithm; by default the one that suits the device and the dtype of ``W``.

    >>> polar(2 * torch.eye(3, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    with torch.autocast(W.device.type, enabled=False):
        W = W.to(torch.promote_types(W.dtype, torch.float32))
        return (engine or default_engine(W))(W)


def polar_linear(x: Tensor, W: Tensor, bias: Tensor | None = None, engine: Engine | None = None) -> Tensor:
    """``x U^T + b`` with U the polar factor of W, without forming U where its inverse Gram root is at hand.

        x U^T = (x W^T) (W W^T)^{-1/2}   for a wide W,        x U^T = (x (W^T W)^{-1/2}) W^T   for a tall one.

    Args:
        x: ``(..., n)``.
        W: one matrix ``(m, n)``; half precision is promoted to float32.
        bias: ``(m,)`` or None.
        engine: as in :func:`polar`.

    Returns:
        ``(..., m)``, equal to ``F.linear(x, polar(W, engine), bias)`` up to round-off.

    >>> polar_linear(torch.tensor([[1.0, 2.0]]), 3 * torch.eye(2))
    tensor([[1., 2.]])
    """
    if (engine or default_engine(W)) is not polar_eigh or W.dtype == torch.float64:
        return F.linear(x, polar(W, engine), bias)
    with torch.autocast(W.device.type, enabled=False):
        W = W.to(torch.promote_types(W.dtype, torch.float32))
    if W.shape[-2] > W.shape[-1]:
        return F.linear(_whitened(x, W.mT), W, bias)
    y = _whitened(F.linear(x, W), W)
    return y if bias is None else y + bias


def _whitened(z: Tensor, W: Tensor) -> Tensor:
    """``z (W W^T)^{-1/2}`` in the dtype of W, whatever autocast says."""
    with torch.autocast(W.device.type, enabled=False):
        rows = z.reshape(-1, W.shape[-2]).to(W.dtype)
        return apply_gram_inverse_root(rows, W).reshape(z.shape)


def residual(W: Tensor) -> Tensor:
    """How far matrices are from semi-orthogonal: the largest row sum of ``|W W^T - I|``, on the smaller side.

    Args:
        W: matrices ``(..., m, n)``; evaluated in float64.

    Returns:
        A tensor of shape ``(...)``. Every singular value s satisfies ``|s^2 - 1| <= residual``, up to float64
        round-off.

    >>> float(residual(torch.eye(2, 3)))
    0.0
    """
    W = W.double()
    if W.shape[-2] > W.shape[-1]:
        W = W.mT
    identity = torch.eye(W.shape[-2], dtype=W.dtype, device=W.device)
    return (W @ W.mT - identity).abs().sum(-1).amax(-1)
