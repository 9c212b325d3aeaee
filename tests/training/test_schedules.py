"""Schedules against torch's own schedulers."""

from collections.abc import Callable

import pytest
import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ExponentialLR, LRScheduler, OneCycleLR

from lconvnet.training import schedules

EPOCHS, STEPS = 7, 5


def sgd() -> Optimizer:
    return SGD([torch.zeros(1, requires_grad=True)], lr=0.3)


def rates(make: Callable[[Optimizer], LRScheduler], every: int = 1) -> list[float]:
    """The rate of each optimiser step when the scheduler is stepped after every `every` of them."""
    optimizer = sgd()
    scheduler = make(optimizer)
    seen = []
    for step in range(1, EPOCHS * STEPS + 1):
        seen.append(scheduler.get_last_lr()[0])
        optimizer.step()
        if step % every == 0:
            scheduler.step()
    return seen


def test_exponential_is_torch_s_from_its_second_epoch_on() -> None:
    ours = rates(lambda optimizer: schedules.exponential(0.9)(optimizer, EPOCHS, STEPS))
    theirs = rates(lambda optimizer: ExponentialLR(optimizer, 0.9), every=STEPS)
    # A power here, repeated products there: a few float64 round-offs.
    assert ours[:-STEPS] == pytest.approx(theirs[STEPS:], rel=1e-14)
    # The original numbers its epochs from 1 and takes lr gamma^e in each.
    assert ours == pytest.approx([0.3 * 0.9**e for e in range(1, EPOCHS + 1) for _ in range(STEPS)], rel=1e-14)


@pytest.mark.parametrize("warmup", [0.1, 0.3, 0.5])
def test_one_cycle_equals_torch(warmup: float) -> None:
    ours = rates(lambda optimizer: schedules.one_cycle(warmup)(optimizer, EPOCHS, STEPS))
    theirs = rates(
        lambda optimizer: OneCycleLR(optimizer, 0.3, total_steps=EPOCHS * STEPS, pct_start=warmup, cycle_momentum=False)
    )
    assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-16)
    assert max(ours) == pytest.approx(0.3, rel=0.02)
    assert ours[-1] == pytest.approx(0.3 / 25e4, rel=1e-9)


@pytest.mark.parametrize("total", [1, 2, 3, 4])
def test_one_cycle_of_very_few_steps_stays_between_its_ends(total: int) -> None:
    schedule = schedules.one_cycle()
    assert all(schedule.end * 0.999 <= schedule.factor(step, total) <= 1 for step in range(total + 1))


def test_constant_is_constant() -> None:
    assert set(rates(lambda optimizer: schedules.constant()(optimizer, EPOCHS, STEPS))) == {0.3}


@pytest.mark.parametrize("make", [schedules.constant, schedules.exponential, schedules.one_cycle])
def test_a_restored_schedule_goes_on_as_it_was(make: Callable[[], schedules.Schedule]) -> None:
    expected = rates(lambda optimizer: make()(optimizer, EPOCHS, STEPS))
    first, second = sgd(), sgd()
    before = make()(first, EPOCHS, STEPS)
    for _ in range(11):
        first.step()
        before.step()
    after = make()(second, EPOCHS, STEPS)
    second.load_state_dict(first.state_dict())
    after.load_state_dict(before.state_dict())
    assert second.param_groups[0]["lr"] == expected[11]
    second.step()
    after.step()
    assert after.get_last_lr()[0] == second.param_groups[0]["lr"] == expected[12]


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"gamma=0: must be positive"):
        schedules.exponential(0)
    with pytest.raises(ValueError, match=r"warmup=1\.5: must lie strictly between 0 and 1"):
        schedules.one_cycle(1.5)
    with pytest.raises(ValueError, match=r"end=0: must be a positive fraction"):
        schedules.one_cycle(end=0)
