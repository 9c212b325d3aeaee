"""Several processes train what one does: the same curve, exact gradients, one writer, one end for all."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

import lconvnet
from lconvnet.cli import invoke
from lconvnet.experiments import execute
from lconvnet.experiments.config import Experiment
from lconvnet.experiments.loading import dump
from lconvnet.experiments.run_folder import RunFolder
from lconvnet.run import app
from lconvnet.training import is_first_process, load_record, processes
from lconvnet.training.processes import STARTED, Processes
from tests.training import together
from tests.training.test_resume import assert_same_run

SCRIPT = Path(__file__).with_name("together.py")
SOURCE = str(Path(lconvnet.__file__).parents[1])
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node")
LOST = "error: another process of this training is gone"


@pytest.fixture(autouse=True)
def _from_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings in several processes start their command again; that of a worker of pytest-xdist has no file."""
    monkeypatch.setattr(sys, "argv", [__file__])


def run(*command: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Returns when every process that holds the pipes has ended, the others included."""
    path = os.pathsep.join([SOURCE, os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == code, done.stderr
    return done


def train(
    devices: int, directory: Path | None = None, code: int = 0, **options: Any
) -> subprocess.CompletedProcess[str]:
    options |= {"devices": devices, **({"directory": str(directory)} if directory else {})}
    return run(str(SCRIPT), json.dumps(options), code=code)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith(("error: ", "again: "))]


def test_two_processes_train_small_as_one_does_and_one_of_them_writes(tmp_path: Path) -> None:
    options = {"model": "small", "epochs": 2, "noise": 0, "precision": "64-true", "eps": (0.5, 0.1)}
    one, two = tmp_path / "one", tmp_path / "two"
    runs = [train(1, one, **options), train(2, two, **options)]
    records = [load_record(folder) for folder in (one, two)]
    assert records[0].settings == records[1].settings
    assert "processes" not in records[0].versions
    assert records[1].versions["processes"] == "2"
    for single, joint in zip(*(record.epochs for record in records), strict=True):
        # float64 sums in another order, a dozen Adam steps
        assert joint.loss == pytest.approx(single.loss, rel=1e-10)
        assert (joint.accuracy, joint.clean, joint.certified) == (single.accuracy, single.clean, single.certified)
    assert 0 < records[0].best.certified[0.5] < records[0].best.certified[0.1]
    weights = [load_file(folder / "checkpoints" / "best.safetensors") for folder in (one, two)]
    for name, weight in weights[0].items():
        assert torch.allclose(weight, weights[1][name], rtol=1e-7, atol=1e-9), name
    assert files(one) == files(two)
    timings = [(folder / "logs" / "timing.jsonl").read_text().count("\n") for folder in (one, two)]
    assert timings == [2, 2]
    lines = [[line.partition("  L <=")[0] for line in done.stderr.splitlines()] for done in runs]
    assert lines[0] == lines[1]
    assert len(lines[1]) == 3  # the learning rates, and an epoch each
    assert runs[1].stdout.count("\n") == 1


def test_uneven_and_empty_shares_give_the_gradient_of_the_joint_batch() -> None:
    """Batches of 479 and 1: shares of 160, 160 and 159, and two processes without an image."""
    options = {"epochs": 1, "noise": 0, "precision": "64-true", "sgd": 0.5, "batch_size": 479}
    one, three = together.train({"devices": 1, **options}), json.loads(train(3, **options).stdout)
    # Plain gradient descent: weights differ by the gradients' rounding. Power-iteration buffers are among them.
    assert three["sums"] == pytest.approx(one["sums"], rel=1e-12, abs=1e-13)
    assert three["epochs"][0]["loss"] == pytest.approx(one["epochs"][0]["loss"], rel=1e-13)
    assert [epoch["step"] for epoch in one["epochs"]] == [2]
    assert three["epochs"][0]["accuracy"] == one["epochs"][0]["accuracy"]


SIGTERM = "error: stopped by SIGTERM after 0 epochs and {} steps; continue"
DISTURBANCES = [
    ({"call": 3, "rank": 2, "what": "SIGTERM"}, 3, SIGTERM.format(3)),
    ({"call": 6, "rank": 1, "what": "SIGKILL"}, 3, LOST),
]
MORE_DISTURBANCES = [
    ({"call": 3, "rank": 0, "what": "SIGTERM"}, 3, SIGTERM.format(3)),
    ({"call": 5, "what": "SIGINT"}, 3, "error: stopped by SIGINT after 1 epochs and 0 steps; continue"),
    ({"call": 4, "what": "stuck, the first one killed"}, -9, ""),  # the others would sleep for 600 seconds
]


@pytest.mark.slow
@pytest.mark.parametrize("disturbances", [DISTURBANCES, MORE_DISTURBANCES])
def test_what_ends_one_process_ends_all_and_a_resume_completes_the_run(disturbances: list[Any], tmp_path: Path) -> None:
    """One run through them all, against an undisturbed one; with three processes the order of sums counts."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(3, whole)
    for trouble, code, message in disturbances:
        said = errors(train(3, parts, code, resume=True, trouble=trouble))
        assert len(said) == (1 if message else 0)
        assert all(line.startswith(message) for line in said)
    train(3, parts, resume=True)
    assert_same_run(whole, parts)


@pytest.mark.slow
def test_what_only_the_first_process_meets_is_said_once(tmp_path: Path) -> None:
    full = errors(train(2, tmp_path, 2, trouble={"call": 3, "rank": 0, "what": "disk full"}))
    assert len(full) == 1
    assert "last.ckpt: cannot be written (No space left on device)" in full[0]
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"junk")
    damaged = errors(train(2, tmp_path, 2, resume=True))
    assert len(damaged) == 1
    assert "last.ckpt: not a checkpoint" in damaged[0]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_process_stops_all() -> None:
    said = errors(train(2, code=2, trouble={"call": 5, "rank": 1, "what": "nan"}))
    assert len(said) == 2
    assert said[0].startswith("error: training diverged at step 5 (epoch 1): loss is nan with learning rate")
    assert "devices=2: the other processes of this command ended with an earlier training; start it again" in said[1]


