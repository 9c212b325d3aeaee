"""Train one task of each kind as one of several processes; the first prints a JSON summary.

python -m tests.tasks.together DEVICES
"""

import json
import sys
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import SGD

from lconvnet.data import load
from lconvnet.layers import MaxMin, OrthogonalLinear, OSSNConv2d
from lconvnet.losses import OffsetCrossEntropy
from lconvnet.models import mlp
from lconvnet.training import fit, is_first_process
from lconvnet.wasserstein import estimate
from tests.gan import tiny

REAL = torch.rand(61, 2, generator=torch.Generator().manual_seed(0)) + 1.0
FAKE = torch.rand(50, 2, generator=torch.Generator().manual_seed(1))


def sums(*modules: nn.Module) -> dict[str, float]:
    """Of every stored tensor of the networks."""
    states = (module.state_dict().items() for module in modules)
    return {f"{k} {name}": float(value.double().sum()) for k, state in enumerate(states) for name, value in state}


def conv_net() -> nn.Sequential:
    """With power-iteration buffers."""
    torch.manual_seed(0)
    conv = OSSNConv2d(1, 4, 4, 4, input_size=(28, 28))
    return nn.Sequential(conv, MaxMin(), nn.Flatten(), OrthogonalLinear(4 * 7 * 7, 10))


def train(devices: int) -> dict[str, Any]:
    common = {"devices": devices, "precision": "64-true", "clip_gradient": 0.1, "ema": 0.9}
    descend = partial(SGD, lr=0.1)
    model, splits = conv_net(), load("digits", limit=600)
    record = fit(model, splits, loss=OffsetCrossEntropy(0.5), epochs=1, batch_size=64, eps=0.1, accelerator="cpu",
                 tensorboard=False, optimizer=descend, **common)  # fmt: skip
    found: dict[str, Any] = {"classification": [[epoch.to_dict() for epoch in record.epochs], sums(model)]}
    torch.manual_seed(3)
    critic = mlp(2, 1, (4,))
    distance = estimate(REAL, FAKE, critic=critic, steps=12, batch_size=15, optimizer=descend, **common)
    found["wasserstein"] = [[distance.lower_bound, *(value for _, value in distance.history)], sums(critic)]
    generator, critic = tiny.generator(), tiny.lipschitz_critic()
    trained = tiny.train("lipschitz", generator=generator, critic=critic, batch_size=7, **common)
    found["gan"] = [[epoch.to_dict() for epoch in trained.epochs], sums(generator, critic)]
    return found


def main() -> None:
    torch.set_num_threads(1)
    found = train(int(sys.argv[1]))
    if is_first_process():
        sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
