"""Checks of optimiser, schedule and loss before a training starts.

Each is a callable that Python cannot check. A callable with other arguments than it seems to have may run and train
nothing: torch's `CosineAnnealingLR` would read the number of epochs as its period and the number of steps as its rate.
"""

import copy
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.optim import LBFGS, Optimizer, SparseAdam
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lconvnet.training.processes import is_first_process
from lconvnet.training.schedules import Exponential, Schedule

logger = logging.getLogger("lconvnet")

Loss = Callable[[Tensor, Tensor], Tensor]
MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]
VANISHED = 1e-6  # of the peak, over half of the steps: the paper's schedule is at 0.02 there and ends at 5e-4
COARSE = 20  # levels between 0 and the peak; a swing is at least one level
FEW = 10  # so few steps, or swings per epoch, are not judged
TRIED = 16  # largest number of classes with which a loss is tried
LEAST, MOST = 1e-10, 1e6  # float32 weights of order 1 do not move below, and lose all digits above

_OPTIMIZER = "pass what makes one from a list of parameters, such as partial(torch.optim.Adam, lr=1e-3)"
_SCHEDULE = (
    "pass one of lconvnet.training.schedules, or what makes a scheduler that is stepped after every optimiser step: "
    "lambda optimizer, epochs, steps_per_epoch: CosineAnnealingLR(optimizer, T_max=epochs * steps_per_epoch)"
)
_LOSS = "give loss(logits (B, C), labels (B,)), the mean over the batch, such as lconvnet.losses.Hinge(eps=1.5)"


def made_optimizer(make: MakeOptimizer, parameters: list[nn.Parameter], name: str = "optimizer") -> Optimizer:
    """Return the optimiser of exactly these parameters; raises `ValueError` for anything else.

    Its options are copies, because torch changes a learning rate that is a tensor in place.

    >>> made_optimizer(torch.optim.SGD, [nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"]
    0.001
    """
    if not callable(make):
        raise ValueError(f"{name} is {_kind(make)}: {_OPTIMIZER}")
    try:
        optimizer = make(parameters)
    except TypeError as error:
        raise ValueError(f"{name}={_kind(make)} takes no list of parameters ({_line(error)}): {_OPTIMIZER}") from error
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{name}={_kind(make)} refuses the parameters ({_line(error)}): {_OPTIMIZER}") from error
    if (why := _unusable(optimizer)) is not None:
        raise ValueError(f"{name} makes {_kind(optimizer)}{why}: {_OPTIMIZER}")
    given = {id(parameter) for parameter in parameters}
    taken = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if given != taken:
        raise ValueError(
            f"{name} leaves out {len(given - taken)} of the {len(given)} trainable parameters and has "
            f"{len(taken - given)} others: {_OPTIMIZER}; what is not to be trained, freeze with requires_grad_(False)"
        )
    for option, effect in (("maximize", "makes the loss larger"), ("differentiable", "takes no step of a training")):
        if any(group.get(option) for group in optimizer.param_groups):
            raise ValueError(f"{name} has {option}=True, which {effect}: leave it out")
    _require_size([float(rate) for group in optimizer.param_groups if (rate := group.get("lr")) is not None], name)
    optimizer.param_groups = [_own(group) for group in optimizer.param_groups]
    return optimizer


def _unusable(optimizer: Any) -> str | None:
    """The fault of a would-be optimiser, perhaps ""; None if it can be used."""
    if isinstance(optimizer, LBFGS):
        return ", whose steps need a closure"
    if isinstance(optimizer, SparseAdam):
        return ", whose gradients must be sparse"
    return None if isinstance(optimizer, Optimizer) else ""


def _own(group: dict[str, Any]) -> dict[str, Any]:
    """The options of a group, with tensors copied."""
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in group.items()}


def _require_size(rates: list[float], name: str) -> None:
    if not rates:
        return
    if not (peak := max(rates)) <= MOST:
        raise ValueError(f"{name} has the learning rate {peak:.4g}, above {MOST:g}, which trains no weight: lower it")
    if peak < LEAST:
        raise ValueError(f"{name} has the learning rate {peak:.4g}, which trains nothing: give it a positive lr, 1e-3")


