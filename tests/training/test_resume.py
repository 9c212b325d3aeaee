"""A run that was killed and resumed is, bit for bit, the run that was not; damaged files are refused."""

import contextlib
import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

import lconvnet
from lconvnet.losses import Hinge
from lconvnet.training import (
    CheckpointError,
    Epoch,
    Interrupted,
    Record,
    load_best,
    load_record,
    processes,
    schedules,
)
from lconvnet.training.engine import Engine

SCRIPT = Path(__file__).with_name("killing.py")
SOURCE = str(Path(lconvnet.__file__).parents[1])
Train = Callable[..., Record]
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]


def run_killing(folder: Path, *arguments: str, **environment: str) -> dict[str, Any]:
    path = os.pathsep.join([SOURCE, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), *arguments],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_same_bits(one: Any, other: Any, name: str = "") -> None:
    """Equal in structure, types and every bit."""
    assert type(one) is type(other), name
    if isinstance(one, dict):
        assert list(one) == list(other), name
        for key in one:
            assert_same_bits(one[key], other[key], f"{name}.{key}")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, name
        assert torch.equal(one, other), name
    else:
        assert one == other, name


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("record.json", "logs/metrics.csv", "checkpoints/best.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    states = [torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (one, other)]
    assert_same_bits(*states)
    leftover = [path.name for path in other.rglob("*.tmp")]
    assert leftover == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments_and_in_the_middle_of_writes(tmp_path: Path) -> None:
    summary = run_killing(tmp_path, "--by-time", "3", "--by-write", "7")
    # By time, a run on a machine that suddenly speeds up may be done before its last kill.
    assert summary["time"] >= 2
    assert summary["write"] >= 3
    for how in ("time", "write"):
        assert_same_run(tmp_path / "whole", tmp_path / how)
    record = load_record(tmp_path / "whole")
    assert record.finished
    assert len({epoch.loss for epoch in record.epochs}) == 3


@pytest.mark.slow
def test_ten_kills_on_mnist(data_dir: Path, tmp_path: Path) -> None:
    summary = run_killing(tmp_path, "--by-time", "10", "--data", "mnist", LCONVNET_DATA=str(data_dir))
    assert summary["time"] == 10
    assert_same_run(tmp_path / "whole", tmp_path / "time")


def stop_after(number: int, when: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A loss that sends this process the signal `number` at call `when`."""
    calls = [0]

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        calls[0] += len(labels) > 16  # so many images at most are how a loss is tried before the first step
        if calls[0] == when and len(labels) > 16:
            signal.raise_signal(number)
        return Hinge(0.3)(logits, labels)

    loss.__qualname__ = "loss"
    return loss


def stop_at(monkeypatch: pytest.MonkeyPatch, update: int) -> None:
    """Send this process SIGTERM in the middle of an update, the first being number 0."""
    calls, made = itertools.count(), Engine.update

    def stopping(self: Engine, *arguments: Any, **measures: float) -> Any:
        if next(calls) == update:
            signal.raise_signal(signal.SIGTERM)
        return made(self, *arguments, **measures)

    monkeypatch.setattr(Engine, "update", stopping)


@pytest.mark.parametrize(
    ("number", "when"),
    [
        pytest.param(number, when, marks=[pytest.mark.slow] * (number != SIGNALS[0] and when != 11))
        for number in SIGNALS
        for when in (1, 8, 11)
    ],
)
def test_a_signal_stops_after_the_step_and_a_resume_completes(
    number: int, when: int, train: Train, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(loss=stop_after(number, 0), eps=0.3, directory=whole)
    handlers = [signal.getsignal(one) for one in SIGNALS]
    epochs, steps = divmod(when, 8)
    name = signal.Signals(number).name
    message = (
        rf"stopped by {name} after {epochs} epochs and {steps} steps; continue .*parts with resume=True, .* --resume"
    )
    with pytest.raises(Interrupted, match=message):
        train(loss=stop_after(number, when), eps=0.3, directory=parts)
    assert [signal.getsignal(one) for one in SIGNALS] == handlers
    train(loss=stop_after(number, 0), eps=0.3, directory=parts, resume=True)
    assert_same_run(whole, parts)


def raise_outside(number: int, frame: Any) -> None:
    raise AssertionError(f"{signal.Signals(number).name} acted as it does outside of the training")


@pytest.mark.parametrize("again", [signal.SIGTERM, signal.SIGUSR1])
def test_notices_that_come_again_do_not_disturb_the_saving(
    again: int, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(loss=stop_after(again, 0), eps=0.3, directory=whole)
    sync, stop, came = os.fsync, stop_after(signal.SIGUSR1, 4), []

    def sync_and_signal(descriptor: int) -> None:
        came.append(signal.raise_signal(again))
        sync(descriptor)

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if len(labels) > 16:
            monkeypatch.setattr(os, "fsync", sync_and_signal)
        return stop(logits, labels)

    loss.__qualname__ = stop.__qualname__
    outside = signal.signal(again, raise_outside)  # as the command has one
    try:
        with pytest.raises(Interrupted, match="stopped by SIGUSR1 after 0 epochs and 4 steps"):
            train(loss=loss, eps=0.3, directory=parts, checkpoint_every=100)
    finally:
        signal.signal(again, outside)
    assert len(came) >= 2
    monkeypatch.undo()
    train(loss=stop_after(again, 0), eps=0.3, directory=parts, resume=True)
    assert_same_run(whole, parts)


@pytest.mark.parametrize(("same", "expected"), [(-1.0, KeyboardInterrupt), (60.0, Interrupted)])
def test_a_second_ctrl_c_interrupts_at_once_unless_it_is_the_same(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: float, expected: type[BaseException]
) -> None:
    monkeypatch.setattr(processes, "SAME_WISH", same)

    def impatient(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if len(labels) <= 16:  # it is being tried
            return Hinge(0.3)(logits, labels)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return Hinge(0.3)(logits, labels)

    outside = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process of pytest-xdist ignores it
    try:
        with pytest.raises(expected):
            train(loss=impatient, eps=0.3, directory=tmp_path)
    finally:
        signal.signal(signal.SIGINT, outside)


def test_resume_of_a_finished_run_returns_its_record_without_training(train: Train, tmp_path: Path, model: Any) -> None:
    record = train(directory=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    called: list[Epoch] = []
    assert train(model, directory=tmp_path, resume=True, on_epoch=called.append) == record
    assert called == []
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    assert load_best(model, tmp_path) == record.best_epoch
    assert_same_bits(weights, dict(model.state_dict()))


def test_resume_in_an_empty_folder_starts(train: Train, tmp_path: Path) -> None:
    assert train(directory=tmp_path / "a", resume=True) == train(directory=tmp_path / "b")


def test_a_started_folder_is_refused_and_left_alone(train: Train, tmp_path: Path) -> None:
    (tmp_path / "cfg.yaml").write_text("a: 1\n")  # a configuration alone is no run
    train(directory=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(
        ValueError, match=r"holds a run already.*resume=True \(on .* --resume\) or choose another folder"
    ):
        train(directory=tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch_size": 32}, r"batch_size: 64, now 32"),
        ({"epochs": 5, "seed": 1}, r"epochs: 2, now 5; seed: 0, now 1"),
        ({"seed": 1}, r"seed: 0, now 1"),
        ({"loss": Hinge(0.3)}, r"loss\.type: .*OffsetCrossEntropy', now .*Hinge"),
        ({"optimizer": lambda parameters: SGD(parameters, lr=0.5)}, r"optimizer\.type: .*Adam', now .*SGD"),
        ({"schedule": schedules.exponential(0.5)}, r"schedule\.gamma: 0\.96235, now 0\.5"),
        ({"eps": (0.3, 0.6)}, r"eps: \[0\.3\], now \[0\.3, 0\.6\]"),
        ({"settings": {"trial": 2}}, r"settings\.trial: None, now 2"),
        ({"precision": "64-true"}, r"precision: '32-true', now '64-true'"),
    ],
)
def test_a_resume_with_other_settings_is_refused_by_name(
    change: dict[str, Any], named: str, train: Train, tmp_path: Path
) -> None:
    train(directory=tmp_path)
    with pytest.raises(
        CheckpointError, match=rf"last\.ckpt: was written with other settings \(.*{named}.*another folder"
    ):
        train(directory=tmp_path, resume=True, **change)


@pytest.mark.parametrize("stop", [0, 5, 11])
@pytest.mark.parametrize("schedule", [schedules.exponential(0.5), schedules.constant()])
def test_more_epochs_are_the_run_that_was_asked_for_more(
    schedule: schedules.Schedule, stop: int, train: Train, tmp_path: Path
) -> None:
    """From its end, and from the middle of an epoch."""
    options = {"eps": 0.3, "schedule": schedule, "ema": 0.9}
    train(loss=stop_after(0, 0), epochs=4, directory=tmp_path / "whole", **options)
    with contextlib.suppress(Interrupted):
        train(loss=stop_after(signal.SIGTERM, stop), epochs=2, directory=tmp_path / "parts", **options)
    train(loss=stop_after(0, 0), epochs=4, directory=tmp_path / "parts", resume=True, **options)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    with pytest.raises(CheckpointError, match=r"epochs=3, but 4 are done: ask for more"):
        train(loss=stop_after(0, 0), epochs=3, directory=tmp_path / "parts", resume=True, **options)


def test_more_epochs_at_other_learning_rates_are_refused(train: Train, tmp_path: Path) -> None:
    train(directory=tmp_path, schedule=schedules.one_cycle())
    with pytest.raises(
        CheckpointError, match=r"epochs: 2, now 5\); the learning rates of a run are made for its length"
    ):
        train(directory=tmp_path, schedule=schedules.one_cycle(), epochs=5, resume=True)


def test_checkpoints_may_be_more_or_less_frequent_on_resume(train: Train, tmp_path: Path) -> None:
    record = train(directory=tmp_path)
    assert train(directory=tmp_path, resume=True, checkpoint_every=1) == record


class Bomb:
    """What a hostile checkpoint would hold."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch exploded",)


def foreign(content: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: path.write_text("epochs: 3\n"), "damaged"),
        (lambda path: path.write_bytes(pickle.dumps(Bomb())), "pickled code, which is never run"),
        (foreign(Bomb()), "pickled code, which is never run"),
        (foreign({"state_dict": {}}), "not a checkpoint of a classifier"),
        (foreign([1, 2]), "not a checkpoint of a classifier"),
        (foreign({"format": "lconvnet-checkpoint", "version": 99}), "version 99, this package reads 3"),
        (foreign({"format": "lconvnet-checkpoint", "version": 1}), "damaged checkpoint"),
    ],
)
def test_a_damaged_or_foreign_checkpoint_is_refused_and_kept(
    damage: Callable[[Path], None],
    message: str,
    train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train(directory=tmp_path)
    path = tmp_path / "checkpoints" / "last.ckpt"
    damage(path)
    before = path.read_bytes()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=rf"last\.ckpt: .*{message}"):
        train(directory=tmp_path, resume=True)
    assert path.read_bytes() == before
    assert not (tmp_path / "exploded").exists()


