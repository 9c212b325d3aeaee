"""Independent oracles: a linear map as a dense matrix, by applying it to every unit image; norms in rationals."""

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn


def dense_matrix(layer: nn.Module, channels: int, size: tuple[int, int]) -> Tensor:
    """Matrix (outputs, inputs) of the linear part of a layer."""
    dtype = next(layer.parameters()).dtype
    inputs = channels * size[0] * size[1]
    units = torch.eye(inputs, dtype=dtype).reshape(inputs, channels, *size)
    with torch.no_grad():
        images = layer(units) - layer(torch.zeros_like(units[:1]))
    return images.reshape(inputs, -1).T


def singular_values(matrix: Tensor) -> Tensor:
    """Descending, in float64."""
    return torch.linalg.svdvals(matrix.double())


def exceeds_norm(bound: float, matrix: Sequence[Sequence[Fraction]]) -> bool:
    """Whether bound >= the largest singular value, exactly: bound^2 I - M M^T is positive semi-definite, by LDL^T."""
    n = len(matrix)
    S = [[-sum((a * b for a, b in zip(r, q, strict=True)), Fraction()) for q in matrix] for r in matrix]
    for i in range(n):
        S[i][i] += Fraction(bound) ** 2
    for k in range(n):
        if S[k][k] < 0 or (S[k][k] == 0 and any(S[k][k + 1 :])):
            return False
        for i in range(k + 1, n):
            ratio = S[i][k] / S[k][k] if S[k][k] else Fraction(0)
            S[i] = [a - ratio * b for a, b in zip(S[i], S[k], strict=True)]
    return True
