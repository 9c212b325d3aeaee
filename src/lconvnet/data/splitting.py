"""Seeded stratified splits: who is held out depends on the labels, the size and a seed, on nothing else."""

import torch
from torch import Tensor

from lconvnet.data.errors import DataError


def stratified_order(labels: Tensor, *, seed: int) -> Tensor:
    """Return a permutation of `0 .. N-1`, every head of which holds each class in nearly its share.

    After a seeded shuffle, the r-th image of a class of n gets the key `(r + 1/2) / n`; sorting by the key
    spreads each class evenly: a head of k images holds `k n / N` of the class, up to one for each class. A
    class of one image comes in the middle, so a head shorter than half leaves it out.

    >>> labels = torch.tensor([0] * 8 + [1] * 4)
    >>> labels[stratified_order(labels, seed=0)[:6]].bincount().tolist()
    [4, 2]
    """
    shuffle = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    shuffled = labels[shuffle]
    grouped = torch.argsort(shuffled, stable=True)
    counts = torch.bincount(shuffled)
    starts = (counts.cumsum(0) - counts)[shuffled[grouped]]
    key = torch.empty(len(labels), dtype=torch.float64)
    key[grouped] = (torch.arange(len(labels)) - starts + 0.5) / counts[shuffled[grouped]].double()
    return shuffle[torch.argsort(key, stable=True)]


def held_out(labels: Tensor, count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Split `0 .. N-1` in `(head, rest)`: `count` stratified indices, and the others, both in shuffled order.

    >>> head, rest = held_out(torch.tensor([0, 0, 1, 1]), 2, seed=0)
    >>> sorted(head.tolist() + rest.tolist()), len(head)
    ([0, 1, 2, 3], 2)
    """
    order = stratified_order(labels, seed=seed)
    head, rest = order[:count], order[count:]
    shuffle = torch.Generator().manual_seed(seed)
    return head[torch.randperm(len(head), generator=shuffle)], rest[torch.randperm(len(rest), generator=shuffle)]


def size(argument: str, value: int | float | None, *, stored: int, available: int, default: int, least: int = 1) -> int:
    """Turn a count, or a fraction of the `stored` images, into a count in `least .. available - 1`; `None` is the
    default.

    >>> size("validation", 0.25, stored=8, available=6, default=1)
    2
    """
    if value is None:
        count = max(1, default)
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{argument} must be a count or a fraction, got {value!r}: such as 500 or 0.1")
    elif isinstance(value, float):
        if not 0 < value < 1:
            raise DataError(f"{argument}={value} must be a fraction between 0 and 1, or an integer count")
        count = max(1, round(value * stored))
    else:
        count = value
    if not least <= count < available:
        raise DataError(f"{argument}={count} of {available} images must be in {least}..{available - 1}")
    return count
