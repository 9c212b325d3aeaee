"""Rows about one training step: ours beside the unconstrained network and beside the peers."""

from benchmarks.networks import BJORCK20, LARGE, OURS, SMALL, UNCONSTRAINED, Architecture, Method, orthogonium, torchlip
from benchmarks.report import Measured
from benchmarks.steps import classification_step, is_finite
from benchmarks.timing import Effort, compare


def steps_of(architecture: Architecture, batch_size: int, other: Method, effort: Effort) -> Measured:
    """Seconds per step of our network and of the same one built by another method."""
    batch = architecture.batch(batch_size)
    networks = {method.name: architecture.network(method) for method in (OURS, other)}
    ours, others = compare([classification_step(network, *batch) for network in networks.values()], effort)
    for name, network in networks.items():
        if not is_finite(network):
            raise RuntimeError(f"{name} diverged: the time of steps on NaN says nothing")
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
