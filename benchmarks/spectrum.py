"""Row about the exact spectrum of a circular convolution: complex numpy on every frequency against ours."""

from dataclasses import replace
from functools import partial

import numpy as np
import torch

from benchmarks.report import Measured
from benchmarks.timing import Effort, compare
from lconvnet.ops.fourier import circular_singular_values

CHANNELS, SIDE = 256, 32
AGREE = 1e-10  # relative to the largest value; float64 round-off of an SVD of 256 columns is about 1e-13


def numpy_spectrum(kernel: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """All singular values, descending, as Sedghi, Gupta & Long (2019) print it: two-dimensional FFT, then SVD."""
    transfer = np.fft.fft2(kernel, size, axes=(-2, -1)).transpose(2, 3, 0, 1)
    return np.sort(np.linalg.svd(transfer, compute_uv=False), axis=None)[::-1]


def check_agreement(kernel: torch.Tensor, size: tuple[int, int]) -> None:
    """Refuse to compare the speed of different answers."""
    ours, other = circular_singular_values(kernel, size).numpy(), numpy_spectrum(kernel.numpy(), size)
    difference = float(np.abs(ours - other).max() / other.max())
    if not difference < AGREE:
        raise RuntimeError(f"the spectra at {size} differ by {difference:.1e} of the largest value: one is wrong")


def numpy_spectrum_over_ours(effort: Effort) -> Measured:
    """The spectrum of a 256 -> 256 kernel of 3x3 taps at 32x32, float64 on both sides; at most three turns.

    A smaller image warms up, and there both answers are compared.
    """
    kernel = torch.randn(CHANNELS, CHANNELS, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    check_agreement(kernel, (6, 7))
    size = (SIDE, SIDE)
    calls = [partial(circular_singular_values, kernel, size), partial(numpy_spectrum, kernel.numpy(), size)]
    few = replace(effort, turns=min(effort.turns, 3), warm_up=0, least=1)
    ours, other = compare(calls, few)
    return Measured(ours, other, "s", f"{CHANNELS} -> {CHANNELS}, 3x3 at {SIDE}x{SIDE}, beside numpy {np.__version__}")
