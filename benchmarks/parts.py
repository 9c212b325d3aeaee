"""What a constrained step spends on what: the same network with parts left out, all by turns, batch 128.

python -m benchmarks.parts; nothing is written. docs/performance.md says what limits a step by its figures.
"""

from functools import partial

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.networks import LARGE, OURS, SMALL, UNCONSTRAINED, Architecture, Method
from benchmarks.steps import classification_step
from benchmarks.timing import Effort
from benchmarks.training import seconds_of_steps
from lconvnet.kernels import BCOP, Kernel
from lconvnet.kernels.base import Promise
from lconvnet.layers import BCOPConv2d, LipschitzConv2d

THREADS = 2
ARCHITECTURES = {"Large": LARGE, "Small": SMALL}


class Free(Kernel):
    """A kernel that begins as a BCOP kernel and learns without a constraint."""

    promise = Promise.APPROXIMATE

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, **rest: object) -> None:
        super().__init__()
        self.K = nn.Parameter(BCOP(in_channels, out_channels, kernel_size)().detach())

    def forward(self) -> Tensor:
        return self.K


free_conv = partial(LipschitzConv2d, kernel=Free)
METHODS = (
    OURS,
    Method("free kernels", free_conv),
    Method("plain dense layers", BCOPConv2d, nn.Linear),
    Method("both: circular padding only", free_conv, nn.Linear),
    UNCONSTRAINED,
)


def seconds(architecture: Architecture, effort: Effort) -> list[float]:
    """Seconds per step of every method."""
    batch = architecture.batch(128)
    return seconds_of_steps(architecture, METHODS, lambda network: classification_step(network, *batch), effort)


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    shown = Table("network", box=box.SIMPLE_HEAD, caption=f"ms a step and its ratio, threads: {THREADS}")
    columns = {name: seconds(architecture, Effort(seconds=40.0)) for name, architecture in ARCHITECTURES.items()}
    for name in columns:
        shown.add_column(name, justify="right")
    for index, method in enumerate(METHODS):
        cells = [f"{1e3 * times[index]:.1f}  {times[index] / times[-1]:.2f}" for times in columns.values()]
        shown.add_row(method.name, *cells)
    Console().print(shown)


if __name__ == "__main__":
    main()
