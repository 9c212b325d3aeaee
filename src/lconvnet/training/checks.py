"""What is given to train with, tried before anything is trained: optimiser, schedule and loss.

Each is a callable that Python cannot check. One that takes other arguments than it seems to may work and train
nothing: torch's `CosineAnnealingLR` would take the number of epochs for its period and that of steps for its rate.
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lconvnet.training.schedules import Schedule
from lconvnet.training.state import Loss

MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]
VANISHED = 1e-6  # of the peak: at such a rate float32 weights of order 1 hardly move

_OPTIMIZER = "pass what makes one from a list of parameters, such as partial(torch.optim.Adam, lr=1e-3)"
_SCHEDULE = (
    "pass one of lconvnet.training.schedules, or what makes a scheduler that is stepped after every optimiser step: "
    "lambda optimizer, epochs, steps_per_epoch: CosineAnnealingLR(optimizer, T_max=epochs * steps_per_epoch)"
)
_LOSS = "give loss(logits (B, C), labels (B,)), the mean over the batch, such as lconvnet.losses.Hinge(eps=1.5)"


def made_optimizer(make: MakeOptimizer, parameters: list[nn.Parameter], name: str = "optimizer") -> Optimizer:
    """Return the optimiser of exactly these parameters; raises `ValueError` for anything else.

    >>> made_optimizer(torch.optim.SGD, [nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"]
    0.001
    """
    if not callable(make):
        raise ValueError(f"{name} is {_kind(make)}: {_OPTIMIZER}")
    try:
        optimizer = make(parameters)
    except TypeError as error:
        raise ValueError(f"{name}={_kind(make)} takes no list of parameters ({_line(error)}): {_OPTIMIZER}") from error
    if not isinstance(optimizer, Optimizer) or isinstance(optimizer, LBFGS):
        closure = ", whose steps need a closure" if isinstance(optimizer, LBFGS) else ""
        raise ValueError(f"{name} makes {_kind(optimizer)}{closure}: {_OPTIMIZER}")
    given = {id(parameter) for parameter in parameters}
    taken = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if given != taken:
        raise ValueError(
            f"{name} leaves out {len(given - taken)} of the {len(given)} trainable parameters and has "
            f"{len(taken - given)} others: {_OPTIMIZER}; what is not to be trained, freeze with requires_grad_(False)"
        )
    if not any(group.get("lr") is None or float(group["lr"]) > 0 for group in optimizer.param_groups):
        raise ValueError(f"{name} has the learning rate 0, which trains nothing: give it a positive lr")
    return optimizer


def made_scheduler(schedule: Schedule, optimizer: Optimizer, epochs: int, steps_per_epoch: int) -> LRScheduler:
    """Return the scheduler, tried on a copy of the optimiser's options to the last step.

    Raises `ValueError` for torch's classes and schedulers, which take other arguments, for one that fails before the
    end, and for rates that are not numbers or vanish for half of the steps.

    >>> optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> made_scheduler(torch.optim.lr_scheduler.StepLR, optimizer, 3, 100)
    Traceback (most recent call last):
    ValueError: schedule is torch's StepLR, which takes other arguments: pass one of lconvnet.training.schedules, ...
    """
    made = schedule.func if isinstance(schedule, partial) else schedule
    if isinstance(made, type) and issubclass(made, LRScheduler):
        raise ValueError(f"schedule is torch's {made.__name__}, which takes other arguments: {_SCHEDULE}")
    if not callable(schedule):
        raise ValueError(f"schedule is {_kind(schedule)}: {_SCHEDULE}")
    trial = copy.copy(optimizer)
    trial.param_groups = [{**group, "params": [nn.Parameter(torch.zeros(1))]} for group in optimizer.param_groups]
    _require_rates(list(_rates(_scheduler(schedule, trial, epochs, steps_per_epoch), epochs * steps_per_epoch)))
    return _scheduler(schedule, optimizer, epochs, steps_per_epoch)


def _scheduler(schedule: Schedule, optimizer: Optimizer, epochs: int, steps_per_epoch: int) -> LRScheduler:
    try:
        scheduler = schedule(optimizer, epochs, steps_per_epoch)
    except TypeError as error:
        raise ValueError(f"schedule={_kind(schedule)} cannot be made ({_line(error)}): {_SCHEDULE}") from error
    if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, ReduceLROnPlateau):
        raise ValueError(
            f"schedule makes {_kind(scheduler)}, not a torch LRScheduler that needs no metric: {_SCHEDULE}"
        )
    if scheduler.optimizer is not optimizer:
        raise ValueError(f"schedule makes a scheduler of another optimiser than the one it is given: {_SCHEDULE}")
    return scheduler


def _rates(scheduler: LRScheduler, steps: int) -> Iterator[float]:
    """The largest learning rate of every step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing is optimised in between
        for step in range(steps):
            yield max(map(float, scheduler.get_last_lr()))
            try:
                scheduler.step()
            except Exception as error:  # a user's code, or torch's for more steps than it was told of
                raise ValueError(
                    f"schedule fails after {step + 1} of {steps} steps ({_line(error)}): {_SCHEDULE}"
                ) from error


def _require_rates(rates: list[float]) -> None:
    if wrong := [(step, rate) for step, rate in enumerate(rates, 1) if not 0 <= rate < math.inf]:
        step, rate = wrong[0]
        raise ValueError(f"schedule gives step {step} the learning rate {rate:.4g}: {_SCHEDULE}")
    median = sorted(rates)[len(rates) // 2]
    if median <= VANISHED * max(rates):
        raise ValueError(
            f"schedule gives half of the {len(rates)} steps a learning rate of at most {median:.3g}, which trains "
            f"nothing: {_SCHEDULE}"
        )


def require_loss(loss: Loss, logits: Tensor, labels: Tensor) -> None:
    """Raise `ValueError` unless the loss of logits `(B, C)` and labels `(B,)` is a mean that can be differentiated.

    >>> require_loss(nn.CrossEntropyLoss(reduction="sum"), torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
    Traceback (most recent call last):
    ValueError: loss=CrossEntropyLoss() adds up the images of a batch: give loss(logits (B, C), labels (B,)), the ...
    """
    if isinstance(loss, type) or not callable(loss):
        raise ValueError(f"loss is {_kind(loss)}: {_LOSS}")
    if isinstance(loss, nn.Module) and any(parameter.requires_grad for parameter in loss.parameters()):
        raise ValueError(f"loss={_kind(loss)} has parameters of its own, which nobody would train: {_LOSS}")
    values = [_value(loss, logits.detach().repeat(times, 1), labels.repeat(times)) for times in (1, 2)]
    once, twice = values
    if once and abs(twice - 2 * once) <= 1e-3 * abs(once):
        raise ValueError(f"loss={_kind(loss)} adds up the images of a batch: {_LOSS}")


def _value(loss: Loss, logits: Tensor, labels: Tensor) -> float:
    try:
        value = loss(logits.requires_grad_(), labels)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise ValueError(f"loss={_kind(loss)} cannot be computed ({_line(error)}): {_LOSS}") from error
    if not isinstance(value, Tensor) or value.ndim or not value.is_floating_point() or not value.requires_grad:
        found = f"Tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"loss={_kind(loss)} gives no scalar with a gradient but {found}: {_LOSS}")
    return float(value.detach())


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _kind(value: Any) -> str:
    """What a value is, in a word or two and on one line."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Optimizer | LRScheduler):
        return f"one {type(value).__name__}"
    text = str(getattr(value, "__name__", value)).splitlines()
    return text[0][:60] if text else type(value).__name__