def made_scheduler(schedule: Schedule, optimizer: Optimizer, epochs: int, steps_per_epoch: int) -> LRScheduler:
    """Return the scheduler, after a trial to the last step on a copy of the optimiser's options.

    Raises `ValueError` for torch's own classes and schedulers (they take other arguments), for a schedule that fails
    before the end, and for rates that are not numbers, train nothing, vanish for half of the steps, or take epochs for
    steps. Logs the rates of a schedule that changes them.

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
    tried = _scheduler(schedule, trial(optimizer), epochs, steps_per_epoch)
    rates = list(_rates(tried, epochs * steps_per_epoch))
    _require_rates(rates)
    if why := _takes_epochs_for_steps(tried, rates, epochs, steps_per_epoch):
        raise ValueError(f"schedule {why}, for it is stepped after every optimiser step: {_SCHEDULE}")
    if is_first_process() and min(rates) < max(rates):
        logger.info("learning rate: %s", _told(rates))
    return _scheduler(schedule, optimizer, epochs, steps_per_epoch)


def same_start(
    schedule: Schedule, optimizer: Optimizer, lengths: Sequence[int], steps_per_epoch: int, done: int
) -> bool:
    """Whether the first `done` steps have the same learning rates for each of these numbers of epochs.

    >>> optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> same_start(Exponential(), optimizer, (2, 3), 5, done=10)
    True
    """
    schedulers = (_scheduler(schedule, trial(optimizer), epochs, steps_per_epoch) for epochs in lengths)
    return len({tuple(_rates(one, done)) for one in schedulers}) == 1


def is_free(schedule: Schedule | None, *lengths: int) -> bool:
    """Whether trainings of these numbers of epochs begin with the same learning rates.

    >>> is_free(Exponential(), 2, 3), is_free(None, 2, 3)
    (True, True)
    """
    one = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    return min(lengths) > 0 and (schedule is None or same_start(schedule, one, lengths, 2, 2 * min(lengths)))


def trial(optimizer: Optimizer) -> Optimizer:
    """An optimiser with the same options and nothing to optimise."""
    other = copy.copy(optimizer)
    other.param_groups = [{**_own(group), "params": [nn.Parameter(torch.zeros(1))]} for group in optimizer.param_groups]
    return other


def _scheduler(schedule: Schedule, optimizer: Optimizer, epochs: int, steps_per_epoch: int) -> LRScheduler:
    try:
        scheduler = schedule(optimizer, epochs, steps_per_epoch)
    except (TypeError, KeyError) as error:
        own = getattr(schedule, "__module__", "") == Exponential.__module__ and getattr(schedule, "__name__", "")
        way_out = f"call it, {own}()" if own else _SCHEDULE
        raise ValueError(f"schedule={_kind(schedule)} cannot be made ({_line(error)}): {way_out}") from error
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
        warnings.simplefilter("ignore")  # the trial takes no optimiser steps
        for step in range(steps):
            yield max(map(float, scheduler.get_last_lr()))
            try:
                scheduler.step()
            except Exception as error:  # from a user's code, or from torch after more steps than it expects
                raise ValueError(
                    f"schedule fails after {step + 1} of {steps} steps ({_line(error)}): {_SCHEDULE}"
                ) from error


def _require_rates(rates: list[float]) -> None:
    if wrong := [(step, rate) for step, rate in enumerate(rates, 1) if not 0 <= rate < math.inf]:
        step, rate = wrong[0]
        raise ValueError(f"schedule gives step {step} the learning rate {rate:.4g}: {_SCHEDULE}")
    _require_size(rates, "schedule")
    median = sorted(rates)[len(rates) // 2]
    if median <= VANISHED * max(rates):
        raise ValueError(
            f"schedule gives half of the {len(rates)} steps a learning rate of at most {median:.3g}, which trains "
            f"nothing: {_SCHEDULE}"
        )


def _takes_epochs_for_steps(scheduler: LRScheduler, rates: list[float], epochs: int, steps_per_epoch: int) -> str:
    """The evidence that the schedule takes epochs for steps; "" if there is none.

    Torch counts milestones and periods in calls, and its examples make one call per epoch.
    """
    changes = [step for step, (one, other) in enumerate(pairwise(rates), 1) if one != other]
    early = changes and changes[-1] <= epochs and len(rates) - changes[-1] > max(FEW, len(rates) // 2)
    if early and rates[-1] < rates[0] and any(step % steps_per_epoch for step in changes):
        return f"lowers the learning rate for the last time at step {changes[-1]} of {len(rates)}"
    periods = {getattr(part, name, None) or 0 for part in _parts(scheduler) for name in ("T_max", "T_0")}
    starts = {0, *(step for part in _parts(scheduler) for step in getattr(part, "_milestones", ()))}
    ends = {start + period for start in starts for period in periods}
    if epochs > 1 and epochs % steps_per_epoch and epochs in ends:
        return f"has a period of {epochs} steps, as many as there are epochs"
    peak = max(rates)
    levels = [round(COARSE * rate / peak) for rate in rates]
    moves = [other > one for one, other in pairwise(levels) if one != other]
    if (swings := sum(up and not on for up, on in pairwise(moves))) > FEW * epochs:
        return f"raises and lowers the learning rate {swings} times in {epochs} epochs"
    return ""


def _parts(scheduler: Any) -> Iterator[Any]:
    """A scheduler and the schedulers inside it."""
    yield scheduler
    for part in getattr(scheduler, "_schedulers", ()):
        yield from _parts(part)


def _told(rates: list[float]) -> str:
    """The rates of a training in words.

    >>> _told([4.0, 3.0, 2.0, 1.0, 0.5])
    '4 at first, 3 after a quarter, 2 after half, 1 after three quarters, 0.5 at last'
    """
    places = ("at first", "after a quarter", "after half", "after three quarters", "at last")
    last = len(rates) - 1
    return ", ".join(f"{rates[round(i * last / 4)]:.4g} {place}" for i, place in enumerate(places))


def require_usable(loss: Loss) -> None:
    """Raise `ValueError` for a loss that is not a function, or has parameters."""
    if isinstance(loss, type) or not callable(loss):
        raise ValueError(f"loss is {_kind(loss)}: {_LOSS}")
    if isinstance(loss, nn.Module) and any(parameter.requires_grad for parameter in loss.parameters()):
        raise ValueError(f"loss={_kind(loss)} has parameters of its own, which nobody would train: {_LOSS}")


def require_loss(loss: Loss, logits: Tensor, labels: Tensor) -> None:
    """Raise `ValueError` unless the loss of logits `(B, C)` and labels `(B,)` is a differentiable mean that is lowest
    for right answers.

    Refused are a loss that ignores the labels, one that prefers wrong answers, and one that falls without end if all
    logits of an image grow equally, which changes no answer.

    >>> require_loss(nn.CrossEntropyLoss(reduction="sum"), torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
    Traceback (most recent call last):
    ValueError: loss=CrossEntropyLoss() adds up the images of a batch: give loss(logits (B, C), labels (B,)), the ...
    """
    require_usable(loss)
    loss = copy.deepcopy(loss)  # a loss may count its calls
    values = [_evaluated(loss, logits.repeat(times, 1), labels.repeat(times))[0] for times in (1, 2)]
    once, twice = map(float, values)
    if once and abs(twice - 2 * once) <= 1e-3 * abs(once):
        raise ValueError(f"loss={_kind(loss)} adds up the images of a batch: {_LOSS}")
    if logits.shape[1] > 1 and (why := _trains_wrongly(partial(_evaluated, loss), logits)):
        raise ValueError(f"loss={_kind(loss)} {why}: {_LOSS}")


def _trains_wrongly(loss: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], like: Tensor) -> str:
    """The fault of a loss, found from its values and gradients on one image per class; "" if there is none.

    A fault must show for every choice of labels, so that a merely unusual loss passes.
    """
    draws, count = torch.Generator().manual_seed(0), like.shape[1]
    classes = torch.linspace(0, count - 1, min(count, TRIED), device=like.device).round().long()
    labels = [
        classes,
        classes.flip(0),
        classes.roll(1),
        classes[:1].expand_as(classes),
        classes[-1:].expand_as(classes),
    ]
    logits = [scale * torch.randn(len(classes), count, generator=draws).to(like) for scale in (1.0, 1.0, 10.0)]
    found = [[loss(one, each)[1] for each in labels] for one in logits]
    if all(torch.equal(gradient, row[0]) for row in found for gradient in row):
        return "does not depend on the labels"
    answers = [(each, scale * one_hot(each, count).to(like)) for scale in (1, 10) for each in labels[:3]]
    if all(loss(right, each)[0] > loss(right.flip(0), each)[0] for each, right in answers):
        return "is larger for right answers than for wrong ones"
    for far in (1e3, -1e3):
        values = torch.stack([loss(logits[0] + shift, each)[0] for each in labels for shift in (0, far, 2 * far)])
        start, middle, end = values.reshape(-1, 3).unbind(1)
        if bool(((middle < start - 1) & (end - start < 1.9 * (middle - start)) & end.isfinite()).all()):
            return "falls without end where all logits of an image grow alike"
    return ""


def _evaluated(loss: Loss, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """A loss and its gradient with respect to the logits."""
    logits = logits.detach().requires_grad_()
    try:
        value = loss(logits, labels)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise ValueError(f"loss={_kind(loss)} cannot be computed ({_line(error)}): {_LOSS}") from error
    if not isinstance(value, Tensor) or value.ndim or not value.is_floating_point() or not value.requires_grad:
        found = f"Tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"loss={_kind(loss)} gives no scalar with a gradient but {found}: {_LOSS}")
    (gradient,) = torch.autograd.grad(value, logits, allow_unused=True, materialize_grads=True)
    return value.detach(), gradient


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _kind(value: Any) -> str:
    """The kind of a value in a word or two, on one line."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Optimizer | LRScheduler):
        return f"one {type(value).__name__}"
    text = str(getattr(value, "__name__", value)).splitlines()
    return text[0][:60] if text else type(value).__name__
