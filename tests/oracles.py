"""Independent oracles: a linear map as a dense matrix, by applying it to every unit image."""

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
