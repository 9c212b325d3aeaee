"""Subnormal numbers that a thread replaces by 0: seen in every thread."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import lconvnet as lc
from lconvnet.bounds.linear import margin_bounds


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
from lconvnet.ops.flushing import refuse_flushing
torch.set_num_threads(2)
torch.set_flush_denormal(True)
torch.ones(100000) * 2
torch.set_flush_denormal(False)
refuse_flushing()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "ValueError: subnormal numbers are replaced by 0" in done.stderr
