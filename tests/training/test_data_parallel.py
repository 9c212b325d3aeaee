"""Data-parallel training over gloo: the ranks agree with each other and with one process on the joint batch."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

SCRIPT = Path(__file__).with_name("parallel.py")


def train(world, folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {**os.environ, "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen([sys.executable, str(SCRIPT), str(folder)], env={**environment, "RANK": str(rank)})
        for rank in range(world)
    ]
    assert [process.wait(timeout=120) for process in ranks] == [0] * world
    return [torch.load(folder / f"{world}-{rank}.pt", weights_only=True) for rank in range(world)]


def test_two_processes_train_as_one(tmp_path):
    (one,) = train(1, tmp_path)
    first, second = train(2, tmp_path)
    assert first["losses"] == second["losses"]
    for name, weight in one["state"].items():
        assert torch.equal(first["state"][name], second["state"][name])
        # float64 gradients averaged in another order, four Adam steps
        assert torch.allclose(first["state"][name], weight, atol=1e-9)
    assert torch.allclose(torch.tensor(first["losses"]), torch.tensor(one["losses"]), rtol=1e-9)
    assert one["losses"][-1] < one["losses"][0]
