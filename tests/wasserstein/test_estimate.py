"""The estimate as a whole: symmetry, identity, what it leaves behind, and what stops it."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lconvnet as lc
from lconvnet.layers import NearestUpsampling, OrthogonalLinear, OSSNConv2d
from lconvnet.models import mlp
from lconvnet.tasks.estimates import POINTS, Mean, central_interval, rounding, thinned
from lconvnet.training import CheckpointError, Diverged, Interrupted
from lconvnet.wasserstein import certified_values, estimate, transport
from tests.training.test_resume import assert_same_bits
from tests.wasserstein import forms

pytestmark = pytest.mark.slow


ROOT = Path(__file__).parents[2]
REAL = torch.rand(60, 2, generator=torch.Generator().manual_seed(0)) + 1.0
FAKE = torch.rand(50, 2, generator=torch.Generator().manual_seed(1))
quick = partial(estimate, steps=12, batch_size=16, progress=False)


def small() -> nn.Module:
    torch.manual_seed(3)
    return mlp(2, 1, (4,))


@pytest.mark.parametrize("sampled", [False, True])
def test_swapping_changes_the_sign_of_the_critic_and_nothing_else(sampled):
    sides = (forms.translation(2).real, forms.translation(2).fake) if sampled else (REAL, FAKE)
    one, other = quick(*sides), quick(*reversed(sides))
    for name in ("lower_bound", "interval", "training", "lipschitz", "history"):
        assert getattr(one, name) == getattr(other, name), name
    points = torch.rand(9, 2)
    assert torch.equal(one.critic(points), -other.critic(points))
    assert one.critic(REAL[:5]).mean() > one.critic(FAKE[:5]).mean()
    assert one.held_out == tuple(reversed(other.held_out))


def test_identical_samples_have_distance_0():
    found = quick(REAL, REAL.clone(), held_out=30)
    assert found.lower_bound == 0 == found.interval[0] < found.interval[1] < 0.6  # 30 held-out samples


def test_identical_distributions_have_distance_0_within_the_interval():
    draws = [torch.randn(400, 2, generator=torch.Generator().manual_seed(seed)) for seed in range(12)]
    found = [quick(*pair, critic=small(), steps=40) for pair in zip(draws[::2], draws[1::2], strict=True)]
    assert all(0 <= each.interval[0] <= each.lower_bound <= each.interval[1] for each in found)
    assert sum(each.interval[0] == 0 for each in found) >= 5  # 97.5 % each: fewer has a probability of 1 %


def test_upsampling_in_the_critic_does_not_change_units():
    """Nearest upsampling doubles distances; its constant is part of the bound."""
    real = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0)) + 1
    fake = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    critic = nn.Sequential(NearestUpsampling(2), nn.Flatten(), OrthogonalLinear(64, 1))
    found = quick(real, fake, critic=critic, steps=200)
    assert found.lipschitz == pytest.approx(2.0, rel=1e-5)
    means = [certified_values(found.critic, found.bound, side).mean() for side in (real, fake)]
    assert 0.9 * transport(real, fake) < float(means[0] - means[1]) <= transport(real, fake)


def test_seed_and_content_decide_everything():
    one, again, other = quick(REAL, FAKE), quick(REAL.clone(), FAKE.numpy()), quick(REAL, FAKE, seed=1)
    assert one.to_dict() == again.to_dict()
    assert one.lower_bound != other.lower_bound


def test_global_random_state_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    quick(REAL, FAKE)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("unit", "origin"), [(1e-3, 0.0), (1e3, 0.0), (1.0, 1e3)])
def test_the_default_critic_does_not_depend_on_unit_and_origin(unit, origin):
    found = quick(unit * REAL + origin, unit * FAKE + origin, steps=80)
    assert 0.9 * math.sqrt(2) * unit < found.lower_bound < 1.2 * math.sqrt(2) * unit  # ten and twelve are held out


def test_lower_bound_is_divided_by_the_bound():
    """OSSN aims at 1 on the torus only; whatever its norm is, the estimate is divided by the bound of it."""
    critic = nn.Sequential(OSSNConv2d(1, 2, 2, input_size=(4, 4)), nn.Flatten(), nn.Linear(32, 1), lc.layers.Scale(50))
    real, fake = (torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(k)) + 1 - k for k in (0, 1))
    found = quick(real, fake, critic=critic)
    assert found.lipschitz > 10
    assert found.interval[0] < transport(real, fake)
    with torch.no_grad():
        means = [found.critic.double()(side.double()).mean() for side in found.samples]
    raw = float(means[0] - means[1])
    assert raw > transport(*found.samples), "without the division this would be no lower bound"
    assert found.lower_bound == pytest.approx(raw / found.lipschitz, rel=1e-12)
    assert lc.lipschitz_bound(found.critic, input_shape=(1, 4, 4)).upper == pytest.approx(found.lipschitz, rel=1e-6)


def test_images_take_the_papers_critic():
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    assert "conv4" in dict(lc.wasserstein.default_critic(images.float(), 0).named_children())


def test_what_is_heard_and_recorded():
    heard = []
    found = quick(REAL, FAKE, on_step=lambda done, value: heard.append((done, value)))
    assert tuple(heard) == found.history
    assert found.training == pytest.approx(heard[-1][1] / found.lipschitz, rel=1e-12)
    assert json.loads(json.dumps(found.to_dict()))["units"] == "l2 over 2 values as given"


def test_history_is_short():
    history = thinned([float(value) for value in range(1003)])
    assert len(history) <= POINTS
    assert history[-1][0] == 1003
    assert sum(mean for _, mean in history[:5]) / 5 == pytest.approx(sum(range(30)) / 30)


def test_folder_is_resumed_and_never_overwritten(tmp_path):
    whole = quick(REAL, FAKE, directory=tmp_path)
    assert json.loads((tmp_path / "record.json").read_text())["lower_bound"] == whole.lower_bound
    with pytest.raises(ValueError, match="holds a run already"):
        quick(REAL, FAKE, directory=tmp_path)
    assert quick(REAL, FAKE, directory=tmp_path, resume=True).to_dict() == whole.to_dict()
    with pytest.raises(CheckpointError, match="other settings .*data.low"):
        quick(REAL, FAKE + 0.5, directory=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="other settings .*steps: 12, now 13"):
        quick(REAL, FAKE, steps=13, directory=tmp_path, resume=True)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04N."])
def test_damaged_checkpoints(tmp_path, content):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match="last.ckpt"):
        quick(REAL, FAKE, directory=tmp_path, resume=True)


def test_interrupted_and_resumed(tmp_path):
    def interrupt(done, value):
        if done == 5:
            signal.raise_signal(signal.SIGTERM)

    whole = quick(REAL, FAKE, critic=small())
    with pytest.raises(Interrupted, match=r"SIGTERM after 0 epochs and 5 steps; continue .* --resume"):
        quick(REAL, FAKE, critic=small(), directory=tmp_path, on_step=interrupt)
    assert quick(REAL, FAKE, critic=small(), directory=tmp_path, resume=True).to_dict() == whole.to_dict()


def test_an_older_training_is_not_gone_on_with(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    whole = quick(REAL, FAKE, critic=small(), directory=tmp_path)
    content = torch.load(path, weights_only=True)
    values = torch.tensor(
        [value for epoch in json.loads(content["record"])["epochs"] for value in epoch["differences"]]
    )
    states = {"critic": content["modules"]["critic"]}
    states |= {name: content[f"{name}s"]["critic"] for name in ("optimizer", "scheduler")}
    older = {"format": "lconvnet-critic-1", "settings": json.loads(content["record"])["settings"], **states}
    torch.save(older | {"values": values.double()}, path)  # old releases wrote no version
    assert quick(REAL, FAKE, critic=small(), directory=tmp_path, resume=True).to_dict() == whole.to_dict()
    torch.save(older | {"values": values[:5]}, path)
    with pytest.raises(CheckpointError, match=r"is of an unfinished run of an older release"):
        quick(REAL, FAKE, critic=small(), directory=tmp_path, resume=True)


def test_killed_and_resumed_is_bit_identical(tmp_path):
    path = os.pathsep.join([str(Path(lc.__file__).parents[1]), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.wasserstein.killing", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    killed = json.loads(done.stdout)
    assert killed["time"] + killed["write"] >= 2
    for name in ("time", "write"):
        assert (tmp_path / name / "record.json").read_bytes() == (tmp_path / "whole" / "record.json").read_bytes(), name
        paths = (tmp_path / run / "checkpoints" / "last.ckpt" for run in (name, "whole"))
        assert_same_bits(*(torch.load(path, weights_only=True) for path in paths))
        assert not list((tmp_path / name).rglob("*.tmp"))


@pytest.mark.usefixtures("any_rate")
def test_a_diverged_critic_is_reported(tmp_path):
    critic = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    options = {"optimizer": partial(torch.optim.SGD, lr=1e20), "directory": tmp_path}
    with pytest.raises(
        Diverged, match=r"diverged at step \d+ \(epoch 1\): .* with learning rate .*; lower the learning rate"
    ):
        quick(REAL, FAKE, critic=critic, steps=50, **options)
    assert not (tmp_path / "record.json").exists()


@pytest.mark.usefixtures("any_rate")
def test_degenerate_weights_are_a_divergence():
    """The kernel's own error in the middle of a training."""
    critic = mlp(2, 1, (4,))
    with pytest.raises(Diverged, match=r"diverged at step 2 .epoch 1.: linear1\.\S+ is not finite with .*; lower"):
        quick(REAL, FAKE, critic=critic, optimizer=partial(torch.optim.SGD, lr=1e38, weight_decay=1e10))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0: must be an integer of at least 1"),
        ({"batch_size": True}, "batch_size=True"),
        ({"seed": 0.5}, "seed=0.5: must be an integer"),
        ({"confidence": 95}, "confidence=95: must lie strictly between 0 and 1"),
        ({"critic": nn.Flatten()}, "critic has no parameter that requires a gradient"),
        ({"critic": mlp(2, 3, (4,))}, "critic gives outputs of shape"),
        ({"critic": nn.Sequential(nn.Linear(2, 1), nn.Sigmoid())}, "'1' .Sigmoid. has no Lipschitz rule"),
        ({"critic": mlp(5, 1, (4,))}, "linear1"),
    ],
)
def test_unusable_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        quick(REAL, FAKE, **options)


