"""The hook for kernels that are trained freely and projected now and then (SVCM)."""

from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class Projected(Protocol):
    """A module with a projection of its parameters, in place and outside the gradient."""

    def project_(self) -> None:
        """Move the parameters to (or towards) the constraint set."""
        ...


def project_(model: nn.Module) -> int:
    """Project every such module inside `model`, in order; the number of them."""
    projected = [module for module in model.modules() if isinstance(module, Projected)]
    for module in projected:
        module.project_()
    return len(projected)


def is_due(step: int, steps_per_epoch: int, every: int) -> bool:
    """Whether to project after `step` steps of an epoch: after its first, every `every` from there, and its last.

    >>> [step for step in range(1, 11) if is_due(step, 10, 4)]
    [1, 5, 9, 10]
    """
    return (step - 1) % every == 0 or step == steps_per_epoch
