"""Train a small network on fixed batches in this process, one of ``WORLD_SIZE``; save weights and losses to argv[1].

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=… python parallel.py OUT

Every rank takes its share of the same joint batches, so the result does not depend on the number of processes.
"""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lconvnet import layers, models
from lconvnet.losses import OffsetCrossEntropy

STEPS, BATCH = 4, 8


def main() -> None:
    torch.set_num_threads(1)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    network = models.small_convnet(1, 8, 4, linear=layers.CholeskyLinear).double()
    model: nn.Module = DistributedDataParallel(network)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    loss = OffsetCrossEntropy(eps=0.5)
    losses = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        images = torch.rand(BATCH, 1, 8, 8, dtype=torch.float64, generator=generator)
        labels = torch.randint(4, (BATCH,), generator=generator)
        optimizer.zero_grad()
        value = loss(model(images[rank::world]), labels[rank::world])
        value.backward()
        optimizer.step()
        mean = value.detach() / world
        dist.all_reduce(mean)
        losses.append(float(mean))
    torch.save({"state": network.state_dict(), "losses": losses}, f"{sys.argv[1]}/{world}-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