def test_integers_far_from_0_are_refused_and_right_when_moved():
    """float32 reads 1,700,000,065 and 1,700,000,063 as 128 apart; they are 2 apart."""
    real, fake = np.full((40, 1), 1_700_000_065), np.full((40, 1), 1_700_000_063)
    with pytest.raises(ValueError, match=r"lie up to 1\.7e\+09 from 0 and at most 2 apart.*subtract one and the same"):
        quick(real, fake)
    found = quick(real - 1_700_000_000, fake - 1_700_000_000, steps=100)
    assert found.interval[0] < found.lower_bound == pytest.approx(2, rel=1e-5)
    assert found.lower_bound <= transport(*found.samples)


def test_rounding_far_from_0_is_in_the_interval():
    """A critic that is evaluated at 1e5: the interval has room for what float64 loses there, however little."""
    offset = 1e5
    near, far = quick(REAL, FAKE, critic=small()), quick(REAL.double() + offset, FAKE.double() + offset, critic=small())
    errors = [
        sum(rounding(f.critic, f.bound, *side) for side in zip(f.samples, f.values, strict=True)) for f in (near, far)
    ]
    assert 0 < errors[0] < 1e-12 < errors[1] < 1e-8


def test_copies_widen_the_interval():
    """With every sample five times, a pair of the 100 that are held out is one sample with a probability of 4 / 499."""
    draws = [torch.randn(100, 1, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    critic = lambda: nn.Sequential(OrthogonalLinear(1, 1))  # noqa: E731
    once = quick(*draws, critic=critic())
    again = quick(*(side.repeat(5, 1) for side in draws), critic=critic())
    assert again.held_out == (100, 100)
    assert re.search(r"equal others \(\d\d of real and \d\d of fake held out\) were drawn, not copied", again.assumes)
    assert "equal" not in once.assumes
    sides = [Mean.of(values) for values in again.values]
    assert np.diff(again.interval)[0] > 1.2 * np.diff(central_interval(*sides, 0.95, 0.0))[0]  # 1.34 = sqrt(1.79)


@pytest.mark.parametrize("support", [None, (0.0, 2.0)])
def test_what_is_guaranteed_needs_a_support(support):
    found = quick(REAL, FAKE, held_out=20, support=support)
    if support is None:
        assert found.guaranteed is None
    else:
        assert found.guaranteed[0] <= found.interval[0] <= found.lower_bound <= found.interval[1] < found.guaranteed[1]
        assert found.to_dict()["guaranteed"] == list(found.guaranteed)


def test_pixels_have_a_support_of_their_own():
    bright, dark = (torch.randint(k, k + 60, (300, 1, 2, 2), dtype=torch.uint8) for k in (180, 0))
    critics = [nn.Sequential(nn.Flatten(), OrthogonalLinear(4, 1)) for _ in range(2)]
    found, copied = (
        quick(*sides, critic=critic, steps=100, held_out=200)
        for sides, critic in zip(((bright, dark), (bright[:60].repeat(5, 1, 1, 1), dark)), critics, strict=True)
    )
    assert 0 < found.guaranteed[0] < found.interval[0] < 1.5  # of about 1.4
    assert copied.guaranteed[0] < 0.85 * found.guaranteed[0]  # what 60 samples guarantee, not 200


@pytest.mark.parametrize("support", [(0.0, 1.0), (2.0, 0.0), (0.0, math.inf), (math.nan, 3.0)])
def test_a_support_that_samples_leave_is_refused(support):
    with pytest.raises(ValueError, match=r"support=.*: held-out values lie in \[0\.\d+, 1\.\d+\]"):
        quick(REAL, FAKE, support=support)


def test_constant_samples_never_give_a_point():
    found = quick(torch.full((20, 1), 3.0), torch.full((20, 1), 1.0), steps=100)
    assert found.interval[0] < found.lower_bound < found.interval[1]
    with pytest.raises(ValueError, match=r"real and fake are one sample again and again.*give support="):
        quick(torch.ones(20, 1), torch.ones(20, 1))
    known = quick(torch.ones(20, 1), torch.ones(20, 1), support=(0.0, 1.0))
    assert known.interval == (0.0, pytest.approx(2 * 0.9875, rel=0.1))  # one sample a side says next to nothing