def make_older(path: Path) -> bytes:
    """The checkpoint of a release in which equal settings meant other rates, as version 1 of it."""
    content = torch.load(path, weights_only=True)
    place = {name: content["progress"][name] for name in ("epoch", "step")}
    older = {"version": 1, "format": "lconvnet-checkpoint", "record": content["record"]}
    older |= {"progress": place | {"loss_sum": 1.0, "correct": 2, "seen": 3}, "model": content["modules"]["model"]}
    older |= {name: content[f"{name}s"]["model"] for name in ("optimizer", "scheduler")}
    torch.save(older, path)
    return path.read_bytes()


def test_an_older_run_is_not_finished_at_other_learning_rates(train: Train, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(loss=stop_after(signal.SIGTERM, 8), eps=0.3, directory=tmp_path)
    path = tmp_path / "checkpoints" / "last.ckpt"
    older = make_older(path)
    with pytest.raises(CheckpointError, match=r"last\.ckpt: is of an unfinished run of an older release, .*finish it"):
        train(loss=stop_after(0, 0), eps=0.3, directory=tmp_path, resume=True)
    assert path.read_bytes() == older
    finished = train(directory=tmp_path / "finished")
    make_older(tmp_path / "finished" / "checkpoints" / "last.ckpt")
    assert train(directory=tmp_path / "finished", resume=True) == finished


FACTS = [({"data": {"test": 0.2}}, {"data": {"test": 0.3}}), ({"from": {"file": "a"}}, {"from": {"file": "b"}})]


@pytest.mark.parametrize(("before", "now"), FACTS)
def test_facts_of_the_user_are_compared_whatever_they_are_called(
    before: dict[str, Any], now: dict[str, Any], train: Train, tmp_path: Path
) -> None:
    train(directory=tmp_path, settings=before, epochs=1)
    with pytest.raises(CheckpointError, match=r"was written with other settings \(settings\."):
        train(directory=tmp_path, settings=now, epochs=1, resume=True)


def test_results_without_their_checkpoint_are_not_overwritten(train: Train, tmp_path: Path) -> None:
    train(directory=tmp_path)
    (tmp_path / "checkpoints" / "last.ckpt").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="holds a run already"):
        train(directory=tmp_path, resume=True)


