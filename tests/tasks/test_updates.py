"""What every task may be given: clipped gradients, averaged weights, precision and processes; resumed bit for bit."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

import lconvnet
from lconvnet.data import load
from lconvnet.experiments.config import settings
from lconvnet.experiments.loading import dump, load_any, parse_any
from lconvnet.losses import OffsetCrossEntropy
from lconvnet.models import mlp
from lconvnet.tasks import classification
from lconvnet.training import CheckpointError, Interrupted, fit, loop
from lconvnet.wasserstein import estimate
from tests.gan import tiny
from tests.training.test_resume import assert_same_bits, stop_at

ROOT = Path(__file__).parents[2]
REAL = torch.rand(60, 2, generator=torch.Generator().manual_seed(0)) + 1.0
FAKE = torch.rand(50, 2, generator=torch.Generator().manual_seed(1))
DIGITS = load("digits", limit=300)
Make = Callable[[list[nn.Parameter]], SGD]


def descend(parameters: list[nn.Parameter]) -> SGD:
    return SGD(parameters, lr=0.1)


def classify(optimizer: Make = descend, **options: Any) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    model = mlp(784, 10, widths=(8,))
    fit(model, DIGITS, loss=OffsetCrossEntropy(0.3), epochs=1, batch_size=64, accelerator="cpu", tensorboard=False,
        optimizer=optimizer, **options)  # fmt: skip
    return {"model": model}


def distinguish(optimizer: Make = descend, **options: Any) -> dict[str, nn.Module]:
    torch.manual_seed(3)
    critic = mlp(2, 1, (4,))
    estimate(REAL, FAKE, critic=critic, steps=12, batch_size=16, optimizer=optimizer, progress=False, **options)
    return {"critic": critic}


def generate(optimizer: Make = descend, **options: Any) -> dict[str, nn.Module]:
    networks: dict[str, Any] = {"generator": tiny.generator(), "critic": tiny.plain_critic()}
    tiny.train("clipping", epochs=1, generator_optimizer=optimizer, critic_optimizer=optimizer, **networks, **options)
    return networks


TASKS = [classify, distinguish, generate]
each_task = pytest.mark.parametrize("train", TASKS)


def watched(seen: list[Tensor]) -> Make:
    """Gradient descent that writes down the norm of every gradient."""

    class Watched(SGD):
        def step(self, *arguments: Any) -> Any:
            gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
            seen.append(torch.cat(gradients).norm())
            return super().step(*arguments)

    return lambda parameters: Watched(parameters, lr=0.1)


@each_task
def test_the_gradient_has_the_norm_that_it_is_clipped_to(train: Callable[..., Any]) -> None:
    free, clipped = list[Tensor](), list[Tensor]()
    train(watched(free))
    limit = 0.5 * float(min(free))
    train(watched(clipped), clip_gradient=limit)
    assert max(clipped) <= limit * (1 + 1e-6)
    assert float(clipped[0]) == pytest.approx(limit, rel=1e-3)  # torch adds 1e-6 to a norm before it divides
    generous = list[Tensor]()
    train(watched(generous), clip_gradient=10 * float(max(free)))
    assert generous == free


@each_task
def test_averages_are_those_of_the_recurrence(train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    decay, rows = 0.75, list[dict[str, Tensor]]()

    def weights(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
        parameters = ((f"{owner}.{name}", p) for owner, one in modules.items() for name, p in one.named_parameters())
        return {name: parameter.detach().double().clone() for name, parameter in parameters}

    begin = loop._begin

    def begun(run: Any, fresh: Any) -> None:
        begin(run, fresh)
        rows.append(weights(run.task.modules))
        step = run.task.step

        def stepped(*arguments: Any) -> Any:
            found = step(*arguments)
            rows.append(weights(run.task.modules))
            return found

        run.task.step = stepped

    monkeypatch.setattr(loop, "_begin", begun)
    found = weights(train(ema=decay))
    expected = rows[0]
    for row in rows[1:]:
        expected = {name: decay * value + (1 - decay) * row[name] for name, value in expected.items()}
    assert len(rows) > 4
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-5, atol=1e-6), name  # of float32
    assert not all(torch.allclose(found[name], rows[-1][name], rtol=1e-3) for name in expected)


@pytest.mark.parametrize("stop", [3, 7])
@each_task
def test_a_resume_goes_on_bit_for_bit(
    train: Callable[..., Any], stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"clip_gradient": 0.05, "ema": 0.9, "precision": "bf16-mixed", "checkpoint_every": 2}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = train(directory=whole, **options)
    with monkeypatch.context() as patch:
        stop_at(patch, update=min(stop, 3) if train is classify else stop)
        with pytest.raises(Interrupted):
            train(directory=parts, **options)
    found = train(directory=parts, resume=True, **options)
    for owner, module in expected.items():
        assert_same_bits(dict(module.state_dict()), dict(found[owner].state_dict()), owner)
    assert (whole / "record.json").read_bytes() == (parts / "record.json").read_bytes()
    paths = (folder / "checkpoints" / "last.ckpt" for folder in (whole, parts))
    assert_same_bits(*(torch.load(path, weights_only=True) for path in paths))
    stated = json.loads((whole / "record.json").read_text())["settings"]
    assert {name: stated[name] for name in ("clip_gradient", "ema", "precision")} == {
        "clip_gradient": 0.05,
        "ema": 0.9,
        "precision": "bf16-mixed",
    }
    for other in ({"clip_gradient": 0.06}, {"ema": None}, {"precision": "32-true"}):
        with pytest.raises(CheckpointError, match=next(iter(other))):
            train(directory=parts, resume=True, **(options | other))


@each_task
def test_precision_and_averages_change_what_is_computed_and_nothing_else_does(train: Callable[..., Any]) -> None:
    def bits(**options: Any) -> list[Tensor]:
        return [value for module in train(**options).values() for value in module.state_dict().values()]

    def same(one: list[Tensor], other: list[Tensor]) -> bool:
        return all(torch.equal(a, b.to(a.dtype)) for a, b in zip(one, other, strict=True))

    plain = bits()
    assert same(plain, bits()) and not same(plain, bits(ema=0.9)) and not same(plain, bits(precision="bf16-mixed"))
    double = bits(precision="64-true")
    assert {value.dtype for value in double if value.is_floating_point()} == {torch.float64}


@each_task
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_gradient": 0.0}, r"clip_gradient=0\.0: must be a positive norm"),
        ({"clip_gradient": math.inf}, r"clip_gradient=inf: must be a positive norm"),
        ({"clip_gradient": "1"}, r"clip_gradient='1': must be a positive norm"),
        ({"ema": 1.0}, r"ema=1\.0: must be a decay strictly between 0 and 1"),
        ({"ema": 0}, r"ema=0: must be a decay strictly between 0 and 1"),
        ({"precision": "16"}, r"precision='16': unknown"),
        ({"devices": 0}, r"devices=0: must be an integer of at least 1"),
    ],
)
def test_what_cannot_be_is_refused(
    train: Callable[..., Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        train(directory=tmp_path, **options)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_averages_are_what_is_validated_and_kept(tmp_path: Path) -> None:
    seen: list[Tensor] = []
    validate = classification.validate

    def heard(model: nn.Module, *arguments: Any) -> Any:
        seen.append(next(model.parameters()).detach().clone())
        return validate(model, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classification, "validate", heard)
        model = classify(ema=0.5, directory=tmp_path)["model"]
    assert torch.equal(seen[-1], next(model.parameters()))
    content = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    name = next(name for name, _ in model.named_parameters())
    assert torch.equal(content["averages"][f"model.{name}"], seen[-1])
    assert not torch.equal(content["modules"]["model"][name], seen[-1])


def test_two_processes_train_every_task_as_one_does() -> None:
    def run(devices: int) -> dict[str, Any]:
        path = os.pathsep.join([str(Path(lconvnet.__file__).parents[1]), str(ROOT)])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.tasks.together", str(devices)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    one, two = run(1), run(2)
    for task in one:
        for single, joint in zip(flat(one[task]), flat(two[task]), strict=True):
            assert joint == pytest.approx(single, rel=1e-9, abs=1e-10), task  # float64, added up in another order


def flat(values: Any) -> Iterator[float]:
    if isinstance(values, dict | list):
        for value in values.values() if isinstance(values, dict) else values:
            yield from flat(value)
    elif values is not None:
        yield values


EXPERIMENTS: dict[str, dict[str, Any]] = {
    "classification": {"model": {"architecture": "mlp"}},
    "wasserstein": {"task": "wasserstein", "data": {"name": "mnist"}, "generated": "images"},
    "gan": {"task": "gan", "data": {"name": "mnist"}},
}


@pytest.mark.parametrize("task", list(EXPERIMENTS))
def test_configurations_state_them_and_do_not_if_they_are_left_out(task: str, tmp_path: Path) -> None:
    plain = parse_any(EXPERIMENTS[task])
    assert plain.task == task
    given = {"clip_gradient": 0.5, "ema": 0.999}
    changed = parse_any(EXPERIMENTS[task] | {"training": given})
    assert "clip_gradient" not in dump(plain) and "ema" not in dump(plain)
    assert {key: settings(changed)["training"][key] for key in given} == given
    (tmp_path / "cfg.yaml").write_text(dump(changed))
    assert load_any(tmp_path / "cfg.yaml") == changed
    for key, wrong in (("clip_gradient", 0), ("ema", 1.0), ("precision", "16"), ("devices", 0)):
        with pytest.raises(ValueError, match=rf"training\.{key} is "):
            parse_any(EXPERIMENTS[task] | {"training": {key: wrong}})
