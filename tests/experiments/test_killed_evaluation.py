"""A real process, killed with SIGKILL while it attacks: the next one goes on, and nothing is measured twice."""

import collections
import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

from lconvnet.experiments import execute
from lconvnet.experiments.loading import parse
from lconvnet.experiments.run_folder import RunFolder

TESTED = 40
VALUES = {
    "data": {"name": "digits", "limit": 300, "test": TESTED},
    "model": {"architecture": "mlp", "widths": [16]},
    "training": {"epochs": 1},
    "evaluation": {
        "eps": [0.1, 0.3],
        "attacks": [{"name": "pgd", "steps": 200, "step_size": 0.01}, {"name": "fgsm"}],
        "batch_size": 4,
    },
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    execute.train(parse(VALUES), folder, progress=False)
    return folder


def lines(folder):
    return {path.name: path.read_bytes().count(b"\n") for path in folder.evaluation.glob("*.jsonl")}


def killed(folder, number=signal.SIGKILL):
    """Start an evaluation, let it measure two more batches, and send it a signal; its exit code."""
    before = sum(lines(folder).values())
    command = [sys.executable, "-m", "lconvnet", "evaluate", str(folder.path), "--quiet"]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 120
    while sum(lines(folder).values()) < before + 8 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    return process.wait()


@pytest.mark.parametrize("kills", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_and_resumed_is_undisturbed(run, tmp_path, kills):
    whole = RunFolder(shutil.copytree(run.path, tmp_path / "whole"))
    execute.evaluate(whole)
    copy = RunFolder(shutil.copytree(run.path, tmp_path / "copy"))
    assert [killed(copy) for _ in range(kills)] == [-signal.SIGKILL] * kills, "killed at work, not after it"
    assert not copy.results.exists()
    execute.evaluate(copy)
    for name in ("results.yaml", "examples.parquet"):
        assert (copy.path / name).read_bytes() == (whole.path / name).read_bytes()
    assert lines(copy).keys() == lines(whole).keys()
    for path in copy.evaluation.glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()[1:] if line.endswith("}")]
        counts = collections.Counter(row["index"] for row in rows)
        twice = [index for index, count in counts.items() if count > 1]
        assert len(twice) <= 4 * kills, "at most the batches that a kill tore"
        assert set(counts) == set(range(TESTED))


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_a_notice_ends_it_with_code_3(run, tmp_path, number):
    copy = RunFolder(shutil.copytree(run.path, tmp_path / "copy"))
    assert killed(copy, number) == 3
    assert not copy.results.exists()
