"""Lower bounds by power iteration on the Jacobian: they diagnose, they never certify."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

ROUNDING = 1 - 1e-9
"""Taken off, far more than float64 can have added."""


def jacobian_norm(function: Callable[[Tensor], Tensor], points: Tensor, *, iterations: int = 20) -> float:
    """A lower bound on the Lipschitz constant: the largest ``|J(x) v| / |v|`` found at the points by power
    iteration.

        v <- J^T u / |J^T u|,   u <- J v / |J v|

    Args:
        function: maps a batch ``(P, ...)`` example by example; piecewise differentiable.
        points: ``(P, ...)`` in float64, where the Jacobian is taken.
        iterations: of the power method, from a fixed random start.

    Returns:
        The bound, lowered by 1e-9: never above the constant as long as the points are not on a kink of the
        function.

    >>> round(jacobian_norm(lambda x: 3 * x, torch.ones(2, 4, dtype=torch.float64)), 6)
    3.0
    """
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(False), torch.enable_grad():
        x = points.detach().clone().requires_grad_()
        y = function(x.clone())  # which it may change in place
        u = torch.randn(y.shape, generator=generator, dtype=y.dtype).to(y.device).requires_grad_()
        (pulled,) = torch.autograd.grad(y, x, u, create_graph=True)
        norm = torch.zeros(len(points), dtype=y.dtype, device=y.device)
        v = _normalized(pulled.detach())
        for _ in range(iterations):
            (pushed,) = torch.autograd.grad(pulled, u, v, retain_graph=True)  # J v, because J^T u is linear in u
            norm = torch.maximum(norm, _norms(pushed) / _norms(v).clamp(min=0.5))
            (back,) = torch.autograd.grad(y, x, _normalized(pushed), retain_graph=True)
            v = _normalized(back)
    return float(norm.nan_to_num(nan=0.0).max()) * ROUNDING  # a root of zero has no slope


def network_lower(network: nn.Module, input_shape: tuple[int, ...], *, points: int = 4) -> float:
    """A lower bound on the Lipschitz constant of a network over images: :func:`jacobian_norm` at random
    images in [0, 1].

    >>> round(network_lower(nn.Sequential(nn.Flatten(), nn.Hardtanh()), (1, 2)), 6)
    1.0
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(points, *input_shape, generator=generator, dtype=torch.float64)
    with torch.inference_mode(False):  # a copy made in inference mode could not be differentiated
        copy = deepcopy(network).to("cpu", torch.float64).eval().requires_grad_(False)
    return jacobian_norm(copy, images)


def _norms(vectors: Tensor) -> Tensor:
    return vectors.reshape(len(vectors), -1).norm(dim=1)


def _normalized(vectors: Tensor) -> Tensor:
    norms = _norms(vectors).clamp(min=torch.finfo(vectors.dtype).tiny)
    return vectors / norms.reshape(-1, *[1] * (vectors.ndim - 1))
