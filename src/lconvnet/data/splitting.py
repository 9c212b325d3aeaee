"""How a set is divided: who is held out depends on the labels, the size and a seed, on nothing else.

*The test images never depend on the seed*: a model trained with one seed and evaluated with another has not seen them.
Files come class after class, so that the first images would be of one class. The parts are therefore put into a
stratified order, every head of which holds each class in its share, unless a set was published in an order.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lconvnet.data.sets import DataError, Images, Splits

_TEST_SEED = 0


@dataclass(frozen=True)
class Options:
    """The arguments of `load`; raises `DataError` naming the first unusable one.

    >>> Options(image_size=32).sides
    (32, 32)
    """

    validation: int | float | None = None
    test: int | float | None = None
    seed: int = 0
    image_size: int | tuple[int, int] | None = None
    channels: int | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if not _whole(self.seed, 0, 2**63 - 1):
            raise DataError(f"seed must be an integer of at least 0, got {self.seed!r}")
        given = self.image_size
        pair = isinstance(given, tuple | list) and len(given) == 2 and all(_whole(side, 1, 4096) for side in given)
        if given is not None and not pair and not _whole(given, 1, 4096):
            raise DataError(f"image_size must be one number or (height, width), each in 1..4096, got {given!r}")
        if self.channels is not None and not (_whole(self.channels, 1, 3) and self.channels != 2):
            raise DataError(f"channels must be 1 (grey) or 3 (colour), got {self.channels!r}")
        if self.limit is not None and not _whole(self.limit, 1, 2**63 - 1):
            raise DataError(f"limit must be a number of images of at least 1, got {self.limit!r}")

    @property
    def sides(self) -> tuple[int, int] | None:
        """The image size as (height, width)."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else None if size is None else (size[0], size[1])


def _whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def stratified_order(labels: Tensor, *, seed: int = _TEST_SEED) -> Tensor:
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


def held_out(labels: Tensor, count: int, *, seed: int = _TEST_SEED) -> tuple[Tensor, Tensor]:
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


def select(labels: dict[str, Tensor], title: str, options: Options) -> dict[str, tuple[str, Tensor]]:
    """Return for each role the stored part and the indices in it: takes out the test images, then limits."""
    for role, asked in (("test", options.test), ("validation", options.validation)):
        if role in labels and asked is not None:
            raise DataError(f"{role}={asked}, but {title!r} has {role} images of its own: drop the argument")
    selected = {role: (role, torch.arange(len(part))) for role, part in labels.items()}
    if "test" not in labels:
        total = len(labels["train"])
        count = size("test", options.test, stored=total, available=total, default=min(total // 5, 10_000))
        held, rest = held_out(labels["train"], count)
        selected |= {"train": ("train", rest), "test": ("train", held)}
    for role, (stored, index) in selected.items():
        if options.limit is not None and options.limit < len(index):
            kept, _ = held_out(labels[stored][index], options.limit)
            selected[role] = (stored, index[kept])
    return selected


def mixed(parts: dict[str, Images], stored: Collection[str]) -> dict[str, Images]:
    """Return the images of each part in stratified order, but for those that validation images are still taken from."""
    kept = () if "validation" in stored else ("train",)
    return {role: part if role in kept else part.subset(stratified_order(part.labels)) for role, part in parts.items()}


def split(parts: dict[str, Images], options: Options, *, carved: bool) -> Splits:
    """Take the validation images out if there are none; `carved`: the test images came from the same stored part."""
    train, test = parts["train"], parts["test"]
    validation = parts.get("validation")
    if validation is None:
        stored = len(train) + (len(test) if carved else 0)
        default = min(stored // 10, 5_000)
        count = size("validation", options.validation, stored=stored, available=len(train), default=default, least=0)
        held, rest = held_out(train.labels, count, seed=options.seed)
        train, validation = train.subset(rest), train.subset(held)
    empty = (torch.bincount(train.labels, minlength=train.classes) == 0).nonzero().flatten().tolist()
    if empty:
        raise DataError(
            f"class {train.class_names[empty[0]]!r} has no training image left: hold out fewer, or add some"
        )
    return Splits(train, validation, test, train.name)
