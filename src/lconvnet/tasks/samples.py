"""The two distributions of an estimate, each divided into training batches and held-out samples.

*The order of the two distributions does not matter*: every random choice follows from the seed and the content
(`Distribution.key`), so swapping them changes only a sign.

Samples are real numbers, read without loss: float16, bfloat16 and float32 fit into float32, booleans and integers below
2^53 into float64. A larger integer is refused, or counted from a common origin, which changes no distance.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from lconvnet.data import NAMES, DataError, load, read_samples
from lconvnet.ops.images import channels_last
from lconvnet.training.engine import derive_seed, epoch_order, generator

EXACT = 2.0**53  # every integer below is exact in float64
LEAST = 4  # two samples for training and two held out
DRAWN = 10_000  # held-out samples of a sampler
PROBE = 16  # samples that identify a sampler
FARTHEST = 2.0**16  # distance from 0, in diameters, at which float32 has seven bits left
CHUNK = 1000  # held-out samples drawn at a time


@runtime_checkable
class Sampler(Protocol):
    """An unlimited source of samples, such as a generator network."""

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """`(count, ...)` independent samples; all randomness comes from `generator` (a CPU generator)."""
        ...


Given = Tensor | np.ndarray | str | Path | Sampler


@dataclass(frozen=True, eq=False)
class Distribution:
    """One side of an estimate.

    Attributes:
        name: the name in error messages.
        shape: the shape of one sample.
        pixels: whether samples are pixels in [0, 1] that were stored as 8 bits.
        key: a fingerprint of the content.
        batch: `batch(step)` gives the training samples `(batch_size, ...)` of an optimiser step, as floats.
        held_out: samples `(n, ...)`, as floats, that training never sees.
        groups: `(n,)`, equal numbers for equal held-out samples, which may be copies. Every draw of a sampler has its
            own number, because draws are independent.
    """

    name: str
    shape: tuple[int, ...]
    pixels: bool
    key: str
    batch: Callable[[int], Tensor]
    held_out: Tensor
    groups: Tensor


def prepare(given: Given, name: str, *, held_out: int | float | None, batch_size: int, seed: int) -> Distribution:
    """Read and check the given samples, and hold some out at random, regardless of equal samples.

    Held-out samples of independent samples are independent. Copies are not, and cannot be told from equal draws: remove
    copies first, or training sees held-out samples.

    Args:
        given: samples `(N, ...)` as a tensor or array (uint8 `(N, C, H, W)` are pixels, and divided by 255); the path
            of a folder of images, a parquet file or a `.npy` array (`lconvnet.data.read_samples`); the name of a data
            set (its training images); or a `Sampler`.
        name: the name in error messages.
        held_out: a count, or a fraction of the samples; by default a fifth of the samples, 10,000 of a sampler.

    Raises:
        ValueError: names the unusable input and the remedy.

    >>> prepare(torch.arange(10.0), "real", held_out=None, batch_size=4, seed=0).held_out.shape
    torch.Size([2, 1])
    """
    if isinstance(given, Sampler):
        count = DRAWN if held_out is None else held_out
        if not isinstance(count, int) or isinstance(count, bool) or count < 2:
            raise ValueError(f"held_out={held_out!r}: of the sampler {name} hold out an integer count of at least 2")
        return _drawn(given, name, count, batch_size, seed)
    return _divided(_samples(given, name), name, held_out, batch_size, seed)


def require_comparable(real: Distribution, fake: Distribution) -> None:
    """Raise `ValueError` unless distances between samples of the two make sense."""
    if real.shape != fake.shape:
        raise ValueError(
            f"{fake.name} has samples of shape {fake.shape}, {real.name} of shape {real.shape}: give both one shape"
        )
    for pixels, other in ((real, fake), (fake, real)):
        if pixels.pixels and not other.pixels:
            require_unit_range(other.held_out, other.name, pixels.name)


def require_resolved(real: Distribution, fake: Distribution) -> None:
    """Raise `ValueError` if the samples lie too far from 0 and too close together for a critic to separate them."""
    low, high = box(real, fake)
    size, apart = (float(part.norm()) for part in (torch.maximum(low.abs(), high.abs()), high - low))
    if apart and size > FARTHEST * apart:
        raise ValueError(
            f"{real.name} and {fake.name} lie up to {size:.4g} from 0 and at most {apart:.4g} apart, which the "
            "critic's arithmetic hardly tells: subtract one and the same sample from both (it changes no distance)"
        )


def box(real: Distribution, fake: Distribution) -> tuple[Tensor, Tensor]:
    """Least and largest value of every entry over the held-out samples of both sides, in float64."""
    ends = [side.held_out.flatten(1).aminmax(dim=0) for side in (real, fake)]
    low = torch.minimum(*(end.min.double().cpu() for end in ends))
    return low, torch.maximum(*(end.max.double().cpu() for end in ends))


def diameter(support: tuple[float, float] | None, real: Distribution, fake: Distribution) -> float | None:
    """The largest l2 distance in the box `[low, high]` of every value. For pixels the box is `[0, 1]`; None if unknown.

    Raises `ValueError` if a held-out sample lies outside.
    """
    if support is None:
        return math.sqrt(math.prod(real.shape)) * (1 + 1e-15) if real.pixels and fake.pixels else None
    low, high = support
    least, largest = box(real, fake)
    if not (math.isfinite(high - low) and low <= float(least.min()) and float(largest.max()) <= high):
        raise ValueError(
            f"support={support!r}: held-out values lie in [{float(least.min())!r}, {float(largest.max())!r}]; give the "
            "(low, high) that every value is known to lie in, whatever the samples"
        )
    return math.sqrt(math.prod(real.shape)) * (high - low) * (1 + 1e-15)


def units(real: Distribution) -> str:
    """The meaning of a distance of 1."""
    shape = "x".join(map(str, real.shape))
    return f"l2 over {shape} pixels in [0, 1]" if real.pixels else f"l2 over {shape} values as given"


def _samples(given: Tensor | np.ndarray | str | Path, name: str) -> Tensor:
    """The samples `(N, ...)`, checked."""
    if isinstance(given, str | Path):
        given = _read(given, name)
    samples = numbers(given, name)
    if not samples.ndim or not samples[:1].numel():
        raise ValueError(f"{name} has shape {tuple(samples.shape)}: give samples of shape (N, ...), none of them empty")
    if channels_last(samples.shape):
        raise ValueError(
            f"{name} has shape {tuple(samples.shape)}, channels last: images are (N, C, H, W), permute them"
        )
    samples = samples if is_pixels(samples) else floats(samples, name)
    return samples[:, None] if samples.ndim == 1 else samples


def _read(path: str | Path, name: str) -> Tensor:
    try:
        if isinstance(path, str) and path in NAMES:
            return load(path, validation=0).train.images
        return read_samples(path)
    except DataError as error:
        options = "; that is an option of lconvnet.data.read_samples, whose tensor you can give here"
        raise ValueError(f"{name}: {error}{options if ' pass ' in str(error) else ''}") from error


def _divided(samples: Tensor, name: str, held_out: int | float | None, batch_size: int, seed: int) -> Distribution:
    total = len(samples)
    if total < LEAST:
        raise ValueError(f"{name} has {total} sample{'s'[: total != 1]}: at least {LEAST} are needed to hold some out")
    count = _count(held_out, total, name)
    key = _digest(samples)
    order = torch.randperm(total, generator=generator(seed, f"hold out of {key}", 0))
    training = samples[order[count:].to(samples.device)]
    order_seed = derive_seed(seed, f"batches of {key}", 0)

    def batch(step: int) -> Tensor:
        return floats(training[batch_indices(order_seed, step, len(training), batch_size).to(training.device)])

    held = floats(samples[order[:count].to(samples.device)])
    return Distribution(name, tuple(samples.shape[1:]), is_pixels(samples), key, batch, held, copies(held))


def copies(samples: Tensor) -> Tensor:
    """`(N,)`: equal samples have equal numbers, from 0.

    >>> copies(torch.tensor([[1.0], [-0.0], [1.0], [0.0]])).tolist()
    [0, 1, 0, 1]
    """
    rows, found = samples.flatten(1).cpu().contiguous().numpy(), dict[bytes, int]()
    zero = np.zeros((), rows.dtype)  # adding it turns -0.0 into 0.0
    keys = (hashlib.blake2b((row + zero).data, digest_size=16).digest() for row in rows)
    return torch.tensor([found.setdefault(key, len(found)) for key in keys])


def first_of_each(groups: Tensor) -> Tensor:
    """The index at which each group of `(n,)` begins.

    >>> first_of_each(torch.tensor([4, 4, 2, 4])).tolist()
    [2, 0]
    """
    _, place = groups.unique(return_inverse=True)
    return torch.full((int(place.max()) + 1,), len(groups)).scatter_reduce(0, place, torch.arange(len(place)), "amin")


def batch_indices(seed: int, step: int, count: int, batch_size: int) -> Tensor:
    """The samples of an optimiser step: passes over all samples in random orders, without incomplete batches.

    >>> sorted(torch.cat([batch_indices(0, step, 6, 3) for step in (2, 3)]).tolist())
    [0, 1, 2, 3, 4, 5]
    """
    size = min(batch_size, count)
    epoch, place = divmod(step, count // size)
    return epoch_order(seed, epoch, count)[place * size : (place + 1) * size]


def _count(held_out: int | float | None, total: int, name: str) -> int:
    """The number of samples to hold out of `total`."""
    asked = 0.2 if held_out is None else held_out
    if isinstance(asked, bool) or not isinstance(asked, int | float):
        raise ValueError(f"held_out={held_out!r}: must be a count, or a fraction below 1")
    count = max(2, round(asked * total)) if isinstance(asked, float) and 0 < asked < 1 else asked
    if not isinstance(count, int) or not 2 <= count <= total - 2:
        raise ValueError(
            f"held_out={held_out!r}: of the {total} samples of {name} hold out at least 2 and leave at least 2"
        )
    return count


def _drawn(sampler: Sampler, name: str, count: int, batch_size: int, seed: int) -> Distribution:
    first, again = (_draw(sampler, name, PROBE, 0) for _ in range(2))
    if first.shape != again.shape or not torch.allclose(floats(first), floats(again), rtol=1e-3, atol=1e-3):
        raise ValueError(f"{name}.sample gives other values for an equal generator: draw all randomness from it")
    key = _digest(first)

    def draw(purpose: str, size: int, step: int) -> Tensor:
        return floats(_draw(sampler, name, size, derive_seed(seed, f"{purpose} {key}", 0, step)))

    chunks = [min(CHUNK, count - start) for start in range(0, count, CHUNK)]
    held = torch.cat([draw("hold out of", size, place) for place, size in enumerate(chunks)])
    batch = partial(draw, "batches of", batch_size)
    return Distribution(name, tuple(first.shape[1:]), is_pixels(first), key, batch, held, torch.arange(count))


@torch.no_grad()
def _draw(sampler: Sampler, name: str, count: int, seed: int) -> Tensor:
    samples = sampler.sample(count, torch.Generator().manual_seed(seed))
    if not isinstance(samples, Tensor) or not samples.ndim or len(samples) != count:
        found = tuple(samples.shape) if isinstance(samples, Tensor) else type(samples).__name__
        raise ValueError(f"{name}.sample({count}, generator) gives {found}: return a tensor of shape ({count}, ...)")
    return _samples(samples, name)


def _digest(samples: Tensor) -> str:
    content = samples.cpu().contiguous()
    digest = hashlib.sha256(f"{content.dtype}{tuple(content.shape)}".encode())
    digest.update(content.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def numbers(given: object, name: str) -> Tensor:
    """The input as a tensor of real, finite numbers: integers and float64 unchanged, other floats as float32.

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
    """Whether samples are 8-bit images, `(N, C, H, W)`."""
    return samples.dtype == torch.uint8 and samples.ndim == 4


def floats(samples: Tensor, name: str = "samples") -> Tensor:
    """Samples as floats: 8-bit pixels divided by 255, other integers and float64 as float64, the rest as float32.

    Raises `ValueError` for an integer that float64 cannot represent.

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

    Raises `ValueError` for integers 2^53 or more apart, and for pixels compared with values outside [0, 1].

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
    """Raise `ValueError` unless the values compared with the `pixels` lie in [0, 1] or are pixels, too."""
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
