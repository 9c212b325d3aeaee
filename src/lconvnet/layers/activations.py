"""Norm-preserving activations: each one's Jacobian permutes, changes signs or adds zero channels almost everywhere."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from lconvnet.kernels.base import require_positive
from lconvnet.ops.sorting import group_sort, max_min

# torch.fx records each as one call, because its values have no sizes to check
fx.wrap("max_min")
fx.wrap("group_sort")


class MaxMin(nn.Module):
    """Pair channel c with c + C/2, the larger one first (Anil, Lucas & Grosse 2019; OPLU of Chernodub & Nowicki 2016).

    Args:
        dim: channel dimension, of even size.

    >>> MaxMin()(torch.tensor([[1.0, 2.0]])).tolist()
    [[2.0, 1.0]]
    """

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return max_min(x, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class GroupSort(nn.Module):
    """Sort ascending inside groups of channels (Anil, Lucas & Grosse 2019).

    Args:
        group_size: members of a group; divides the number of channels.
        dim: channel dimension.

    >>> GroupSort(2)(torch.tensor([[2.0, 1.0]])).tolist()
    [[1.0, 2.0]]
    """

    def __init__(self, group_size: int, dim: int = 1) -> None:
        super().__init__()
        require_positive(group_size=group_size)
        self.group_size, self.dim = group_size, dim

    def forward(self, x: Tensor) -> Tensor:
        return group_sort(x, self.group_size, self.dim)

    def extra_repr(self) -> str:
        return f"group_size={self.group_size}, dim={self.dim}"


class FullSort(nn.Module):
    """Sort all channels ascending: GroupSort with one group.

    >>> FullSort()(torch.tensor([[3.0, 1.0, 2.0]])).tolist()
    [[1.0, 2.0, 3.0]]
    """

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return x.sort(self.dim).values

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class Abs(nn.Module):
    """Absolute value; MaxMin up to a rotation of the pairs.

    >>> Abs()(torch.tensor([-1.0, 2.0])).tolist()
    [1.0, 2.0]
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


class TwoSidedReLU(nn.Module):
    """``(max(x, 0), max(-x, 0))`` along the channels, twice as many (Qian & Wegman 2019; concatenated ReLU of Shang et
    al. 2016).

    >>> TwoSidedReLU()(torch.tensor([[-1.0, 2.0]])).tolist()
    [[0.0, 2.0, 1.0, 0.0]]
    """

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.relu(), (-x).relu()], dim=1)
