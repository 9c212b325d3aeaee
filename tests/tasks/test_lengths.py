"""What a reviewer broke: lengths of runs, checkpoints damaged inside, averages of projected kernels, low precision."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lconvnet import bake, lipschitz_bound
from lconvnet.gan import LipschitzCritic, WeightClipping
from lconvnet.kernels import SVCM
from lconvnet.layers import LipschitzConv2d
from lconvnet.training import CheckpointError, Interrupted, fit, schedules
from lconvnet.training.engine import Averages
from lconvnet.wasserstein import estimate
from tests.gan import tiny
from tests.tasks.test_updates import DIGITS, FAKE, REAL, classify, mlp
from tests.training.test_resume import stop_at


def digits(epochs: int, **options: Any) -> Any:
    torch.manual_seed(0)
    model = mlp(784, 10, widths=(8,))
    return fit(model, DIGITS, loss=nn.CrossEntropyLoss(), epochs=epochs, batch_size=64, eps=0.3, accelerator="cpu",
               tensorboard=False, schedule=schedules.Constant(), **options)  # fmt: skip


def distance(steps: int, **options: Any) -> Any:
    torch.manual_seed(3)
    found: dict[str, Any] = {"critic": mlp(2, 1, (4,)), "schedule": schedules.Constant()} | options
    return estimate(REAL, FAKE, steps=steps, batch_size=16, progress=False, **found)


def test_a_run_that_is_asked_for_what_it_has_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, update=2 * math.ceil(len(DIGITS.train) / 64) - 1)
        with pytest.raises(Interrupted, match="after 2 epochs"):
            digits(4, directory=tmp_path / "parts")
    record = digits(2, directory=tmp_path / "parts", resume=True)
    assert record.finished and record.to_dict() == digits(2, directory=tmp_path / "whole").to_dict()


@pytest.mark.parametrize("steps", [3, 5])
def test_a_critic_stopped_within_an_epoch_is_to_go_on(
    steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, update=4)
        with pytest.raises(Interrupted):
            distance(12, directory=tmp_path)
    with pytest.raises(CheckpointError, match=rf"steps={steps}, but 5 are done, in mid-epoch: ask for more"):
        distance(steps, directory=tmp_path, resume=True)
    assert len(distance(14, directory=tmp_path, resume=True).history) == 14


@pytest.mark.parametrize("broken", [{}, {"model": 3}, {"model": {}}, {"other": {}}])
def test_networks_damaged_in_a_checkpoint_are_named(broken: Any, tmp_path: Path) -> None:
    classify(directory=tmp_path)
    path = tmp_path / "checkpoints" / "last.ckpt"
    torch.save(torch.load(path, weights_only=True) | {"modules": broken}, path)
    with pytest.raises(CheckpointError, match=r"last\.ckpt: "):
        classify(directory=tmp_path, resume=True)


def test_averages_of_another_shape_are_refused() -> None:
    averages = Averages({"layer": nn.Linear(2, 2)}, 0.9)
    with pytest.raises(ValueError, match="other parameters"):
        averages.load({name: value[:1] for name, value in averages.values.items()})


def test_averages_of_projected_kernels_are_projected() -> None:
    torch.manual_seed(0)
    layer = LipschitzConv2d(4, 4, 3, kernel=SVCM, input_size=(8, 8))
    averages = Averages({"layer": layer}, 0.5)
    averages.values = {name: 3 * value for name, value in averages.values.items()}
    with averages.applied():
        assert lipschitz_bound(bake(nn.Sequential(layer)), input_shape=(4, 8, 8)).upper < 1.2


@pytest.mark.parametrize("objective", [LipschitzCritic(), WeightClipping()])
def test_the_means_of_a_critic_are_taken_in_float32(objective: Any) -> None:
    critic, images = tiny.plain_critic(), torch.rand(4, *tiny.SHAPE)
    with torch.autocast("cpu", torch.bfloat16):
        loss, difference = objective.critic_loss(critic, images, 1 - images, torch.Generator())
    assert loss.dtype == difference.dtype == torch.float32


def test_options_may_be_tensors(tmp_path: Path) -> None:
    classify(directory=tmp_path, clip_gradient=torch.tensor(0.5), ema=torch.tensor(0.5))
    settings = json.loads((tmp_path / "record.json").read_text())["settings"]
    assert (settings["clip_gradient"], settings["ema"]) == (0.5, 0.5)


def test_half_written_records_are_swept(tmp_path: Path) -> None:
    distance(4, directory=tmp_path)
    torn = tmp_path / ".record.json.0123456789abcdef.tmp"
    torn.write_text("{")
    distance(4, directory=tmp_path, resume=True)
    assert not torn.exists()
