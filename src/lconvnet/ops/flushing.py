"""Whether this process computes with subnormal numbers, which every bound relies on."""

from __future__ import annotations

import torch

LEAST = 5e-324
"""The least positive float64."""

GRAIN, STEP = 32768, 1024
"""Entries that torch gives to one thread at least, and how many of them share one subnormal number, which is slow."""


def refuse_flushing() -> None:
    """Raise ``ValueError`` where a thread replaces subnormal numbers by 0, as after ``torch.set_flush_denormal(True)``.

    Threads that were started meanwhile keep doing so when it is switched off.

    >>> refuse_flushing()
    """
    threads = torch.get_num_threads()
    if LEAST * 1.0 == 0 or (threads > 1 and _flushed(GRAIN * threads)):
        raise ValueError(
            "subnormal numbers are replaced by 0 in this process, so a bound could be too small: call "
            "torch.set_flush_denormal(False), before the first computation with several threads"
        )


def _flushed(entries: int) -> bool:
    """Whether a product in any thread is 0; its bits are compared, for a comparison may replace them, too."""
    numbers = torch.ones(entries, dtype=torch.float64)
    numbers[::STEP] = LEAST
    return bool(((numbers * 1.0).view(torch.int64)[::STEP] == 0).any())
