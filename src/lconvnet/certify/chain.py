"""Stand-in for lconvnet.bounds.trace until it exists: chains only."""

from __future__ import annotations

from torch import nn

from lconvnet.bounds import operations
from lconvnet.bounds.graph import Graph, Node

HIDDEN = {"training"}


def trace(network: nn.Module, input_shape: tuple[int, ...]) -> Graph:
    """The graph of a sequential network."""
    steps = operations(network, input_shape)
    if not steps:
        return Graph((Node("input", "input", shape=tuple(input_shape)),), "input")
    nodes = [Node("input", "input", shape=tuple(input_shape))]
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        module = step.module
        options = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(module).items()
                   if k[0] != "_" and k not in HIDDEN and isinstance(v, (int, float, str, tuple))}  # fmt: skip
        if step.padding is not None:
            options["circular_padding"] = list(step.padding.padding)
        tensors = {role: f"{step.name}.{role}" for role, value in module._parameters.items() if value is not None}
        if following is None:
            import torch

            like = next(network.parameters(), torch.zeros(()))
            with torch.no_grad():
                shape = tuple(step.parts(torch.zeros(1, *(step.input_shape or ()), dtype=like.dtype)).shape[1:])
        else:
            shape = following.input_shape
        nodes.append(Node(step.name, type(module).__name__, (nodes[-1].name,), step.name, options, tensors, shape))
    return Graph(tuple(nodes), nodes[-1].name)
