"""Calls that take turns, their medians, and how a cost grows.

Everything that is compared runs in one process and takes turns, call by call, so that a slow moment of the machine
hits all alike. A ratio is the ratio of two medians.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log
from statistics import linear_regression, median
from time import perf_counter

import torch

Call = Callable[[], object]


@dataclass(frozen=True)
class Effort:
    """How often to repeat: turns before and while the clock counts, bounded by a time that only slow calls reach.

    Attributes:
        turns: timed turns of every call, at most.
        warm_up: turns before the first timed one, at most.
        seconds: no further turn begins after so long (after a quarter of it in the warm-up), ...
        least: ... but so many are timed in any case, unless `turns` is less.
    """

    turns: int = 60
    warm_up: int = 5
    seconds: float = 25.0
    least: int = 3


def seconds_of(call: Call) -> float:
    """Wall time of one call, and of what it began on a GPU that this process uses."""
    start = perf_counter()
    call()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return perf_counter() - start


def take_turns(calls: Sequence[Call], turns: int, *, seconds: float, least: int) -> list[list[float]]:
    """Wall times, one list a turn, one entry a call."""
    start = perf_counter()
    times: list[list[float]] = []
    while len(times) < turns and (len(times) < least or perf_counter() - start < seconds):
        times.append([seconds_of(call) for call in calls])
    return times


def medians(times: Sequence[Sequence[float]]) -> list[float]:
    """Median of every call over the turns."""
    return [median(column) for column in zip(*times, strict=True)]


def compare(calls: Sequence[Call], effort: Effort) -> list[float]:
    """Median seconds of every call, taken in turns after a warm-up."""
    take_turns(calls, effort.warm_up, seconds=effort.seconds / 4, least=1)
    return medians(take_turns(calls, effort.turns, seconds=effort.seconds, least=effort.least))


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The p of ``cost ~ size^p``, fitted by least squares in logarithms to the upper half of the sizes (two or more).

    Args:
        sizes, costs: positive, sizes ascending; of five sizes the upper half is the last three.

    Raises:
        ValueError: for fewer than two sizes.
    """
    if len(sizes) != len(costs) or len(sizes) < 2:
        raise ValueError(f"{len(sizes)} sizes and {len(costs)} costs: a slope needs two or more of each")
    upper = max(2, (len(sizes) + 1) // 2)
    return linear_regression([log(x) for x in sizes[-upper:]], [log(y) for y in costs[-upper:]]).slope
