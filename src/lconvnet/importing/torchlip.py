r"""Weights of deel-torchlip (Serrurier et al., CVPR 2021) as plain ones.

In evaluation its spectral layers use the matrix W that Björck's method left in the last training step, in a convolution
divided by $\sqrt{\lceil k/s\rceil^2}$; without that method they use $W/\sigma$, $\sigma = u^\top Wv$. Frobenius layers
normalise every row. Its GroupSort sorts g channels side by side, ours channels that lie C/g apart: with the permutation

$$\pi(a + b\,C/g) = a\,g + b,\qquad 0\le a<C/g,\ 0\le b<g,$$

of the rows before it and of the columns after it, they are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lconvnet.importing.frames import Plain, fill, patches, taken
from lconvnet.layers import Abs, GroupSort, Scale

ORIGINAL = "parametrizations.weight.original"
TRANSPARENT = (nn.ReLU, nn.Identity, nn.ZeroPad2d, nn.CircularPad2d, nn.Flatten, Abs, Scale)


def load_torchlip(path: str | Path, frame: nn.Sequential) -> nn.Sequential:
    """Return the plain network of a state dict of deel-torchlip 1.0.5.

    Its `SpectralConv2d`, `SpectralLinear` and `FrobeniusLinear` (with disjoint neurons, the default) are read; write
    `lconvnet.layers.GroupSort(2)` in the frame for its `GroupSort2`, and `FullSort` for its own.

    Args:
        path: a `.pth` file that holds a state dict; nothing in it is run.
        frame: the plain network with its strides, paddings and activations, see `lconvnet.importing.frames`.

    Raises:
        ValueError: for a file that is missing, damaged, or would run something, and where it does not fit the frame.
    """
    network = fill(Path(path), frame, _weight)
    _regroup(network)
    return network


def _weight(group: Mapping[str, Tensor], layer: Plain) -> Tensor:
    for name, value in group.items():
        if name.endswith("._w_bjorck"):
            return value.double() / patches(layer)
    W = taken(group, ORIGINAL).double()
    if f"{ORIGINAL.removesuffix('original')}0._u" in group:
        u, v = (group[f"parametrizations.weight.0.{name}"].double() for name in ("_u", "_v"))
        return W / (u @ W.flatten(1) @ v) / patches(layer)
    if isinstance(layer, nn.Conv2d):
        raise ValueError(f"it keeps {', '.join(group)}; of convolutions only SpectralConv2d can be read")
    return W / W.norm(dim=1, keepdim=True)


def _regroup(network: nn.Sequential) -> None:
    """Renumber the channels around every GroupSort, so that ours sorts together what theirs did."""
    before: nn.Module | None = None
    order: Tensor | None = None
    for layer in network:
        if isinstance(layer, Plain):
            if order is not None:
                _permute_columns(layer, order)
            before, order = layer, None
        elif isinstance(layer, GroupSort):
            if not isinstance(before, Plain) or order is not None:
                raise ValueError(f"frame has {layer} without a layer of weights right before it; put one there")
            order = _side_by_side(before.weight.shape[0], layer.group_size)
            _permute_rows(before, order)
        elif type(layer) not in TRANSPARENT:
            before = None
            if order is not None:
                raise ValueError(f"frame has {layer} between a GroupSort and the weights after it; take it out")
    if order is not None:
        raise ValueError("frame ends with a GroupSort; its output would be in another order than theirs")


def _side_by_side(channels: int, group_size: int) -> Tensor:
    """The permutation pi: which of their channels each of ours is."""
    if channels % group_size:
        raise ValueError(f"GroupSort({group_size}) does not divide the {channels} channels before it")
    return torch.arange(channels).reshape(-1, group_size).T.flatten()


@torch.no_grad()
def _permute_rows(layer: Plain, order: Tensor) -> None:
    layer.weight.copy_(layer.weight[order])
    if layer.bias is not None:
        layer.bias.copy_(layer.bias[order])


@torch.no_grad()
def _permute_columns(layer: Plain, order: Tensor) -> None:
    """Of a dense layer behind a flattening all pixels of a channel move with it."""
    columns = layer.weight.unflatten(1, (len(order), -1))[:, order]
    layer.weight.copy_(columns.flatten(1, 2))