def cliff(optimizer: Optimizer, epochs: int, steps: int) -> LRScheduler:
    """A learning rate that makes the third epoch bad."""
    return LambdaLR(optimizer, lambda step: 1.0 if step < 2 * steps else 1000.0)


def test_exchanged_or_damaged_best_weights_are_refused(train: Train, tmp_path: Path, model: Any) -> None:
    with pytest.raises(CheckpointError, match=r"best\.safetensors: no readable weights"):
        load_best(model, tmp_path)
    train(directory=tmp_path / "a", epochs=1)
    options = {
        "directory": tmp_path / "b",
        "epochs": 3,
        "schedule": cliff,
        "optimizer": partial(SGD, lr=0.05),
    }
    assert train(**options).best_epoch == 2
    best = [tmp_path / name / "checkpoints" / "best.safetensors" for name in "ab"]
    best[1].write_bytes(best[0].read_bytes())
    with pytest.raises(CheckpointError, match=r"holds epoch 1, the record names 2 as the best"):
        train(**options, resume=True)
    best[1].write_bytes(best[0].read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"best\.safetensors: no readable weights"):
        train(**options, resume=True)


def test_weights_of_another_architecture_are_refused(train: Train, tmp_path: Path) -> None:
    train(directory=tmp_path)
    with pytest.raises(CheckpointError, match=r"weights of another architecture .*build the model as it was trained"):
        load_best(torch.nn.Sequential(torch.nn.Linear(3, 3)), tmp_path)


def test_one_folder_trains_one_run_at_a_time(train: Train, tmp_path: Path) -> None:
    def second(epoch: Epoch) -> None:
        train(directory=tmp_path, resume=True)

    with pytest.raises(ValueError, match="another process is training in this folder"):
        train(directory=tmp_path, on_epoch=second)


def test_a_missing_or_damaged_record_is_a_clear_error(tmp_path: Path) -> None:
    for text in ("", "[]", "{}", '{"format": 2, "epochs": [], "best_epoch": 0}'):
        with pytest.raises(CheckpointError, match=r"record\.json: not a readable training record"):
            load_record(tmp_path)
        (tmp_path / "record.json").write_text(text)
