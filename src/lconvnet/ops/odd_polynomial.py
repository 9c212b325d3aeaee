"""Odd polynomials of a matrix, of which iterations towards the polar factor are made.

    Y = (c_0 I + p(S)) X,     S = X X^T - a I,     p(S) = c_1 S + ... + c_d S^d = P_1,     P_k = S (c_k I + P_{k+1})

maps every singular value s to ``s (c_0 + c_1 (s^2 - a) + ... + c_d (s^2 - a)^d)``. About a = 1, where singular values
gather, powers of high degree stay small and so does what rounding does to them. Its gradient, with
``M = D X^T + X D^T`` and ``D = dl/dY``, needs five products for a quintic, where recorded operations need six:

    dl/dX = (c_0 I + P_1) D + L_1 X,        L_k = c_k M + M P_{k+1} + S L_{k+1},        L_d = c_d M.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lconvnet.ops.derivatives import gradient_of, plain_call

Coefficients = tuple[float, ...]


def _powers(S: Tensor, coefficients: Coefficients) -> list[Tensor]:
    """P_d, ..., P_1."""
    found = [coefficients[-1] * S]
    for c in reversed(coefficients[1:-1]):
        found.append(torch.baddbmm(S, S, found[-1], beta=c))
    return found


def _double(X: Tensor, coefficients: Coefficients, about: float) -> Tensor:
    """Y in plain operations and float64."""
    exact = X.double()
    S = exact @ exact.mT - about * torch.eye(X.shape[-2], dtype=exact.dtype, device=X.device)
    P = _powers(S, coefficients)[-1]
    return torch.baddbmm(exact, P, exact, beta=coefficients[0]).to(X.dtype)


class _OddPolynomial(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, X: Tensor, coefficients: Coefficients, about: float) -> Tensor:
        S = X @ X.mT
        if about:
            S.diagonal(dim1=-2, dim2=-1).sub_(about)
        P = _powers(S, coefficients)
        ctx.constants = (coefficients, about)
        ctx.save_for_backward(X, S, *P)
        return torch.baddbmm(X, P[-1], X, beta=coefficients[0])

    @staticmethod
    @gradient_of(_double)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        X, S, *P = ctx.saved_tensors
        coefficients, _ = ctx.constants
        M = grad @ X.mT
        M = M + M.mT
        L = coefficients[-1] * M
        for c, inner in zip(reversed(coefficients[1:-1]), P, strict=False):  # all but P_1
            L = torch.baddbmm(torch.baddbmm(M, M, inner, beta=c), S, L)
        return torch.baddbmm(torch.baddbmm(grad, P[-1], grad, beta=coefficients[0]), L, X), None, None


def odd_polynomial(X: Tensor, coefficients: Coefficients, about: float = 0.0) -> Tensor:
    """``(c_0 I + c_1 S + ... + c_d S^d) X`` with ``S = X X^T - a I``, whose gradient does not feel autocast.

    Args:
        X: wide matrices ``(..., m, n)``, float32 or float64.
        coefficients: ``c_0, ..., c_d``, at least two.
        about: a.

    >>> odd_polynomial(torch.tensor([[0.5]]), (1.5, -0.5)).item()
    0.6875
    """
    batch = X.reshape(math.prod(X.shape[:-2]), *X.shape[-2:])
    Y = _OddPolynomial.apply(batch, coefficients, about) if plain_call(batch) else _double(batch, coefficients, about)
    return Y.reshape(X.shape)
