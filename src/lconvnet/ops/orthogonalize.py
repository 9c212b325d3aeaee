"""Orthogonalisation as an engine: which algorithm makes a matrix orthogonal.

An engine is a function from a matrix to a semi-orthogonal one with the same row space (column space, if tall): its
polar factor for all but ``cholesky``. Where the matrix is nearly singular every engine is a contraction and continuous.
``orthogonalize`` picks one by device and dtype and runs it with autocast disabled in at least float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lconvnet.ops.polar import polar_eigh, polar_linear
from lconvnet.ops.polynomials import polar_express
from lconvnet.ops.whitening import cholesky, cholesky_linear

Engine = Callable[[Tensor], Tensor]

# what multiplies rows by the result of an engine and never forms it
LINEAR: dict[Engine, Callable[[Tensor, Tensor], Tensor]] = {polar_eigh: polar_linear, cholesky: cholesky_linear}


def default_engine(W: Tensor) -> Engine:
    """Eigen-decomposition on a CPU and in float64; Polar Express, which is products only, on an accelerator."""
    if W.device.type == "cpu" or W.dtype == torch.float64:
        return polar_eigh
    return polar_express


def orthogonalize(W: Tensor, engine: Engine | None = None) -> Tensor:
    """A semi-orthogonal matrix, computed in at least float32 whatever autocast says.

    Args:
        W: matrices ``(..., m, n)``; half precision is promoted to float32.
        engine: the algorithm; by default the polar factor, by the one that suits the device and the dtype of ``W``.

    >>> orthogonalize(2 * torch.eye(3, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    with torch.autocast(W.device.type, enabled=False):
        W = W.to(torch.promote_types(W.dtype, torch.float32))
        return (engine or default_engine(W))(W)


def orthogonal_linear(x: Tensor, W: Tensor, bias: Tensor | None = None, engine: Engine | None = None) -> Tensor:
    """``x U^T + b`` with U the orthogonalised W, without forming U where the engine allows it.

        x U^T = (x W^T) A^T   for a wide W with U = A W,        x U^T = (x A) W^T   for a tall one with U^T = A W^T.

    U is formed in float64, which is to be exact, and under autocast, where products with the raw W would be rounded
    before A amplifies them.

    Args:
        x: ``(..., n)``, of the dtype of W but for autocast.
        W: one matrix ``(m, n)``, float32 or float64.
        bias: ``(m,)`` or None.
        engine: as in :func:`orthogonalize`.

    Returns:
        ``(..., m)``, equal to ``F.linear(x, orthogonalize(W, engine), bias)`` up to round-off times the square of the
        condition number of W.

    >>> orthogonal_linear(torch.tensor([[1.0, 2.0]]), 3 * torch.eye(2)).round(decimals=4)
    tensor([[1., 2.]])
    """
    engine = engine or default_engine(W)
    if engine not in LINEAR or W.dtype == torch.float64 or torch.is_autocast_enabled(x.device.type):
        return F.linear(x, orthogonalize(W, engine), bias)
    y = LINEAR[engine](x.reshape(-1, x.shape[-1]), W).reshape(*x.shape[:-1], W.shape[0])
    return y if bias is None else y + bias
