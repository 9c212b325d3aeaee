"""Branches that meet again: sums and concatenations of networks that see the same input."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Sum(nn.Module):
    """``y = sum_b f_b(x)``: a residual block where one branch is the shortcut.

    Its constant is at most the sum of theirs.

    >>> import torch
    >>> Sum(nn.Identity(), nn.Identity())(torch.ones(1, 1)).item()
    2.0
    """

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = _branches(branches)

    def forward(self, x: Tensor) -> Tensor:
        total = x
        for index, branch in enumerate(self.branches):
            total = total + branch(x) if index else branch(x)
        return total


class Concat(nn.Module):
    """``y = (f_1(x), ..., f_n(x))`` along the channels.

    Its constant is at most the root of the sum of their squares.

    >>> import torch
    >>> Concat(nn.Identity(), nn.ReLU())(torch.ones(1, 1)).tolist()
    [[1.0, 1.0]]
    """

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = _branches(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def _branches(branches: tuple[nn.Module, ...]) -> nn.ModuleList:
    if not branches:
        raise ValueError("branches is empty: give at least one module")
    return nn.ModuleList(branches)
