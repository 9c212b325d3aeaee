"""What is given to train with is tried at the call: what cannot be used is refused with the way out, on one line."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, SparseAdam
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from lconvnet import gan, wasserstein
from lconvnet.data import Images, batch
from lconvnet.losses import Hinge, OffsetCrossEntropy
from lconvnet.models import DCGANGenerator, baselines
from lconvnet.training import Epoch, Record, schedules
from lconvnet.training.checks import made_optimizer, made_scheduler, require_loss

Train = Callable[..., Record]
EPOCHS, STEPS = 5, 40


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2))]


def scheduled(schedule: Any, rate: float = 0.3) -> LRScheduler:
    return made_scheduler(schedule, SGD(parameters(), lr=rate, momentum=0.9), EPOCHS, STEPS)


SCHEDULES = [
    (CosineAnnealingLR, r"schedule is torch's CosineAnnealingLR, .*T_max=epochs \* steps_per_epoch"),
    (StepLR, "schedule is torch's StepLR, which takes other arguments"),
    (partial(CosineAnnealingLR, T_max=10), "schedule is torch's CosineAnnealingLR"),
    (CosineAnnealingLR(SGD(parameters(), lr=0.1), 10), "schedule is one CosineAnnealingLR: pass one of"),
    (schedules.Exponential, r"schedule=the class Exponential cannot be made \(.*\): call it, Exponential\(\)"),
    (schedules.one_cycle, r"schedule=the class OneCycle cannot be made \(.*\): call it, OneCycle\(\)"),
    (lambda o, e, n: MultiStepLR(o, [2, 4]), "lowers the learning rate for the last time at step 4 of 200, for it is"),
    (lambda o, e, n: LinearLR(o, 1.0, 0.01, total_iters=e), "for the last time at step 5 of 200"),
    (lambda o, e, n: CosineAnnealingLR(o, e), "has a period of 5 steps, as many as there are epochs, for it is"),
    (lambda o, e, n: CosineAnnealingWarmRestarts(o, e), "has a period of 5 steps"),
    (lambda o, e, n: SequentialLR(o, [ConstantLR(o, 0.1, 3), CosineAnnealingLR(o, e)], [3]), "has a period of 5 steps"),
    (lambda o, e, n: SequentialLR(o, [ConstantLR(o, 0.1, 2), CosineAnnealingLR(o, e - 2)], [2]), "has a period of 5"),
    (lambda o, e, n: CosineAnnealingLR(o, 1), "raises and lowers the learning rate 99 times in 5 epochs"),
    (lambda o, e, n: CyclicLR(o, 0.01, 0.1, step_size_up=1), "raises and lowers the learning rate 99 times in 5"),
    (lambda o, e, n: LambdaLR(o, lambda step: 1e9), r"learning rate 3e\+08, above 1e\+06, which trains no weight"),
    (lambda o, e, n: LambdaLR(o, lambda step: 1e-12), "learning rate 3e-13, which trains nothing"),
    ("one-cycle", "schedule is one-cycle: pass one of lconvnet.training.schedules"),
    (lambda optimizer: optimizer, r"cannot be made \(.*takes 1 positional argument but 3 were given"),
    (lambda optimizer, epochs, steps: None, "schedule makes None, not a torch LRScheduler"),
    (lambda optimizer, epochs, steps: ReduceLROnPlateau(optimizer), "schedule makes one ReduceLROnPlateau"),
    (lambda optimizer, epochs, steps: StepLR(SGD(parameters(), lr=0.1), 9), "of another optimiser than the one"),
    (lambda optimizer, epochs, steps: OneCycleLR(optimizer, 0.1, total_steps=epochs), r"fails after 6 of 200 steps \("),
    (
        lambda optimizer, epochs, steps: ExponentialLR(optimizer, 0.8),
        "half of the 200 steps a learning rate of at most",
    ),
    (lambda optimizer, epochs, steps: LambdaLR(optimizer, lambda step: 0.0), "learning rate 0, which trains nothing"),
    (
        lambda optimizer, epochs, steps: LambdaLR(optimizer, lambda step: 1 - step),
        "gives step 3 the learning rate -0.3",
    ),
]


@pytest.mark.parametrize(("schedule", "message"), SCHEDULES)
def test_schedules_that_cannot_be_used(schedule: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        scheduled(schedule)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.constant(),
        schedules.exponential(0.5),
        schedules.one_cycle(),
        lambda optimizer, epochs, steps: CosineAnnealingLR(optimizer, T_max=epochs * steps),
        lambda optimizer, epochs, steps: OneCycleLR(optimizer, 0.3, total_steps=epochs * steps),
        lambda optimizer, epochs, steps: CosineAnnealingWarmRestarts(optimizer, T_0=steps),
        lambda optimizer, epochs, steps: CosineAnnealingWarmRestarts(optimizer, T_0=steps, T_mult=2),
        lambda optimizer, epochs, steps: CosineAnnealingWarmRestarts(optimizer, T_0=steps // 4),
        lambda optimizer, epochs, steps: CyclicLR(optimizer, 0.01, 0.3, step_size_up=2 * steps),
        lambda optimizer, epochs, steps: CyclicLR(optimizer, 0.01, 0.3, step_size_up=steps // 4),
        lambda optimizer, epochs, steps: MultiStepLR(optimizer, [2 * steps, 4 * steps]),
        lambda optimizer, epochs, steps: MultiStepLR(optimizer, [1 * steps]),
        lambda optimizer, epochs, steps: StepLR(optimizer, 2 * steps),
        lambda optimizer, epochs, steps: LinearLR(optimizer, total_iters=5),
        lambda optimizer, epochs, steps: ExponentialLR(optimizer, 0.01 ** (1 / (epochs * steps))),
        lambda optimizer, epochs, steps: PolynomialLR(optimizer, total_iters=epochs * steps),
        lambda optimizer, epochs, steps: LambdaLR(optimizer, lambda step: (1 + step) ** -0.5),
        lambda optimizer, epochs, steps: SequentialLR(
            optimizer, [LinearLR(optimizer, 0.1, total_iters=10), CosineAnnealingLR(optimizer, epochs * steps)], [10]
        ),
    ],
)
def test_a_trial_leaves_optimiser_and_schedule_as_new(schedule: schedules.Schedule) -> None:
    tried, plain = (Adam(parameters(), lr=0.3) for _ in range(2))
    one, other = made_scheduler(schedule, tried, EPOCHS, STEPS), schedule(plain, EPOCHS, STEPS)
    for _ in range(EPOCHS * STEPS - 1):
        assert one.get_last_lr() == other.get_last_lr() == [tried.param_groups[0]["lr"]]
        for optimizer, scheduler in ((tried, one), (plain, other)):
            optimizer.step()
            scheduler.step()
    assert tried.state_dict() == plain.state_dict()


def test_the_rates_of_a_training_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "lconvnet"):
        scheduled(schedules.constant())
        scheduled(lambda optimizer, epochs, steps: MultiStepLR(optimizer, [steps, 3 * steps]))
    rates = "0.3 at first, 0.03 after a quarter, 0.03 after half, 0.003 after three quarters, 0.003 at last"
    assert caplog.messages == [f"learning rate: {rates}"]


@pytest.mark.parametrize(
    ("epochs", "steps"), [pytest.param(200, 469, marks=pytest.mark.slow), (200, 391), (10, 100), (90, 7)]
)
def test_the_commonest_recipes_with_epochs_for_steps(epochs: int, steps: int) -> None:
    """What torch's examples step once an epoch, stepped after every batch; in the right unit it is taken."""

    def made(unit: int) -> Iterator[schedules.Schedule]:
        yield lambda o, e, n: MultiStepLR(o, [e // 2 * unit, e * 3 // 4 * unit])
        yield lambda o, e, n: CosineAnnealingLR(o, e * unit)

    for schedule in made(1):
        with pytest.raises(ValueError, match="for it is stepped after every optimiser step"):
            made_scheduler(schedule, SGD(parameters(), lr=0.1), epochs, steps)
    for schedule in made(steps):
        made_scheduler(schedule, SGD(parameters(), lr=0.1), epochs, steps)


@pytest.mark.parametrize(("epochs", "steps"), [(1, 1), (1, 2), (2, 2), (1, 100), (3, 3), (50, 2)])
def test_short_runs_may_have_any_usual_schedule(epochs: int, steps: int) -> None:
    usual = [schedules.one_cycle(), schedules.exponential(), lambda o, e, n: CosineAnnealingLR(o, e * n)]
    usual += [lambda o, e, n: CosineAnnealingWarmRestarts(o, max(1, n // 4))] if epochs == 1 else []
    for schedule in usual:
        made_scheduler(schedule, SGD(parameters(), lr=0.1), epochs, steps)


def test_long_runs_may_end_at_small_rates() -> None:
    for schedule in (schedules.exponential(0.9), lambda o, e, n: LambdaLR(o, lambda step: 1 / (1 + step))):
        made_scheduler(schedule, SGD(parameters(), lr=0.1), 200, 100)


def test_a_rate_that_is_a_tensor_is_nobody_elses() -> None:
    """Torch fills it in place: a trial, or another training of the same `partial`, would go on from the last rate."""
    rate = torch.tensor(0.3, dtype=torch.float64)
    for _ in range(2):
        optimizer = made_optimizer(partial(Adam, lr=rate), parameters())
        scheduler = made_scheduler(lambda o, e, n: CosineAnnealingLR(o, e * n), optimizer, EPOCHS, STEPS)
        for step in range(EPOCHS * STEPS):
            expected = 0.15 * (1 + math.cos(math.pi * step / (EPOCHS * STEPS)))
            assert float(scheduler.get_last_lr()[0]) == pytest.approx(expected, abs=1e-6)
            optimizer.step()
            scheduler.step()
    assert rate == 0.3


class Rateless(SGD):
    """An optimiser whose groups have no learning rate."""

    def __init__(self, given: list[nn.Parameter]) -> None:
        super().__init__(given)
        del self.param_groups[0]["lr"]


def test_an_optimiser_without_a_learning_rate_has_no_schedule() -> None:
    optimizer = made_optimizer(Rateless, parameters())
    with pytest.raises(ValueError, match=r"schedule=Constant\(\) cannot be made \('lr'\)"):
        made_scheduler(schedules.constant(), optimizer, EPOCHS, STEPS)


OPTIMIZERS = [
    (Adam(parameters()), r"optimizer is one Adam: pass what makes one .*partial\(torch.optim.Adam, lr=1e-3\)"),
    ("adam", "optimizer is adam: pass what makes one"),
    (partial(Adam, parameters()), r"takes no list of parameters|lr"),
    (lambda given: Adam(parameters()), "leaves out 1 of the 1 trainable parameters and has 1 others"),
    (lambda given: Adam([*given, *parameters()]), "leaves out 0 of the 1 trainable parameters and has 1 others"),
    (lambda given: None, "optimizer makes None: pass what makes one"),
    (lambda given: given, "optimizer makes "),
    (lambda: None, "takes no list of parameters"),
    (LBFGS, "optimizer makes one LBFGS, whose steps need a closure"),
    (partial(SGD, lr=0.0), "learning rate 0, which trains nothing"),
    (partial(Adam, lr=1e-12), "learning rate 1e-12, which trains nothing"),
    (partial(Adam, lr=1e9), r"learning rate 1e\+09, above 1e\+06"),
    (partial(SGD, lr=0.1, maximize=True), "has maximize=True, which makes the loss larger"),
    (partial(Adam, differentiable=True), "has differentiable=True, which takes no step of a training"),
    (SparseAdam, "optimizer makes one SparseAdam, whose gradients must be sparse"),
    (
        partial(Adam, lr=-1.0),
        r"optimizer=.*Adam.* refuses the parameters \(Invalid learning rate: -1.0\): pass what makes",
    ),
]


@pytest.mark.parametrize(("optimizer", "message"), OPTIMIZERS)
def test_optimisers_that_cannot_be_used(optimizer: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made_optimizer(optimizer, parameters())


def summed(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="sum")


class Learned(nn.Module):
    """A loss with a parameter that no optimiser knows."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.scale * F.cross_entropy(logits, labels)


LOSSES = [
    (Hinge, "loss is the class Hinge: give loss"),
    (nn.CrossEntropyLoss, "loss is the class CrossEntropyLoss"),
    ("hinge", "loss is hinge"),
    (nn.CrossEntropyLoss(reduction="none"), r"no scalar with a gradient but Tensor of shape \(1,\)"),
    (nn.CrossEntropyLoss(reduction="sum"), "adds up the images of a batch"),
    (summed, "loss=summed adds up the images of a batch"),
    (lambda logits, labels: 1.0, "no scalar with a gradient but float"),
    (lambda logits, labels: F.cross_entropy(logits, labels).detach(), "no scalar with a gradient but Tensor"),
    (lambda logits: logits.mean(), r"cannot be computed \(.*takes 1 positional argument but 2 were given"),
    (lambda labels, logits: F.cross_entropy(logits, labels), "cannot be computed"),
    (nn.BCEWithLogitsLoss(), "cannot be computed"),
    (lambda logits, labels: (logits * 0).sum(), "does not depend on the labels"),
    (lambda logits, labels: logits.square().mean(), "does not depend on the labels"),
    (lambda logits, labels: -F.cross_entropy(logits, labels), "is larger for right answers than for wrong ones"),
    (nn.NLLLoss(), r"loss=NLLLoss\(\) falls without end where all logits of an image grow alike"),
    (Learned(), r"loss=Learned\(\) has parameters of its own, which nobody would train"),
]


@pytest.mark.parametrize(("loss", "message"), LOSSES)
def test_losses_that_cannot_be_used(loss: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        require_loss(loss, torch.randn(1, 5), torch.tensor([3]))
    assert "\n" not in str(error.value)


def contrast(logits: Tensor, labels: Tensor) -> Tensor:
    """The label's logit against the others': below no bound, but not by what changes no answer."""
    right = logits.gather(1, labels[:, None])[:, 0]
    return ((logits.sum(1) - right) / (logits.shape[1] - 1) - right).mean()


def squared(logits: Tensor, labels: Tensor) -> Tensor:
    return F.mse_loss(logits, F.one_hot(labels, logits.shape[1]).to(logits.dtype))


def focal(logits: Tensor, labels: Tensor) -> Tensor:
    likely = logits.softmax(1).gather(1, labels[:, None])
    return (-((1 - likely) ** 2) * likely.log()).mean()


USABLE = [
    *(nn.CrossEntropyLoss(), F.cross_entropy, nn.CrossEntropyLoss(torch.tensor([0.0, 1, 1, 1, 1]))),
    *(nn.CrossEntropyLoss(label_smoothing=0.3), nn.MultiMarginLoss(), contrast, squared, focal),
    *(Hinge(0.5), Hinge(1e-3), Hinge(1e3), OffsetCrossEntropy(0.5), OffsetCrossEntropy(0.5, temperature=1e-3)),
    lambda logits, labels: F.nll_loss(logits.log_softmax(1), labels),
    lambda logits, labels: F.cross_entropy(logits[:, :2], (labels >= 3).long()),  # labels by groups
    lambda logits, labels: F.cross_entropy(logits, labels // 2),
]


@pytest.mark.parametrize("loss", USABLE)
def test_losses_that_can(loss: Any) -> None:
    require_loss(loss, torch.randn(1, 5), torch.tensor([3]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": CosineAnnealingLR}, "schedule is torch's CosineAnnealingLR"),
        ({"optimizer": Adam(parameters())}, "optimizer is one Adam"),
        ({"loss": nn.CrossEntropyLoss(reduction="sum"), "eps": 0.3}, "adds up the images of a batch"),
        ({"loss": Hinge}, "loss is the class Hinge: give loss"),
        ({"loss": Learned()}, "has parameters of its own, which nobody would train"),
        ({"augment": lambda images: images}, "augment cannot be used .*unexpected keyword argument 'generator'"),
        ({"augment": lambda images, generator: images[:3]}, r"augment gives torch.float32 \(3, 1, 28, 28\) for images"),
        ({"augment": lambda images, generator: (images * 255).byte()}, "augment gives torch.uint8"),
        ({"augment": lambda images, generator: images / 0}, "augment gives NaN or infinite pixels"),
        ({"select_eps": -1}, "select_eps=-1: must be a positive l2 radius"),
        ({"select_eps": "0.1"}, "select_eps='0.1': must be a positive l2 radius"),
        ({"eps": "0.1"}, "eps='0.1': must be one or more different positive l2 radii"),
        ({"data": torch.zeros(4, 1, 28, 28)}, "data is a Tensor: give a name, a path, or lconvnet.data.Splits"),
        ({"data": ([], [])}, "data is a tuple"),
    ],
)
def test_fit_refuses_what_it_cannot_use(change: dict[str, Any], message: str, train: Train) -> None:
    with pytest.raises(ValueError, match=message):
        train(epochs=1, **change)


def test_estimate_and_train_gan_refuse_it_too() -> None:
    samples = torch.randn(20, 2)
    with pytest.raises(ValueError, match=r"schedule is torch's StepLR"):
        wasserstein.estimate(samples + 1, samples, steps=1, schedule=StepLR)
    with pytest.raises(ValueError, match=r"optimizer is one Adam"):
        wasserstein.estimate(samples + 1, samples, steps=1, optimizer=Adam(parameters()))  # pyright: ignore
    colours = torch.zeros(20, 16, 16, 3)
    with pytest.raises(ValueError, match=r"real has shape \(20, 16, 16, 3\), channels last"):
        wasserstein.estimate(colours, colours, steps=1)
    images = Images(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), 1, "black")
    generator, critic = DCGANGenerator(4, 1, 8, 2), baselines.unconstrained_critic(1, 8, width=2)
    for name in ("generator_optimizer", "critic_optimizer"):
        options: dict[str, Any] = {name: lambda _: SGD(parameters())}
        with pytest.raises(ValueError, match=rf"{name} leaves out"):
            gan.train_gan(generator, critic, images, objective=gan.WeightClipping(), epochs=1, **options)


def test_the_first_radius_decides_where_radii_disagree() -> None:
    def epoch(number: int, certified: dict[float, float]) -> Epoch:
        return Epoch(number, number, 0.1, 0.5, 0.5, clean=0.9, certified=certified, lipschitz=1.0)

    for radius, best in ((0.02, 1), (0.9, 2)):
        record = Record({"eps": [radius]}, {})
        for number, (small, large) in enumerate([(0.8, 0.1), (0.7, 0.3)], 1):
            both = {0.02: small, 0.9: large}
            record = record.add(epoch(number, {radius: both[radius], **both}), finished=number == 2)
        assert record.best_epoch == best


@pytest.mark.parametrize("loss", [Hinge(0.02), OffsetCrossEntropy(0.02)])
def test_the_radius_of_the_loss_chooses_the_epoch(loss: Any, train: Train, tmp_path: Path) -> None:
    """A list of radii to report says nothing of which one matters."""
    options = {"loss": loss, "epochs": 2}
    records = {
        0.02: train(eps=(0.9, 0.02), directory=tmp_path, **options),
        0.9: train(eps=(0.9, 0.02), select_eps=0.9, **options),
    }
    for radius, record in records.items():
        ranks = [(epoch.certified[radius], epoch.clean) for epoch in record.epochs]
        assert record.best_epoch == 1 + ranks.index(max(ranks))
        assert set(record.best.certified) == {0.02, 0.9}
        assert record.chosen_by == f"certified accuracy at eps {radius} on the validation images"
        assert record.to_dict()["chosen_by"] == record.chosen_by
        assert record.settings["eps"][0] == radius
    assert train(eps=0.9, **(options | {"epochs": 1})).best.certified.keys() == {0.02, 0.9}  # measured to choose by it


def test_a_loss_without_a_radius_chooses_by_the_first(train: Train) -> None:
    record = train(loss=nn.CrossEntropyLoss(), eps=(0.2, 0.1), epochs=1)
    assert record.chosen_by.startswith("certified accuracy at eps 0.2")


def test_batch_refuses_what_is_no_set_of_images(digits: Any) -> None:
    for given in (digits, digits.train.images):
        with pytest.raises(ValueError, match=r"images is a .*, not lconvnet.data.Images"):
            batch(given, [0])
