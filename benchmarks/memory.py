"""Row about the peak memory of a training step, each network in a process of its own.

The child builds the network and its batch, asks Linux to forget the peak of its resident memory (5 into
/proc/self/clear_refs), takes three training steps and reports the new peak (VmHWM) minus what was resident before: the
activations, gradients, optimiser state and scratch space of a step. Where the kernel refuses to forget, the old peak
is subtracted instead, and the row says so. The usual ru_maxrss cannot be used: a child inherits that of its parent.
"""

import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.networks import LARGE, OURS, UNCONSTRAINED
from benchmarks.report import Measured
from benchmarks.steps import classification_step
from benchmarks.timing import Effort, medians

BATCH, STEPS = 128, 3
METHODS = {"ours": OURS, "unconstrained": UNCONSTRAINED}
ROOT = Path(__file__).resolve().parents[1]


def status(field: str) -> float:
    """A field of /proc/self/status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) / 1024


def forget_peak() -> bool:
    """Reset VmHWM of this process to what is resident now, where that is allowed."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak(member: str, threads: int) -> float:
    """MiB above the built network that training steps reach in this process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    step = classification_step(LARGE.network(METHODS[member]), *LARGE.batch(BATCH))
    before = status("VmRSS" if forget_peak() else "VmHWM")
    for _ in range(STEPS):
        step()
    return status("VmHWM") - before


def peak_of_child(member: str) -> float:
    """The same in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.memory", member, str(torch.get_num_threads())]
    return float(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout)


def peak_memory(effort: Effort) -> Measured:
    """Peak memory of training Large against the unconstrained one; medians over at most three processes each."""
    peaks = [[peak_of_child(member) for member in METHODS] for _ in range(min(effort.turns, 3))]
    ours, other = medians(peaks)
    how = "VmHWM after a reset minus VmRSS" if forget_peak() else "growth of VmHWM, which could not be reset"
    return Measured(ours, other, "MiB", f"batch {BATCH}, {how}, beside {UNCONSTRAINED.name}")


if __name__ == "__main__":
    print(peak(sys.argv[1], int(sys.argv[2])))
