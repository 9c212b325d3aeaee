"""`train_gan`: a function of its arguments, resumable at any instant, and what it leaves in its folder."""

import csv
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD

from lconvnet import gan
from lconvnet.tasks.images import latents
from lconvnet.tasks.objectives import difference
from lconvnet.training import CheckpointError, Diverged, Interrupted
from tests.gan import tiny

pytestmark = pytest.mark.slow


ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("killing.py")
RESULTS = ("record.json", "logs/metrics.csv", "generator.safetensors")


def assert_same_bits(one: Any, other: Any) -> None:
    """Equal in structure, types and every bit."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same_bits(one[key], other[key])
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    else:
        assert one == other


def assert_same_run(one: Path, other: Path) -> None:
    names = [*RESULTS, *(str(path.relative_to(one)) for path in sorted(one.glob("samples/*.png")))]
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert_same_bits(*(torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (one, other)))
    assert [path.name for path in other.rglob("*.tmp")] == []


def still(parameters: list[torch.nn.Parameter]) -> SGD:
    return SGD(parameters, lr=0.0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("case", ["penalty", "lipschitz"])
def test_killed_at_random_moments_and_in_the_middle_of_writes(case: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), "--case", case, "--by-time", "2", "--by-write", "4"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    # By time, a run on a machine that suddenly speeds up may be done before its last kill.
    assert summary["time"] >= 1
    assert summary["write"] >= 2
    for how in ("time", "write"):
        assert_same_run(tmp_path / "whole", tmp_path / how)
    epochs = json.loads((tmp_path / "whole" / "record.json").read_text())["epochs"]
    assert len({epoch["critic_loss"] for epoch in epochs}) == 3


@pytest.mark.parametrize("case", list(tiny.CASES))
def test_equal_arguments_give_equal_bytes_and_other_seeds_others(case: str, tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        torch.manual_seed(seed if name == "b" else 77)  # the global state has no part in it
        tiny.train(case, directory=tmp_path / name, seed=seed)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / RESULTS[2]).read_bytes() != (tmp_path / "c" / RESULTS[2]).read_bytes()


def test_a_folder_changes_nothing(tmp_path: Path) -> None:
    one = {"generator": tiny.generator(), "critic": tiny.plain_critic()}
    other = {"generator": tiny.generator(), "critic": tiny.plain_critic()}
    assert tiny.train(**one) == tiny.train(**other, directory=tmp_path)
    assert_same_bits(dict(one["generator"].state_dict()), dict(other["generator"].state_dict()))
    assert not one["generator"].training and not one["critic"].training


def test_training_leaves_the_global_state_alone() -> None:
    networks, images = {"generator": tiny.generator(), "critic": tiny.plain_critic()}, tiny.digits()
    state = torch.random.get_rng_state()
    gan.train_gan(**networks, images=images, objective=gan.GradientPenalty(), epochs=1, steps_per_epoch=1, batch_size=2)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_more_epochs_are_the_run_that_was_asked_for_more(tmp_path: Path) -> None:
    tiny.train(directory=tmp_path / "whole", epochs=3)
    tiny.train(directory=tmp_path / "parts", epochs=1)
    record = tiny.train(directory=tmp_path / "parts", epochs=3, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert [(epoch.epoch, epoch.step) for epoch in record.epochs] == [(1, 4), (2, 8), (3, 12)]
    with pytest.raises(CheckpointError, match=r"epochs=2, but 3 are done: ask for more"):
        tiny.train(directory=tmp_path / "parts", epochs=2, resume=True)


class Stopping(gan.WeightClipping):
    """Raises a signal at the critic's step number `when`."""

    def arm(self, number: int, when: int) -> "Stopping":
        object.__setattr__(self, "left", [number, when])
        return self

    def critic_loss(self, critic, real, generated, generator):
        self.left[1] -= 1
        if self.left[1] == 0:
            signal.raise_signal(self.left[0])
        return super().critic_loss(critic, real, generated, generator)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("when", "message"), [(1, "0 epochs and 1 steps"), (8, "1 epochs and 0 steps")])
def test_a_signal_stops_after_the_step_and_a_resume_completes(
    number: int, when: int, message: str, tmp_path: Path
) -> None:
    whole, parts, name = tmp_path / "whole", tmp_path / "parts", signal.Signals(number).name
    tiny.train(objective=Stopping().arm(number, 0), directory=whole)
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted, match=rf"stopped by {name} after {message}; continue .*parts"):
        tiny.train(objective=Stopping().arm(number, when), directory=parts)
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    tiny.train(objective=Stopping().arm(number, 0), directory=parts, resume=True)
    assert_same_run(whole, parts)


