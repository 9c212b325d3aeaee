"""Float64 for bounds: weights as exact numbers, upper bounds on norms, and a check that subnormal numbers survive.

Before the entries of a row are squared, an exact power of two brings it near 1. What underflows then is negligible
beside the largest entry.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lconvnet.ops.rounding import gamma

LEAST = 5e-324  # the least positive float64
GRAIN = 32768  # least number of entries that torch gives one thread
STEP = 1024  # one entry in STEP is subnormal, because these are slow


def to_float64(tensor: Tensor, name: str = "weight") -> Tensor:
    """The same numbers in float64 on the CPU, where matrix products are plain sums. Refuses NaN and infinity.

    >>> to_float64(torch.ones(2)).dtype
    torch.float64
    """
    if not tensor.is_floating_point():
        raise ValueError(f"{name} has dtype {tensor.dtype}: bounds need floating-point weights")
    values = tensor.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(values).all()):
        raise ValueError(
            f"{name} of shape {tuple(tensor.shape)} holds NaN or infinity: no bound exists; train again or "
            "restore a checkpoint"
        )
    return values


def row_norms(A: Tensor) -> Tensor:
    """Upper bounds on the l2 norms of the rows of ``(m, n)`` in float64: ``(m,)``; 0 for a row of zeros.

    The bound allows for a few earlier roundings of each entry.

    >>> row_norms(torch.tensor([[3e-200, 4e-200], [0.0, 0.0]], dtype=torch.float64)).tolist()
    [5.0000000000000063e-200, 0.0]
    """
    unit, exponent = rescaled(A)
    norms = torch.linalg.vector_norm(unit, dim=1) * (1 + gamma(A.shape[1] + 8))
    above = torch.nextafter(norms * power_of_two(exponent), torch.full_like(norms, torch.inf))
    return torch.where(norms == 0, norms, above)


def rescaled(G: Tensor) -> tuple[Tensor, Tensor]:
    """Scale each of ``(F, ...)`` by an exact power of two to a largest entry near 1; also the exponents ``(F,)``."""
    shift = torch.frexp(G.abs().flatten(1).amax(dim=1)).exponent.long().clamp(-1000, 1000)
    return G * power_of_two(-shift).reshape(-1, *[1] * (G.ndim - 1)), shift


def power_of_two(exponent: Tensor) -> Tensor:
    """Exactly ``2^exponent`` in float64 for exponents in [-1022, 1023], set bit by bit: ``torch.ldexp`` rounds to
    float32."""
    return ((exponent.long() + 1023) << 52).view(torch.float64)


def refuse_flushing() -> None:
    """Raise ``ValueError`` if a thread replaces subnormal numbers by 0, as after ``torch.set_flush_denormal(True)``.

    Threads that started under that setting keep flushing after it is switched off.

    >>> refuse_flushing()
    """
    threads = torch.get_num_threads()
    if LEAST * 1.0 == 0 or (threads > 1 and _flushed(GRAIN * threads)):
        raise ValueError(
            "subnormal numbers are replaced by 0 in this process, so a bound could be too small: call "
            "torch.set_flush_denormal(False), before the first computation with several threads"
        )


def _flushed(entries: int) -> bool:
    """Whether a product in any thread is 0. It compares bits, because a comparison of floats may flush, too."""
    numbers = torch.ones(entries, dtype=torch.float64)
    numbers[::STEP] = LEAST
    return bool(((numbers * 1.0).view(torch.int64)[::STEP] == 0).any())
