"""What ties a bound to the network that it was computed for."""

from __future__ import annotations

from hashlib import sha256
from itertools import chain

import torch
from torch import Tensor, nn

from lconvnet.bounds.attributes import plain_attributes, private_attributes
from lconvnet.bounds.reading import Trace


def fingerprint(network: nn.Module) -> str:
    """SHA-256 of all that a network computes with: its modules as printed, the class and the plain attributes of each,
    and the name, dtype, shape and bytes of each parameter and buffer. The code of a forward pass is not part of it.

    The same for a copy, on any device and in any mode; another one after a change in place or of dtype.

    >>> from lconvnet.layers import Scale
    >>> fingerprint(Scale(2.0)) == fingerprint(Scale(2.0)), fingerprint(Scale(2.0)) == fingerprint(Scale(3.0))
    (True, False)
    """
    digest = sha256(repr(network).encode())
    for name, module in network.named_modules(remove_duplicate=False):
        kind = type(module)
        digest.update(repr((name, kind.__module__, kind.__qualname__, plain_attributes(module))).encode())
    for name, tensor in chain(
        network.named_parameters(remove_duplicate=False), network.named_buffers(remove_duplicate=False)
    ):
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def program(traced: Trace) -> str:
    """SHA-256 of what was read of a forward pass: the graph with its numbers, wherever these are kept, and the private
    plain attributes of the modules. The bytes of tensors are no part of it.

    >>> from lconvnet.bounds import trace
    >>> program(trace(nn.ReLU())) == program(trace(nn.ReLU())) != program(trace(nn.Flatten()))
    True
    """
    held = {name: private_attributes(operation.module) for name, operation in traced.operations.items()}
    return sha256(repr((traced.graph.to_json(), held)).encode()).hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    """The values as they lie in memory, of whatever dtype: numpy has no bfloat16."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
