"""Samples as tensors of real numbers that nothing was lost of.

float16, bfloat16 and float32 fit into float32, booleans and integers below 2^53 into float64; a larger integer is
refused, or counted from a common one, which changes no distance.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

EXACT = 2.0**53  # every integer below is a float64


def numbers(given: object, name: str) -> Tensor:
    """What was given as a tensor of real, finite numbers: integers and float64 as they came, other floats as float32.

    Raises `ValueError` for complex numbers, wider floats than float64, masked and sparse arrays, NaN and infinity.

    >>> numbers(np.array([[1, 2]], dtype=">i2"), "real").tolist()
    [[1, 2]]
    """
    if isinstance(given, np.ma.MaskedArray):
        raise ValueError(f"{name} is a masked array, whose masked values would count: give those that do")
    if isinstance(given, np.ndarray) and given.dtype.kind in "fiub" and given.dtype.itemsize <= 8:
        given = torch.from_numpy(np.require(given, given.dtype.newbyteorder("="), ["C", "W"]))
    if not isinstance(given, Tensor) or given.is_complex() or given.is_quantized or given.layout != torch.strided:
        kind = getattr(given, "dtype", type(given).__name__)
        raise ValueError(f"{name} is {kind}: give numbers (a tensor or array), a path, or an object with sample()")
    given = given.detach()
    given = given.float() if given.is_floating_point() and given.dtype != torch.float64 else given
    _require_finite(given, name)
    return given


def is_pixels(samples: Tensor) -> bool:
    """Whether samples are images of 8 bits, `(N, C, H, W)`."""
    return samples.dtype == torch.uint8 and samples.ndim == 4


def floats(samples: Tensor, name: str = "samples") -> Tensor:
    """Samples as floats: pixels of 8 bits divided by 255, other integers and float64 as float64, the rest as float32.

    Raises `ValueError` for an integer that float64 does not hold.

    >>> floats(torch.tensor([[[[255]]]], dtype=torch.uint8)).tolist()
    [[[[1.0]]]]
    >>> floats(torch.tensor([1_700_000_065])).tolist()
    [1700000065.0]
    """
    if is_pixels(samples):
        return samples.float() / 255
    if samples.dtype.is_floating_point:
        return samples if samples.dtype == torch.float64 else samples.float()
    wide = samples.double()
    if wide.numel() and float(wide.abs().max()) >= EXACT:
        raise ValueError(
            f"{name} has integers of 2^53 and more, which no float holds: subtract one integer from both sides first "
            "(a common shift changes no distance)"
        )
    return wide


def displaced(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor, float]:
    """Both sides in float64 on the CPU, integers counted from the first sample, and the unit of their distances.

    Raises `ValueError` for integers that lie 2^53 and more apart, and for pixels beside values outside [0, 1].

    >>> displaced(torch.tensor([[2**60 + 1]]), torch.tensor([[2**60]]))[:2]
    (tensor([[0.]], dtype=torch.float64), tensor([[-1.]], dtype=torch.float64))
    """
    pixels = is_pixels(real), is_pixels(fake)
    if any(pixels) and not all(pixels):
        for side, name, pixels in ((real, "real", "fake"), (fake, "fake", "real")):
            require_unit_range(side, name, pixels)
        one, other = (side.double() / 255 if is_pixels(side) else floats(side).double() for side in (real, fake))
        return one.cpu(), other.cpu(), 1.0
    if real.is_floating_point() or fake.is_floating_point():
        return floats(real, "real").double().cpu(), floats(fake, "fake").double().cpu(), 1.0
    halves = _halves(real), _halves(fake)
    high, low = (half[:1] for half in halves[0])
    one, other = ((upper - high) * 2.0**32 + (lower - low) for upper, lower in halves)
    if max(float(side.abs().max()) for side in (one, other)) >= EXACT:
        raise ValueError("real and fake have integers 2^53 and more apart, which float64 does not tell: divide both")
    return one, other, 1 / 255 if all(pixels) else 1.0


def require_unit_range(values: Tensor, name: str, pixels: str) -> None:
    """Raise `ValueError` unless values that are compared with the `pixels` lie in [0, 1], or are pixels, too."""
    low, high = (float(end) for end in floats(values, name).aminmax())
    if low < 0 or high > 1:
        raise ValueError(
            f"{name} has values in [{low:.4g}, {high:.4g}], {pixels} pixels in [0, 1]: bring them to the same range"
        )


def _halves(samples: Tensor) -> tuple[Tensor, Tensor]:
    """The upper and the lower 32 bits of integers, each exact in float64."""
    wide = samples.cpu() if samples.dtype == torch.uint64 else samples.cpu().long()
    values = wide.numpy()
    return torch.from_numpy((values >> 32).astype(np.float64)), torch.from_numpy(
        (values & 0xFFFFFFFF).astype(np.float64)
    )


def _require_finite(samples: Tensor, name: str) -> None:
    wrong = ~torch.isfinite(samples).flatten(1).all(1) if samples.ndim > 1 else ~torch.isfinite(samples)
    if bool(wrong.any()):
        row = int(wrong.flatten().nonzero()[0])
        raise ValueError(f"{name} has NaN or infinite values, first in sample {row}: remove or repair them")