@pytest.mark.slow
def test_processes_with_other_images_are_refused() -> None:
    said = errors(train(2, code=3, other_images=True))
    assert [line for line in said if line.startswith(LOST)]
    assert [line for line in said if "process 1 was given other settings or images than the first (data.train" in line]


def experiment(folder: Path, **sections: Any) -> Path:
    values = {"model": {"architecture": "mlp", "widths": [16]}, "data": {"limit": 600}, **sections}
    folder.mkdir()
    (folder / "cfg.yaml").write_text(dump(Experiment.model_validate(values)))
    return folder / "cfg.yaml"


def test_the_command_trains_evaluates_and_goes_on_with_another_number_of_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = experiment(tmp_path / "run", training={"epochs": 2, "devices": 2, "accelerator": "cpu"})
    done = run("-m", "lconvnet.run", "--cfg", str(cfg), "--json")
    assert len(done.stdout.splitlines()) == 1
    assert json.loads(done.stdout)["model"] == str(cfg.parent / "model.safetensors")
    assert [line.split()[0] for line in done.stderr.splitlines()] == ["read", "learning", "epoch", "epoch", "kept"]
    made = (cfg.parent / "model.safetensors").read_bytes()
    assert invoke(app, ["--cfg", str(cfg), "--resume", "--set", "training.devices=1"]) == 0
    assert "kept epoch" in capsys.readouterr().out
    assert (cfg.parent / "model.safetensors").read_bytes() == made
    assert execute.evaluate(RunFolder(cfg.parent), attacks=False).results["finished"]
    used = run("-m", "lconvnet.run", "--cfg", str(cfg), code=2)
    assert errors(used) == used.stderr.splitlines()
    assert len(errors(used)) == 1


@pytest.mark.slow
def test_torchrun_gives_the_bits_of_our_own_launcher(tmp_path: Path) -> None:
    train(2, tmp_path / "own")
    options = {"directory": str(tmp_path / "torchrun"), "devices": 1}
    run(*TORCHRUN, "2", str(SCRIPT), json.dumps(options))
    assert_same_run(tmp_path / "own", tmp_path / "torchrun")
    cfg = experiment(tmp_path / "run", training={"epochs": 1, "accelerator": "cpu"})
    for code in (0, 1):  # torchrun gives 1 for every failure
        done = run(*TORCHRUN, "2", "-m", "lconvnet.run", "--cfg", str(cfg), code=code)
    assert len(errors(done)) == 1
    assert "already holds a run" in errors(done)[0]
    assert "forcefully" not in done.stderr  # after half a minute, which is how long torchrun waits