def test_an_older_checkpoint_is_only_read_where_all_is_done(tmp_path: Path) -> None:
    record, path = tiny.train(directory=tmp_path), tmp_path / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    place = {name: content["progress"][name] for name in ("epoch", "step")}
    older = {"format": "lconvnet-gan-checkpoint-1", "record": content["record"], **content["modules"]}
    older |= {f"{name}_optimizer": state for name, state in content["optimizers"].items()}
    older["progress"] = place | {"critic_loss": 0.1, "generator_loss": 0.1, "difference": 0.1}
    torch.save(older, path)  # old releases wrote no version
    assert tiny.train(directory=tmp_path, resume=True) == record
    with pytest.raises(CheckpointError, match=r"is of an unfinished run of an older release"):
        tiny.train(directory=tmp_path, resume=True, epochs=3)


def test_what_lies_in_the_folder(tmp_path: Path) -> None:
    seen: list[gan.Epoch] = []
    generator = tiny.generator()
    record = tiny.train("lipschitz", generator=generator, directory=tmp_path, on_epoch=seen.append)
    assert tuple(seen) == record.epochs and len(seen) == 2
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert files == [
        "checkpoints/.lock", "checkpoints/last.ckpt", "generator.safetensors", "logs/metrics.csv", "logs/timing.jsonl",
        "record.json", "samples/epoch-0001.png", "samples/epoch-0002.png",
    ]  # fmt: skip
    saved = json.loads((tmp_path / "record.json").read_text())
    assert gan.Record.from_dict(saved) == record
    assert saved["settings"]["objective"] == {"type": "lconvnet.gan.lipschitz.LipschitzCritic"}
    assert saved["settings"]["generator"]["latent"] == 6
    assert saved["versions"]["torch"].startswith(torch.__version__.partition("+")[0])
    rows = list(csv.DictReader((tmp_path / "logs" / "metrics.csv").read_text().splitlines()))
    assert [float(row["lipschitz"]) for row in rows] == [epoch.lipschitz for epoch in record.epochs]
    assert (tmp_path / "samples/epoch-0001.png").read_bytes() != (tmp_path / "samples/epoch-0002.png").read_bytes()
    for one, other in zip(generator.parameters(), gan.load_generator(tmp_path / RESULTS[2]).parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_record_holds_means_of_what_was_computed() -> None:
    seen: list[float] = []

    class Watched(gan.WeightClipping):
        def critic_loss(self, critic, real, generated, generator):
            seen.append(difference(critic, real, generated).item())
            return super().critic_loss(critic, real, generated, generator)

    epochs = tiny.train(objective=Watched()).epochs
    assert len(seen) == 16
    for number, epoch in enumerate(epochs):
        mean = sum(seen[8 * number : 8 * number + 8]) / 8
        assert epoch.difference == pytest.approx(mean, abs=1e-12)
        assert epoch.critic_loss == pytest.approx(-mean, abs=1e-12)
        assert epoch.lipschitz is None
    assert epochs[0].difference != epochs[1].difference


@pytest.mark.usefixtures("any_rate")
def test_every_step_sees_its_own_batches() -> None:
    """Real batch k is the stream's; no latent vectors and no shares of an interpolation come twice in two epochs."""
    images, shares = tiny.digits(), []
    real_batches: list[torch.Tensor] = []
    generated_batches: list[torch.Tensor] = []

    class Watched(gan.WeightClipping):
        def critic_loss(self, critic, real, generated, generator):
            real_batches.append(real)
            generated_batches.append(generated)
            shares.append(torch.rand(1, generator=generator).item())
            return super().critic_loss(critic, real, generated, generator)

    tiny.train(images=images, objective=Watched(), generator_optimizer=still)
    stream = gan.RealSamples(images, 5)
    assert len(real_batches) == 16
    assert all(torch.equal(real, stream.sample(8, k)) for k, real in enumerate(real_batches))
    assert len(set(shares)) == 16
    assert all(
        not torch.allclose(a, b, atol=1e-4) for k, a in enumerate(generated_batches) for b in generated_batches[:k]
    )


@pytest.mark.usefixtures("any_rate")
def test_the_generators_loss_is_minus_the_critics_mean() -> None:
    generator, critic = tiny.generator(), tiny.plain_critic()
    record = tiny.train(generator=generator, critic=critic, epochs=1,
                        steps_per_epoch=1, generator_optimizer=still, critic_optimizer=still)  # fmt: skip
    with torch.no_grad():
        fake = generator.train()(latents(generator, 8, 5, "generator-latents", 0))
        assert record.epochs[0].generator_loss == pytest.approx(-critic(fake).mean().item(), abs=1e-6)


def moving(parameters: list[torch.nn.Parameter]) -> SGD:
    return SGD(parameters, lr=0.1)


@pytest.mark.usefixtures("any_rate")
def test_generator_and_critic_pull_in_opposite_directions() -> None:
    """Against a critic that stands still the generator raises the critic's mean; the critic raises the difference."""
    images, z = tiny.digits(), torch.randn(64, 6)
    options: dict[str, Any] = {"images": images, "objective": gan.WeightClipping(10.0), "epochs": 1}
    options["steps_per_epoch"] = 10

    def judged(critic: torch.nn.Module, generator: torch.nn.Module) -> tuple[float, float]:
        """The critic's mean over generated images, by the statistics of their batch, and the difference."""
        with torch.no_grad():
            fake = generator.train()(z)
            return critic(fake).mean().item(), difference(critic, images.images[:64] / 255, fake).item()

    critic, generator = tiny.plain_critic(), tiny.generator()
    before = judged(critic, generator)
    tiny.train(**options, critic=critic, generator=generator, critic_optimizer=still, generator_optimizer=moving)
    assert judged(critic, generator)[0] > before[0]
    critic, generator = tiny.plain_critic(), tiny.generator()
    tiny.train(**options, critic=critic, generator=generator, critic_optimizer=moving, generator_optimizer=still)
    assert judged(critic, generator)[1] > before[1]


@pytest.mark.parametrize(
    ("who", "what"),
    [("critic_optimizer", "of the critic is not finite"), ("generator_optimizer", "of the generator is not finite")],
)
@pytest.mark.usefixtures("any_rate")
def test_divergence_is_named_and_leaves_the_checkpoint(who: str, what: str, tmp_path: Path) -> None:
    """Weights that overflow in the last step before a checkpoint were in no loss yet."""
    with pytest.raises(Diverged, match=rf"diverged at step \d+ .epoch \d+.: .*({what}).*; the checkpoint in"):
        tiny.train(directory=tmp_path, checkpoint_every=1, **{who: lambda p: SGD(p, lr=1e38, weight_decay=1e10)})
    content = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    for name in ("critic", "generator"):
        assert all(torch.isfinite(value).all() for value in content["modules"][name].values())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch_size": 4}, "batch_size: 8, now 4"),
        ({"critic_steps": 1}, "critic_steps: 2, now 1"),
        ({"steps_per_epoch": 3}, "steps_per_epoch: 4, now 3"),
        ({"seed": 1}, "seed: 5, now 1"),
        ({"objective": gan.GradientPenalty(3.0)}, r"objective\.weight: 10\.0, now 3\.0"),
        ({"generator": tiny.generator(latent=7)}, r"generator\.latent: 6, now 7"),
        ({"critic_optimizer": lambda p: SGD(p, lr=0.5)}, r"critic_optimizer\.type: .*Adam', now .*SGD"),
        ({"images": tiny.digits(200)}, "data.images: "),
    ],
)
def test_a_resume_with_other_settings_is_refused_by_name(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    tiny.train(directory=tmp_path, epochs=1)
    with pytest.raises(CheckpointError, match=rf"last\.ckpt: was written with other settings \(.*{named}.*another fol"):
        tiny.train(directory=tmp_path, epochs=1, resume=True, **change)


def test_a_started_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    tiny.train(directory=tmp_path, epochs=1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"holds a run already.*resume=True"):
        tiny.train(directory=tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


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
        (lambda path: path.write_bytes(pickle.dumps(Bomb())), "pickled code, which is never run"),
        (foreign(Bomb()), "pickled code, which is never run"),
        (foreign({"format": "lconvnet-checkpoint"}), "not a checkpoint of a generator"),
        (foreign({"format": "lconvnet-gan-checkpoint-1", "progress": {"epoch": -1}}), "damaged checkpoint"),
    ],
)
def test_a_damaged_or_foreign_checkpoint_is_refused_and_kept(
    damage: Callable[[Path], None], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.train(directory=tmp_path, epochs=1)
    path = tmp_path / "checkpoints" / "last.ckpt"
    damage(path)
    before = path.read_bytes()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=rf"last\.ckpt: .*{message}"):
        tiny.train(directory=tmp_path, epochs=1, resume=True)
    assert path.read_bytes() == before and not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs=0: must be an integer of at least 1"),
        ({"critic_steps": 0}, "critic_steps=0: must be an integer of at least 1"),
        ({"batch_size": 2.5}, r"batch_size=2\.5: must be an integer of at least 1"),
        ({"seed": None}, "seed=None: must be an integer"),
        ({"generator": tiny.generator(image_size=64)}, r"shape \(1, 32, 32\), the generator makes \(1, 64, 64\): load"),
        ({"images": tiny.digits().subset([])}, "images 'digits32': 0 of shape"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.train(**change)
