"""One optimiser update for every task, with its randomness, moving averages of the weights, and projections.

A task computes a loss on its share of a batch. The rest is the same for all tasks: sums over the processes, the check
for NaN, the gradient, its clipping, the step.

Randomness is a pure function of (seed, purpose, epoch, step). A generator that is carried along must be saved and
restored exactly. A derived one needs neither, so a resumed run replays the interrupted one by construction.
"""

import contextlib
import functools
import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lconvnet.training.processes import Interruption, Processes

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def derive_seed(seed: int, purpose: str, epoch: int, step: int = 0) -> int:
    """A 63-bit seed, independent for different arguments (by SHA-256, so nearby seeds are unrelated).

    >>> derive_seed(0, "order", 1) == derive_seed(0, "order", 1)
    True
    >>> derive_seed(0, "order", 1) == derive_seed(0, "order", 2)
    False
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{epoch}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, purpose: str, epoch: int, step: int = 0) -> torch.Generator:
    """A CPU generator seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, epoch, step))


def seed_global(seed: int, device: torch.device) -> None:
    """Seed only the global generators that a step on `device` draws from (dropout).

    `torch.manual_seed` seeds every kind of device, and takes milliseconds if CUDA is not initialised.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, count: int) -> torch.Tensor:
    """The order `(count,)` in which epoch number `epoch` visits the training images; do not change it in place."""
    return torch.randperm(count, generator=generator(seed, "order", epoch))


Measures = Mapping[str, float]
"""Numbers of one update, summed over the processes."""


class NotFiniteError(ValueError):
    """A measure of an update is NaN or infinite."""


@dataclass
class Engine:
    """The setting of a task's updates: device, processes, and limit on the gradient norm.

    `asked` is the number of the signal that asked any process to stop before the last update; 0 means none.
    """

    fabric: "Fabric"
    device: torch.device
    processes: Processes = field(default_factory=Processes)
    clip_gradient: float | None = None
    interruption: Interruption = field(default_factory=Interruption)
    asked: int = 0

    def seed(self, seed: int, purpose: str, epoch: int, step: int) -> None:
        """Seed this process's draws from the global generators (dropout) by the arguments."""
        rank = self.processes.rank
        seed_global(derive_seed(seed, f"{purpose} of process {rank}" if rank else purpose, epoch, step), self.device)

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """The context that sets the precision of a forward pass."""
        return self.fabric.autocast()

    def share(self, *batch: Tensor) -> tuple[list[Tensor], int]:
        """This process's rows of a joint batch, and how many of them count.

        A process without rows takes one that does not count, because power iterations advance in every forward pass.
        """
        own = [self.processes.share(part) for part in batch]
        return (own, len(own[0])) if len(own[0]) else ([part[:1] for part in batch], 0)

    def update(self, optimizer: Optimizer, loss: Tensor, share: float = 1.0, /, **measures: float) -> Measures:
        """One step down the gradient of the joint loss, the sum over the processes of `share` times `loss`.

        Returns the sums of `measures` over the processes. Raises `NotFiniteError` on all of them before anything
        changes.
        """
        rows = self.processes.gather(*measures.values(), self.interruption.number)
        self.asked = int(rows[:, -1].max())
        sums = dict(zip(measures, rows[:, :-1].sum(dim=0).tolist(), strict=True))
        for name, value in sums.items():
            if not math.isfinite(value):
                raise NotFiniteError(f"{name.replace('_', ' ')} is {value}")
        optimizer.zero_grad()
        self.fabric.backward(loss * share)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.processes.add_gradients_(parameters)
        if self.clip_gradient is not None:
            nn.utils.clip_grad_norm_(parameters, self.clip_gradient)
        optimizer.step()
        return sums


def as_computed(values: Tensor) -> Tensor:
    """The outputs of a network in at least float32, for any precision of the forward pass."""
    return values if values.dtype == torch.float64 else values.float()


class Averages:
    r"""Exponential moving averages of the parameters, $\bar w \leftarrow d\,\bar w + (1-d)\,w$, starting from the first
    weights. Buffers are not averaged.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.ones_(layer.weight)
    >>> averages = Averages({"layer": layer}, decay=0.75)
    >>> _ = nn.init.constant_(layer.weight, 5.0)
    >>> averages.update()
    >>> with averages.applied():
    ...     layer.weight.item()
    2.0
    >>> layer.weight.item()
    5.0
    """

    def __init__(self, modules: Mapping[str, nn.Module], decay: float) -> None:
        self.decay, self.modules = decay, tuple(modules.values())
        self.parameters = {f"{owner}.{name}": p for owner, m in modules.items() for name, p in m.named_parameters()}
        self.values = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Update the averages with the present weights."""
        for name, parameter in self.parameters.items():
            self.values[name].lerp_(parameter, 1 - self.decay)

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Continue from saved averages. Raises `ValueError` if they belong to other parameters."""
        if {n: v.shape for n, v in values.items()} != {n: v.shape for n, v in self.values.items()}:
            raise ValueError("averages of other parameters")
        for name, value in self.values.items():
            value.copy_(values[name])

    @torch.no_grad()
    def apply(self) -> None:
        """Replace the weights by the averages, and project kernels that are projected."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self.values[name])
        for module in self.modules:
            project_(module)  # a mean of projected kernels is not projected

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Give the modules the averages as weights until the block ends."""
        weights = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.apply()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(weights[name])


@runtime_checkable
class Projected(Protocol):
    """A kernel that is trained freely and projected at intervals (SVCM)."""

    def project_(self) -> None:
        """Move the parameters to the constraint set, or towards it, in place and outside the gradient."""
        ...


def project_(model: nn.Module) -> int:
    """Project every `Projected` module inside `model`, in order; returns their number."""
    projected = [module for module in model.modules() if isinstance(module, Projected)]
    for module in projected:
        module.project_()
    return len(projected)


def is_due(step: int, steps_per_epoch: int, every: int) -> bool:
    """Whether to project after `step` steps of an epoch: after the first, every `every` steps from there, and the last.

    >>> [step for step in range(1, 11) if is_due(step, 10, 4)]
    [1, 5, 9, 10]
    """
    return (step - 1) % every == 0 or step == steps_per_epoch
