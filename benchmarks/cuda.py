"""Measure on a GPU: steps of ours beside unconstrained networks and peers, engines, inference, certification.

    python -m benchmarks.cuda                              # prints the table, writes benchmarks/cuda.json
    python -m benchmarks.cuda --device cpu --only dense    # do these rows run?

Every call ends when the device is done. The file is written after every row; rows that did not fit into --seconds are
named in it, and so is what went wrong with a row. TensorFloat-32 is as torch has it: in convolutions, not in products.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks import inference
from benchmarks.networks import (
    BJORCK20,
    CRITIC,
    LARGE,
    OURS,
    SMALL,
    UNCONSTRAINED,
    Architecture,
    Method,
    orthogonium,
    torchlip,
)
from benchmarks.report import Measured, Result, Target, as_json, result, table
from benchmarks.steps import captured, classification_step, critic_step_of, training_step
from benchmarks.timing import Call, Effort, compare
from benchmarks.training import steps_of
from lconvnet.atomic import write_json
from lconvnet.kernels import Orthogonal
from lconvnet.layers import LipschitzLinear
from lconvnet.ops.orthogonalize import polar_eigh
from lconvnet.ops.polynomials import polar_express
from lconvnet.ops.whitening import cholesky

EFFORT = Effort(turns=50, warm_up=5, seconds=2.0, least=3)
ENGINES = {"polar_express": polar_express, "polar_eigh": polar_eigh, "cholesky": cholesky}
Step = Callable[..., Call]


def critic_step(network: nn.Module, images: Tensor, labels: Tensor, *, capturable: bool = False) -> Call:
    """A critic's step; it has no labels."""
    return critic_step_of(network, images, capturable=capturable)


def compiled(step: Step) -> Step:
    """The step of the compiled network."""
    return lambda network, *batch: step(torch.compile(network, fullgraph=True), *batch)


def graphed(step: Step) -> Step:
    """The step as a CUDA graph."""
    return lambda network, *batch: captured(step(network, *batch, capturable=True))


@dataclass(frozen=True)
class Steps:
    """Row about a training step of a network beside that of another method; called on one device."""

    architecture: Architecture
    batch_size: int
    other: Callable[[], Method] = lambda: UNCONSTRAINED
    mode: Callable[[Step], Step] = lambda step: step

    def __call__(self, effort: Effort, device: str) -> Measured:
        torch._dynamo.reset()  # of the compiled networks of other rows
        step = self.mode(critic_step if self.architecture is CRITIC else classification_step)
        return steps_of(self.architecture, self.batch_size, self.other(), effort, step=step, device=device)


def dense(rows: int, columns: int, effort: Effort, device: str) -> Measured:
    """A training step of one dense layer on 128 vectors: Polar Express beside the eigen-decomposition and Cholesky."""
    x = torch.randn(128, columns, device=device)
    layers = [
        LipschitzLinear(columns, rows, kernel=partial(Orthogonal, engine=engine)).to(device)
        for engine in ENGINES.values()
    ]
    calls = [training_step(layer, lambda layer=layer: layer(x).square().mean()) for layer in layers]
    express, eigh, whitened = compare(calls, effort)
    return Measured(express, eigh, "s per step", f"polar_express beside polar_eigh; cholesky {whitened:.4g} s")


def peak_memory(effort: Effort, device: str) -> Measured:
    """Allocated memory that steps of Large reach above the built network."""
    peaks = []
    for method in (OURS, UNCONSTRAINED):
        step = classification_step(LARGE.network(method, device), *LARGE.batch(128, device))
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(3):
            step()
        peaks.append((torch.cuda.max_memory_allocated() - before) / 2**20)
        del step
    return Measured(peaks[0], peaks[1], "MiB", f"batch 128, max_memory_allocated, beside {UNCONSTRAINED.name}")


NETWORKS = {"large": LARGE, "small": SMALL, "critic": CRITIC}
BATCHES = (128, 512, 1024)
ROWS: dict[str, Callable[[Effort, str], Measured]] = {
    **{f"{name}_step_batch{size}": Steps(network, size) for name, network in NETWORKS.items() for size in BATCHES},
    "orthogonium_over_ours": Steps(LARGE, 128, orthogonium),
    "torchlip_over_ours": Steps(LARGE, 128, torchlip),
    "bjorck20_over_ours": Steps(LARGE, 128, lambda: BJORCK20),
    "dense_512x4096": partial(dense, 512, 4096),
    "dense_1024x1024": partial(dense, 1024, 1024),
    "baked_inference": inference.baked_inference,
    "unbaked_eval": inference.unbaked_eval,
    "certify_over_forward": inference.certify_over_forward,
    "peak_memory": peak_memory,
    **{
        f"graphed_{name}_batch{size}": Steps(network, size, mode=graphed)
        for name, network in NETWORKS.items()
        for size in BATCHES
    },
    **{f"compiled_{name}_batch128": Steps(network, 128, mode=compiled) for name, network in NETWORKS.items()},
    "compiled_large_batch1024": Steps(LARGE, 1024, mode=compiled),
}


def arguments_of(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="+", default=[""], metavar="START", help="rows whose names start so")
    parser.add_argument("--seconds", type=float, default=120.0, help="no further row begins after so long")
    parser.add_argument("--turns", type=int, default=EFFORT.turns, help="timed turns at most")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("cuda.json"))
    arguments = parser.parse_args(argv)
    if not any(name.startswith(tuple(arguments.only)) for name in ROWS):
        parser.error(f"--only {' '.join(arguments.only)}: no row starts so; there are {', '.join(ROWS)}")
    return arguments


def about(device: str) -> dict[str, object]:
    """The device, and whether float32 is float32 on it."""
    return {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "tf32_convolutions": torch.backends.cudnn.allow_tf32,
        "float32_products": torch.get_float32_matmul_precision(),
    }


def main() -> None:
    """Run what the command line asks for."""
    arguments = arguments_of(sys.argv[1:])
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("there is no CUDA device here: --device cpu shows whether the rows run")
    console, start = Console(), perf_counter()
    effort = Effort(arguments.turns, min(arguments.turns, EFFORT.warm_up), EFFORT.seconds, EFFORT.least)
    facts = about(arguments.device)
    results: list[Result] = []
    failed: dict[str, str] = {}
    for name in (name for name in ROWS if name.startswith(tuple(arguments.only))):
        began = perf_counter()
        torch.manual_seed(0)
        try:
            if began - start > arguments.seconds:
                raise TimeoutError(f"not begun within {arguments.seconds:g} s")
            row = result(name, ROWS[name](effort, arguments.device), Target())
        except Exception as error:  # the other rows are worth having
            failed[name] = f"{type(error).__name__}: {error}"[:300]
            console.print(f"{name} failed: {failed[name]}", markup=False)
        else:
            results.append(row)
            console.print(f"{name}: {row.ratio:.3f} ({row.note}; {perf_counter() - began:.1f} s)", markup=False)
        write_json(arguments.out, {**facts, **as_json(results), "failed": failed})
        if failed and not _usable(arguments.device):
            break
    console.print(table(results))
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def _usable(device: str) -> bool:
    """Whether the process can still use the device: an illegal access is reported by every later call."""
    try:
        torch.zeros(1, device=device).item()
    except RuntimeError:
        return False
    return True


if __name__ == "__main__":
    main()
