"""The rows of the table: what measures each, and which ratio is good enough."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks import images, inference, memory, spectrum, training
from benchmarks.report import Measured, Result, Target, result
from benchmarks.timing import Effort


@dataclass(frozen=True)
class Row:
    """How a row is measured and judged."""

    measure: Callable[[Effort], Measured]
    target: Target


ROWS = {
    "large_step": Row(training.large_step, Target(high=1.35)),
    "small_step": Row(training.small_step, Target(high=1.25)),
    "large_step_batch512": Row(training.large_step_batch512, Target(high=1.15)),
    "orthogonium_over_ours": Row(training.orthogonium_over_ours, Target(low=5)),
    "torchlip_over_ours": Row(training.torchlip_over_ours, Target(low=2.3)),
    "bjorck20_over_ours": Row(training.bjorck20_over_ours, Target(low=10)),
    "critic_step": Row(training.critic_step, Target(high=2.5)),
    "baked_inference": Row(inference.baked_inference, Target(low=0.95, high=1.05)),
    "unbaked_eval": Row(inference.unbaked_eval, Target(high=2.5)),
    "peak_memory": Row(memory.peak_memory, Target(high=1.3)),
    "numpy_spectrum_over_ours": Row(spectrum.numpy_spectrum_over_ours, Target(low=4)),
    "certify_over_forward": Row(inference.certify_over_forward, Target(high=1.3)),
    "data_share": Row(images.data_share, Target(high=0.05)),
}


def measure(name: str, effort: Effort) -> Result:
    """Measure one row; its random numbers do not depend on which rows ran before."""
    torch.manual_seed(0)
    return result(name, ROWS[name].measure(effort), ROWS[name].target)
