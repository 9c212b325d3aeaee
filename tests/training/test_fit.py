"""The loop: reproducible, blind to the test split, keeps the best epoch, projects when it should, fails clearly."""

import csv
import dataclasses
import json
import logging
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lconvnet import atomic
from lconvnet.baking import bake
from lconvnet.bounds import lipschitz_bound
from lconvnet.certify import certified_accuracy, certify
from lconvnet.data import Splits, batch
from lconvnet.kernels import Orthogonal
from lconvnet.layers import CholeskyLinear, LipschitzLinear, OrthogonalLinear
from lconvnet.losses import Hinge, OffsetCrossEntropy
from lconvnet.models import mlp
from lconvnet.training import Diverged, Interrupted, Record, fit, is_started, load_record, schedules

Train = Callable[..., Record]


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_same_seed_same_record_and_weights(train: Train, small: Callable[..., nn.Module], tmp_path: Path) -> None:
    models = [small() for _ in range(3)]
    records = [
        train(models[0], directory=tmp_path / "a"),
        train(models[1], directory=tmp_path / "b", checkpoint_every=1000),
        train(models[2]),  # in memory
    ]
    assert records[0] == records[1] == records[2]
    assert same(bits(models[0]), bits(models[1]))
    assert same(bits(models[0]), bits(models[2]))
    for name in ("record.json", "logs/metrics.csv", "checkpoints/best.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_another_seed_or_other_weights_give_another_record(train: Train, small: Callable[..., nn.Module]) -> None:
    losses = {train(small(0)).best.loss, train(small(0), seed=1).best.loss, train(small(1)).best.loss}
    assert len(losses) == 3


def test_the_global_random_state_is_neither_used_nor_changed(train: Train) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = train()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert train() == first


def test_training_learns_and_the_record_is_what_the_model_does(train: Train, digits: Splits, model: nn.Module) -> None:
    record = train(model, epochs=5, optimizer=partial(torch.optim.Adam, lr=5e-3), eps=(0.3, 0.1))
    assert record.finished
    assert [epoch.epoch for epoch in record.epochs] == [1, 2, 3, 4, 5]
    assert record.epochs[-1].loss < 0.7 * record.epochs[0].loss
    assert record.best.clean > 0.5  # chance is 0.1
    assert not model.training
    network = bake(model)
    images, labels = batch(digits.validation, torch.arange(len(digits.validation)))
    bound = lipschitz_bound(network, input_shape=digits.image_shape)
    certificates = certify(network, images, bound=bound)
    assert record.best.lipschitz == bound.upper
    assert record.best.clean == (certificates.label == labels).double().mean().item()
    for eps in (0.3, 0.1):
        assert record.best.certified[eps] == certified_accuracy(certificates, labels, eps)
    assert record.best.certified[0.1] >= record.best.certified[0.3]


def test_the_test_split_has_no_part_in_a_training(train: Train, digits: Splits) -> None:
    """But for its fingerprint, by which `evaluate` knows it again."""
    shuffled = dataclasses.replace(digits.test, images=255 - digits.test.images, labels=digits.test.labels.flip(0))
    found, expected = train(data=dataclasses.replace(digits, test=shuffled)), train()
    assert found.epochs == expected.epochs and found.best_epoch == expected.best_epoch
    changed = {key for key in expected.settings if found.settings[key] != expected.settings[key]}
    assert changed == {"data"}
    found.settings["data"].pop("test"), expected.settings["data"].pop("test")
    assert found.settings == expected.settings


def test_the_validation_split_is_not_trained_on(train: Train, digits: Splits, small: Callable[..., nn.Module]) -> None:
    garbage = dataclasses.replace(digits.validation, images=255 - digits.validation.images)
    models = [small(), small()]
    train(models[0], epochs=1)
    record = train(models[1], epochs=1, data=dataclasses.replace(digits, validation=garbage))
    assert same(bits(models[0]), bits(models[1]))
    assert record.settings != train(epochs=1).settings  # the data's fingerprint tells them apart


def test_the_best_epoch_on_validation_is_kept(train: Train, small: Callable[..., nn.Module], tmp_path: Path) -> None:
    """A learning rate that explodes in epoch 3 makes the last epoch the worst."""

    def cliff(optimizer: torch.optim.Optimizer, epochs: int, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step < 2 * steps else 1000.0)

    rough = partial(torch.optim.SGD, lr=0.05)
    seen: list[dict[str, Tensor]] = []
    for directory in (None, tmp_path):
        kept = small()
        record = train(
            kept, epochs=3, schedule=cliff, optimizer=rough, on_epoch=lambda _, m=kept: seen.append(bits(m)),
            directory=directory,
        )  # fmt: skip
        ranks = [(epoch.certified[0.3], epoch.clean) for epoch in record.epochs]
        assert record.best_epoch == 1 + ranks.index(max(ranks)) != 3
        assert same(bits(kept), seen[-3:][record.best_epoch - 1])
        assert not same(bits(kept), seen[-1])


def test_batches_cover_every_image_once_in_a_new_order_each_epoch(train: Train, digits: Splits) -> None:
    seen: list[Tensor] = []

    def spy(images: Tensor, *, generator: torch.Generator) -> Tensor:
        seen.append(images.mul(255).round().long().flatten(1).sum(1))
        return images

    train(augment=spy, epochs=2, batch_size=64)
    sizes = [64] * 7 + [len(digits.train) - 7 * 64]
    assert [len(part) for part in seen] == 2 * sizes
    first, second = torch.cat(seen[:8]), torch.cat(seen[8:])
    expected = digits.train.images.long().flatten(1).sum(1)  # the sum of an image's pixels is its fingerprint
    assert torch.equal(first.sort().values, expected.sort().values)
    assert torch.equal(second.sort().values, expected.sort().values)
    assert not torch.equal(first, second)
    assert not torch.equal(first, expected)


def test_augmentation_draws_from_its_own_generator_anew_every_step(train: Train) -> None:
    draws: list[float] = []

    def spy(images: Tensor, *, generator: torch.Generator) -> Tensor:
        draws.append(torch.rand((), generator=generator).item())
        return images

    train(augment=spy)
    first = list(draws)
    assert len(set(first)) == 16
    draws.clear()
    train(augment=spy)
    assert draws == first


class Counting(Orthogonal):
    """A kernel whose projection only counts."""

    calls = 0

    def project_(self) -> None:
        Counting.calls += 1


@pytest.mark.parametrize(
    ("every", "expected"),
    [(1, 8), (2, 5), (3, 4), (7, 2), (8, 2), (100, 2)],  # 8 steps per epoch: for 3, after steps 1, 4, 7 and 8
)
def test_projection_after_the_first_step_every_so_many_from_there_and_after_the_last(
    every: int, expected: int, train: Train
) -> None:
    Counting.calls = 0
    train(
        mlp(784, 10, widths=(16,), linear=partial(LipschitzLinear, kernel=Counting)),
        epochs=3,
        project_every=every,
    )
    assert Counting.calls == 3 * 2 * expected  # two layers


def test_the_run_folder(train: Train, tmp_path: Path) -> None:
    assert not is_started(tmp_path)
    record = train(directory=tmp_path, settings={"trial": "A"})
    assert is_started(tmp_path)
    assert load_record(tmp_path) == record
    content = json.loads((tmp_path / "record.json").read_text())
    assert content["settings"]["settings"] == {"trial": "A"}
    assert content["best_epoch"] == record.best_epoch
    assert set(content["versions"]) >= {"torch", "python", "lconvnet"}
    rows = list(csv.DictReader((tmp_path / "logs" / "metrics.csv").read_text().splitlines()))
    assert [float(row["certified@0.3"]) for row in rows] == [epoch.certified[0.3] for epoch in record.epochs]
    assert [int(row["step"]) for row in rows] == [8, 16]
    timing = [json.loads(line) for line in (tmp_path / "logs" / "timing.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in timing] == [1, 2]
    assert all(line["images_per_second"] > 0 for line in timing)
    assert str(tmp_path) not in (tmp_path / "record.json").read_text()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_shows_scalars_and_singular_values(train: Train, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    plain = train(directory=tmp_path / "plain")
    record = train(directory=tmp_path / "curves", tensorboard=True)
    assert record == plain
    events = accumulator.EventAccumulator(str(tmp_path / "curves" / "logs" / "tensorboard"))
    events.Reload()
    clean = events.Scalars("validation/clean")
    assert [(point.step, point.value) for point in clean] == [
        (epoch.step, pytest.approx(epoch.clean, rel=1e-6)) for epoch in record.epochs
    ]
    tags = events.Tags()["histograms"]
    assert tags == ["singular_values/linear1", "singular_values/linear2"]
    histogram = events.Histograms(tags[0])[-1].histogram_value
    assert histogram.num == 16
    assert histogram.min == pytest.approx(1, abs=1e-5) == histogram.max


def test_missing_tensorboard_is_a_notice(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    record = train(directory=tmp_path, tensorboard=True)
    assert record.finished
    assert "no TensorBoard curves: it is not installed" in caplog.text


def test_without_a_terminal_there_is_one_log_line_an_epoch(
    train: Train, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, logger="lconvnet"):
        train()
    rates, *lines = [record.message for record in caplog.records if record.name == "lconvnet"]
    assert rates.startswith("learning rate: 0.0009624 at first, ")
    assert len(lines) == 2
    assert lines[0].startswith("epoch 1/2  loss ")
    assert "clean " in lines[0]
    assert "certified@0.3 " in lines[0]
    assert capsys.readouterr() == ("", "")


def test_more_outputs_than_classes_are_warned_of(train: Train, caplog: pytest.LogCaptureFixture) -> None:
    train(mlp(784, 12, widths=(4,)), epochs=1)
    assert "model has 12 outputs for 10 classes" in caplog.text


def test_on_a_terminal_there_is_a_bar(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    train()
    out, err = capsys.readouterr()
    assert out == ""
    assert "epoch 2/2" in err
    assert "certified@0.3" in err
    assert "loss" in err
    train(progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_other_precisions(precision: str, train: Train, model: nn.Module) -> None:
    record = train(model, precision=precision, epochs=1)
    dtype = torch.float64 if precision == "64-true" else torch.float32
    assert next(model.parameters()).dtype == dtype
    assert torch.get_default_dtype() == torch.float32
    assert record == train(precision=precision, epochs=1)
    assert record.best.loss != train(epochs=1).best.loss
    assert record.best.loss == pytest.approx(train(epochs=1).best.loss, rel=0.05)


def test_double_precision_computes_the_loss_in_double(train: Train) -> None:
    dtypes: set[torch.dtype] = set()

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        dtypes.add(logits.dtype)
        return Hinge(0.3)(logits, labels)

    train(loss=loss, eps=0.3, precision="64-true", epochs=1)
    assert dtypes == {torch.float64}


def test_a_loss_that_is_no_longer_finite_stops_with_step_and_rate(train: Train, tmp_path: Path) -> None:
    calls = [0]

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        calls[0] += len(labels) > 16  # so many images at most are how a loss is tried before the first step
        return Hinge(0.3)(logits, labels) * (math.nan if calls[0] == 5 else 1)

    message = r"diverged at step 5 \(epoch 1\): loss is nan with learning rate 0\.0009624; lower the learning rate"
    with pytest.raises(Diverged, match=message):
        train(loss=loss, eps=0.3, directory=tmp_path)
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["progress"]["step"] == 3
    assert all(torch.isfinite(value).all() for value in state["modules"]["model"].values())


@pytest.mark.parametrize("linear", [CholeskyLinear, OrthogonalLinear, torch.nn.Linear])
def test_the_layer_that_is_not_finite_is_named(train: Train, linear: Any) -> None:
    """A kernel raises where asking costs nothing; elsewhere, as in a plain layer, NaN arrives in the loss."""
    model = mlp(784, 10, widths=(16, 16), linear=linear)
    next(model.get_submodule("linear2").parameters()).register_hook(lambda gradient: gradient * math.nan)
    message = r"diverged at step 2 \(epoch 1\): .*linear2\.\S+ is not finite"
    with pytest.raises(Diverged, match=message):
        train(model)


def test_weights_that_are_no_longer_finite_are_never_saved(train: Train, tmp_path: Path) -> None:
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return (logits - logits.detach()).abs().sqrt().sum()  # value 0, gradient infinite

    with pytest.raises(Diverged, match=r"(not finite|loss is nan) with learning rate"):
        train(loss=loss, eps=0.3, directory=tmp_path, checkpoint_every=1)
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in state["modules"]["model"].values())


@pytest.mark.parametrize(("eps", "expected"), [((0.5, 0.1412), [0.1412, 0.5]), ((0.5, 1.0), [36 / 255, 0.5, 1.0])])
def test_the_radius_that_chooses_is_one_of_the_list_or_stands_first(train, eps, expected):
    """36/255 and 0.1412 are one radius, and one column."""
    record = train(loss=OffsetCrossEntropy(36 / 255), eps=eps, epochs=1)
    assert record.settings["eps"] == expected
    assert list(record.epochs[0].certified) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, r"epochs=0: must be an integer of at least 1"),
        ({"batch_size": 2.5}, r"batch_size=2\.5: must be an integer"),
        ({"project_every": True}, r"project_every=True: must be an integer"),
        ({"checkpoint_every": -1}, r"checkpoint_every=-1"),
        ({"seed": "a"}, r"seed='a': must be an integer"),
        ({"eps": ()}, r"eps=\(\): must be one or more"),
        ({"eps": (0.1, 0.1)}, r"eps=\(0\.1, 0\.1\): must be one or more different"),
        ({"eps": (36 / 255, 0.1412)}, r"eps=.*0\.1412\): must be one or more different"),
        ({"eps": -1}, r"eps=-1: must be one or more different positive l2 radii"),
        ({"loss": nn.CrossEntropyLoss()}, r"eps=None: .*CrossEntropyLoss.* no radius of its own; pass eps"),
        ({"precision": "16"}, r"precision='16': unknown; choose one of 32-true, bf16-mixed, 64-true"),
        ({"accelerator": "mps"}, r"accelerator='mps': unknown; choose one of auto, cpu"),
        ({"accelerator": "tpu"}, r"accelerator='tpu': unknown; choose one of auto, cpu"),
        ({"data": "mnits"}, r"mnits"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    change: dict[str, Any], message: str, train: Train, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        train(directory=tmp_path, **change)
    assert not is_started(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there_is_a_clear_error(train: Train) -> None:
    with pytest.raises(ValueError, match=r"accelerator='cuda': cannot be used here .*use 'auto' or 'cpu'"):
        train(accelerator="cuda")


def test_models_that_do_not_fit_are_refused_before_training(train: Train, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model gives outputs of shape \(1, 4\) .* has 10 classes: build"):
        train(mlp(784, 4, widths=(16,)), directory=tmp_path)
    with pytest.raises(ValueError, match=r"no parameter that requires a gradient"):
        train(mlp(784, 10, widths=(16,)).requires_grad_(False), directory=tmp_path)
    assert not is_started(tmp_path)


def test_without_validation_images_the_last_epoch_is_kept(train: Train, digits: Splits, tmp_path: Path) -> None:
    empty = dataclasses.replace(digits, validation=digits.train.subset([]))
    record = train(data=empty, epochs=2, directory=tmp_path)
    assert record.best_epoch == 2
    assert [(epoch.clean, epoch.certified) for epoch in record.epochs] == [(None, {})] * 2
    assert load_record(tmp_path) == record


def test_empty_splits_are_refused(train: Train, digits: Splits) -> None:
    empty = digits.train.subset([])
    with pytest.raises(ValueError, match=r"data 'digits.*' has no training images"):
        train(data=dataclasses.replace(digits, train=empty))


def test_a_folder_that_cannot_be_one_is_a_clear_error(train: Train, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(atomic.WriteError, match=r"file'.*cannot be used as a run folder .*choose a folder"):
        train(directory=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_disk_that_fills_up_keeps_the_last_checkpoint(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, writes = atomic._write_new, [0]

    def full_from_the_third(path: Path, data: bytes) -> None:
        writes[0] += 1
        if writes[0] > 2:
            raise OSError(28, "No space left on device")
        original(path, data)

    monkeypatch.setattr(atomic, "_write_new", full_from_the_third)
    with pytest.raises(atomic.WriteError, match=r"last\.ckpt: cannot be written \(No space left on device\)"):
        train(directory=tmp_path)
    monkeypatch.undo()
    record = train(directory=tmp_path, resume=True)
    assert record == train()


def test_in_memory_runs_cannot_be_resumed_and_say_so(train: Train) -> None:
    import signal

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        if len(labels) > 16:  # not when it is tried
            signal.raise_signal(signal.SIGINT)
        return Hinge(0.3)(logits, labels)

    with pytest.raises(Interrupted, match=r"stopped by SIGINT .* nothing is kept, directory was None"):
        train(loss=loss, eps=0.3)


def test_settings_reach_the_optimiser(train: Train) -> None:
    record = train(optimizer=partial(torch.optim.RMSprop, lr=2e-3), schedule=schedules.constant(), epochs=1)
    assert record.settings["optimizer"]["type"].endswith("RMSprop")
    assert record.settings["optimizer"]["lr"] == 2e-3
    assert record.best.learning_rate == 2e-3


def test_data_by_name(small: Callable[..., nn.Module]) -> None:
    record = fit(small(), "digits", loss=OffsetCrossEntropy(0.3), epochs=1, batch_size=512, accelerator="cpu")
    assert record.settings["data"]["train"]["images"] == 3500


def test_mps_is_never_chosen(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Mac: Fabric would take MPS, on which bounds and certificates have no float64."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert train(accelerator="auto", epochs=1).versions["device"] == "cpu"
    with pytest.raises(ValueError, match=r"accelerator='gpu': is MPS here, which has no float64 .*use 'cpu'"):
        train(accelerator="gpu")