@pytest.mark.slow
def test_several_trainings_in_one_script() -> None:
    assert train(2, again=True).stdout.count("\n") == 1


@pytest.mark.slow
def test_two_processes_on_mnist(tmp_path: Path, data_dir: Path) -> None:
    """Certified accuracy on the test images within three of 10,000.

    In float32 losses parted by 2.6e-4 and 6.4e-4, certified accuracy by 10 of 10,000 images, in two epochs (two runs),
    since Adam divides by what rounding made; that float64 agrees to round-off is tested above.
    """
    data = {"name": "mnist", "directory": str(data_dir), "limit": 10_000}
    certified, clean = [], []
    for devices in (1, 2):
        training = {"epochs": 2, "devices": devices, "accelerator": "cpu"}
        sections = {"data": data, "training": training, "model": {"architecture": "small", "conv": "bcop"}}
        cfg = experiment(tmp_path / str(devices), **sections)
        run("-m", "lconvnet.run", "--cfg", str(cfg), "--quiet")
        results = execute.evaluate(RunFolder(cfg.parent), attacks=False).results
        certified.append(results["adv_robustness"][1.58]["lb"])
        clean.append(results["accuracy"])
    losses = [[epoch.loss for epoch in load_record(tmp_path / name).epochs] for name in "12"]
    print(certified, clean, losses)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert certified[1] == pytest.approx(certified[0], abs=3e-3)
    assert clean[1] == pytest.approx(clean[0], abs=3e-4)
    assert certified[0] > 0.1


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_shares_cover_a_batch_once(count: int) -> None:
    shares = [Processes(rank, count).share(torch.arange(16)) for rank in range(count)]
    assert torch.cat(shares).sort().values.tolist() == list(range(16))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("devices", [0, -1, 1.5, "2", True])
def test_the_number_of_processes_is_checked(devices: Any, request: pytest.FixtureRequest) -> None:
    with pytest.raises(ValueError, match=rf"devices={devices!r}: must be an integer of at least 1"):
        request.getfixturevalue("train")(devices=devices)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0"},
            r"devices=3: torchrun has started 2 on this machine; start it with --nproc-per-node 3, or leave",
        ),
        (
            {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "3", "RANK": "0"},
            r"torchrun has started 3 of 4 processes on this machine; .* the same --nproc-per-node",
        ),
        ({"LOCAL_RANK": "0"}, r"devices=3: LOCAL_RANK=0 is set, but not by torchrun; use that, or unset it"),
        ({"LOCAL_RANK": "0", STARTED: "1"}, r"devices=3: the other processes of this command ended .* start it again"),
    ],
)
def test_processes_that_would_never_come_are_refused(
    environment: dict[str, str], message: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        request.getfixturevalue("train")(devices=3)


def test_an_interactive_session_is_refused(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    with pytest.raises(ValueError, match=r"devices=2: .* interactive session; put the training into a script"):
        request.getfixturevalue("train")(devices=2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_devices_that_are_not_there_are_refused(request: pytest.FixtureRequest) -> None:
    with pytest.raises(ValueError, match=r"accelerator='cuda', devices=2: cannot be used here .* or fewer devices"):
        request.getfixturevalue("train")(devices=2, accelerator="cuda")


def test_a_used_folder_is_refused_before_any_process_is_started(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request.getfixturevalue("train")(directory=tmp_path, epochs=1)
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(ValueError, match="holds a run already"):
        request.getfixturevalue("train")(directory=tmp_path, devices=2)


def test_who_is_the_first_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")  # of some other launcher
    assert is_first_process()
    monkeypatch.setenv(STARTED, "1")
    assert not is_first_process()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("RANK", "0")
    assert is_first_process()


def test_a_process_whose_first_is_gone_ends(monkeypatch):
    ended = []
    monkeypatch.setattr(processes.os, "_exit", ended.append)
    processes._end_with(os.getppid() + 1)
    assert ended == [1]


def test_processes_that_cannot_meet_are_not_told_to_go_on():
    """A port in use stays in use: code 2, not the code of an interruption, which a cluster queues again."""
    fabric = mock.Mock(world_size=2)
    fabric.launch.side_effect = RuntimeError("address already in use\nsecond line")
    with pytest.raises(ValueError, match=r"could not meet \(address already in use\); set MASTER_PORT"):
        processes._launch(fabric)
