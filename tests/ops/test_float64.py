"""Norms from above at any magnitude, against exact rationals; numbers that a thread replaces by 0 are seen."""

import subprocess
import sys
from fractions import Fraction

import pytest
import torch
from torch import nn

import lconvnet as lc
from lconvnet.bounds.linear import margin_bounds
from lconvnet.ops.float64 import row_norms
from lconvnet.ops.margins import row_distances
from lconvnet.ops.norm_bounds import circular_bound


@pytest.mark.parametrize("exponent", [-1074, -1060, -1022, -560, -543, 0, 510, 1000])
def test_row_norms_are_never_below_the_exact_ones(exponent):
    generator = torch.Generator().manual_seed(0)
    A = torch.randint(0, 9, (20, 5), generator=generator).double() * 2.0**exponent
    A[0] = 0
    for row, norm in zip(A.tolist(), row_norms(A).tolist(), strict=True):
        square = sum(Fraction(entry) ** 2 for entry in row)
        assert square <= Fraction(norm) ** 2
        step = Fraction(2) ** -1073  # two of the least numbers there are
        assert norm == 0 if square == 0 else (Fraction(norm) - step) ** 2 <= square * (1 + Fraction(1, 10**12))


def test_rows_of_different_magnitude_do_not_hide_each_other():
    W = torch.tensor([[0.0], [1e-200], [1.0]], dtype=torch.float64)
    found = row_distances(W)
    assert 1e-200 <= found[0, 1] < 1.0001e-200
    assert 1 <= found[0, 2] < 1.0001
    assert found[0, 0] == 0


def test_the_transfer_error_of_a_tiny_kernel_is_that_of_the_scaled_one():
    K = torch.randn(2, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    small = 2.0**-600
    assert circular_bound(K * small, (5, 5)) / small == circular_bound(K, (5, 5))  # powers of two are exact


def network():
    net = nn.Sequential(nn.Linear(2, 2))
    net[0].weight.data.fill_(1e-40)  # read as 0 where subnormal numbers are flushed: the bound would be 0
    return net


CALLS = [
    lambda: lc.lipschitz_bound(network(), input_shape=(2,)),
    lambda: lc.certify(network(), torch.rand(1, 2), level="sound"),
    lambda: margin_bounds(network(), torch.rand(1, 2), torch.tensor([0]), 0.1),
]


@pytest.mark.parametrize("call", CALLS, ids=["bound", "certificate", "linear bound"])
def test_flushing_is_refused(call):
    torch.set_flush_denormal(True)
    try:
        with pytest.raises(ValueError, match=r"replaced by 0.*set_flush_denormal\(False\)"):
            call()
    finally:
        torch.set_flush_denormal(False)
    assert lc.lipschitz_bound(network(), input_shape=(2,)).upper >= 1.999e-40


@pytest.mark.slow
def test_threads_that_were_started_while_flushing_are_seen():
    """They keep the mode, whatever this thread does; in a process of its own."""
    script = """
import torch
from lconvnet.ops.float64 import refuse_flushing
torch.set_num_threads(2)
torch.set_flush_denormal(True)
torch.ones(100000) * 2
torch.set_flush_denormal(False)
refuse_flushing()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "ValueError: subnormal numbers are replaced by 0" in done.stderr
