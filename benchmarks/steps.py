"""One training step as a function without arguments."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from lconvnet.losses import OffsetCrossEntropy
from lconvnet.tasks.estimates import critic_values, difference

LOSS = OffsetCrossEntropy(eps=1.58)


def training_step(
    network: nn.Module, loss: Callable[[], Tensor], lr: float = 1e-3, *, capturable: bool = False
) -> Callable[[], None]:
    """Gradients to zero, loss (which runs the network forward), backward, Adam."""
    optimizer = torch.optim.Adam(network.parameters(), lr, capturable=capturable)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def classification_step(
    network: nn.Module, images: Tensor, labels: Tensor, *, capturable: bool = False
) -> Callable[[], None]:
    """The same on one batch that stays."""
    return training_step(network, lambda: LOSS(network(images), labels), capturable=capturable)


def critic_step_of(network: nn.Module, images: Tensor, *, capturable: bool = False) -> Callable[[], None]:
    """A critic's step: the first half of the images is real, the second generated."""
    half = len(images) // 2

    def loss() -> Tensor:
        values = critic_values(network, images)
        return -difference(values[:half], values[half:])

    return training_step(network, loss, capturable=capturable)


def captured(step: Callable[[], object], warm_up: int = 3) -> Callable[[], None]:
    """A capturable step as one CUDA graph that is launched as a whole, after some ordinary ones on another stream."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warm_up):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        step()

    return partial(_replay, graph, step)


def _replay(graph: torch.cuda.CUDAGraph, step: Callable[[], object]) -> None:
    """Launch a graph; holding the step keeps the batch and the optimiser, whose memory it uses."""
    graph.replay()


def is_finite(network: nn.Module) -> bool:
    """Whether no step has diverged: Adam keeps a NaN, and an iteration on NaN may end early and look fast."""
    return all(bool(parameter.isfinite().all()) for parameter in network.parameters())
