"""Rows about one training step: ours beside the unconstrained network and beside the peers."""

from collections.abc import Callable, Sequence

from torch import nn

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
from benchmarks.report import Measured
from benchmarks.steps import classification_step, critic_step_of, is_finite
from benchmarks.timing import Call, Effort, compare


def seconds_of_steps(
    architecture: Architecture,
    methods: Sequence[Method],
    step: Callable[[nn.Module], Call],
    effort: Effort,
    device: str = "cpu",
) -> list[float]:
    """Seconds per step of the same network built by each method."""
    networks = [architecture.network(method, device) for method in methods]
    seconds = compare([step(network) for network in networks], effort)
    for method, network in zip(methods, networks, strict=True):
        if not is_finite(network):
            raise RuntimeError(f"{method.name} diverged: the time of steps on NaN says nothing")
    return seconds


def steps_of(
    architecture: Architecture,
    batch_size: int,
    other: Method,
    effort: Effort,
    *,
    step: Callable[..., Call] = classification_step,
    device: str = "cpu",
) -> Measured:
    """Our network beside the same one built by another method; `step` makes a step of network, images and labels."""
    batch = architecture.batch(batch_size, device)
    ours, others = seconds_of_steps(architecture, (OURS, other), lambda network: step(network, *batch), effort, device)
    return Measured(ours, others, "s per step", f"batch {batch_size}, beside {other.name}")


def large_step(effort: Effort) -> Measured:
    """Large on 32x32x3 against the unconstrained one."""
    return steps_of(LARGE, 128, UNCONSTRAINED, effort)


def small_step(effort: Effort) -> Measured:
    """Small on 28x28x1 against the unconstrained one."""
    return steps_of(SMALL, 128, UNCONSTRAINED, effort)


def large_step_batch512(effort: Effort) -> Measured:
    """Large at a batch where the constraint, whose cost does not grow with it, weighs less."""
    return steps_of(LARGE, 512, UNCONSTRAINED, effort)


def orthogonium_over_ours(effort: Effort) -> Measured:
    """Large against adaptive orthogonal convolutions."""
    return steps_of(LARGE, 128, orthogonium(), effort)


def torchlip_over_ours(effort: Effort) -> Measured:
    """Large against RKO convolutions with Björck's iteration."""
    return steps_of(LARGE, 128, torchlip(), effort)


def bjorck20_over_ours(effort: Effort) -> Measured:
    """Large against itself with the original's engine: twenty Björck steps recorded by autograd.

    The engine makes the mixing matrix of every kernel and every dense weight; projectors keep our factorisation.
    """
    return steps_of(LARGE, 128, BJORCK20, effort)


def critic_step(effort: Effort) -> Measured:
    """The paper's critic, 64 real and 64 generated images, against the unconstrained one and the original's engine."""
    images, _ = CRITIC.batch(128)
    methods = (OURS, UNCONSTRAINED, BJORCK20)
    ours, unconstrained, original = seconds_of_steps(
        CRITIC, methods, lambda network: critic_step_of(network, images), effort
    )
    beside = f"{BJORCK20.name}: {original:.4g}, {original / ours:.2f} times ours"
    return Measured(ours, unconstrained, "s per step", f"64 + 64 images, beside {UNCONSTRAINED.name}; {beside}")
