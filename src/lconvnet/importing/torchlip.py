r"""Weights of deel-torchlip (Serrurier et al., CVPR 2021) as plain ones.

In evaluation its spectral layers use the matrix W that Björck's method left in the last training step, in a convolution
divided by $\sqrt{\lceil k/s\rceil^2}$; without that method they use $W/\sigma$, $\sigma = u^\top Wv$. Frobenius layers
normalise every row. Its GroupSort sorts g channels side by side, ours channels that lie C/g apart: with the permutation

$$\pi(a + b\,C/g) = a\,g + b,\qquad 0\le a<C/g,\ 0\le b<g,$$

of the rows before it and of the columns after it, they are the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from lconvnet.atomic import as_path
from lconvnet.importing.plain_networks import Group, Plain, fill, patches, taken, weighted
from lconvnet.layers import Abs, Concat, FullSort, GroupSort, MaxMin, NormPool, Scale, Sum, TwoSidedReLU
from lconvnet.ops.images import is_finite_number

ORIGINAL = "parametrizations.weight.original"
KEPT = re.compile(r"parametrizations\.weight\.(original|0\._[uv]|1\._w_bjorck)")
TRANSPARENT = (nn.ReLU, nn.Identity, nn.ZeroPad2d, nn.CircularPad2d, nn.Flatten, Abs, Scale)
"""Layers that leave the order of channels as it is."""
ALIKE = {
    *TRANSPARENT, *get_args(Plain), nn.Sequential, nn.ModuleList, Sum, Concat, FullSort, TwoSidedReLU, NormPool,
    nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.MaxPool2d, nn.LPPool2d, nn.PixelShuffle, nn.PixelUnshuffle, nn.Dropout,
    nn.Dropout2d,
}  # fmt: skip
"""Layers that, of channels in the order of theirs, compute what theirs do."""


def load_torchlip(
    path: str | Path,
    frame: nn.Sequential,
    *,
    k_coef_lip: float | Sequence[float] | None = None,
    disjoint_neurons: bool | None = None,
) -> nn.Sequential:
    """Return the plain network of a state dict of deel-torchlip 1.0.5.

    Its `SpectralConv2d`, `SpectralLinear` and `FrobeniusLinear` are read; write `lconvnet.layers.GroupSort(2)` in the
    frame for its `GroupSort2` (or `MaxMin()`, which is the same), and `FullSort` for its own.

    Args:
        path: a `.pth` file that holds a state dict; nothing in it is run.
        frame: the plain network with its strides, paddings and activations (`lconvnet.importing.plain_networks`).
            Behind a GroupSort with a `k_coef_lip` of its own write `Scale(k_coef_lip)`; in its
            `Sequential(..., k_coef_lip=K)` of n Lipschitz layers each has K^(1/n), which the weights have not.
        k_coef_lip: the factor that each layer with weights was built with, or one for all, 1 by its default. No file
            says it.
        disjoint_neurons: how a `FrobeniusLinear` of several outputs was built, True by its default. No file says it.

    Raises:
        ValueError: for a file that is missing, damaged, or would run something, if it does not fit the frame, and if
            an argument is missing that decides what the weights are.
    """
    factors = iter(_factors(k_coef_lip, len(weighted(frame))))

    def weight(group: Group, layer: Plain) -> Tensor:
        return _weight(group, layer, disjoint_neurons) * next(factors)

    network = fill(as_path(path), frame, weight, KEPT)
    _regroup(network)
    return network


def _factors(k_coef_lip: float | Sequence[float] | None, count: int) -> list[float]:
    if k_coef_lip is None:
        raise ValueError(
            "k_coef_lip is not given and in no file: give 1 for layers that were built without it, else the factor of "
            "each layer with weights"
        )
    given: Any = [k_coef_lip] * count if is_finite_number(k_coef_lip) else k_coef_lip
    factors = [float(factor) for factor in given if is_finite_number(factor)] if isinstance(given, Iterable) else []
    if len(factors) != count or min(factors, default=1) <= 0:
        raise ValueError(f"k_coef_lip={k_coef_lip!r}: give one positive number, or {count}, one for each layer")
    return factors


def _weight(group: Group, layer: Plain, disjoint_neurons: bool | None) -> Tensor:
    for name, value in group.items():
        if name.endswith("._w_bjorck"):
            return value.double() / patches(layer)
    W = taken(group, ORIGINAL).double()
    if f"{ORIGINAL.removesuffix('original')}0._u" in group:
        u, v = (group[f"parametrizations.weight.0.{name}"].double() for name in ("_u", "_v"))
        return W / (u @ W.flatten(1) @ v) / patches(layer)
    if isinstance(layer, nn.Conv2d):
        raise ValueError(f"it keeps {', '.join(group)}; of convolutions only SpectralConv2d can be read")
    if disjoint_neurons is None and len(W) > 1:
        raise ValueError("it is a FrobeniusLinear; give disjoint_neurons as it was built, True by its default")
    return W / (W.norm() if disjoint_neurons is False else W.norm(dim=1, keepdim=True))


def _steps(network: nn.Sequential) -> Iterator[nn.Module]:
    """The layers in order, those of sequences within it one by one."""
    for part in network:
        if type(part) is nn.Sequential:
            yield from _steps(part)
        else:
            yield part


@torch.no_grad()
def _regroup(network: nn.Sequential) -> None:
    """Renumber the channels around every GroupSort, so that ours sorts together what theirs did."""
    before: nn.Module | None = None
    order: Tensor | None = None
    flattened = False
    for layer in _steps(network):
        if isinstance(layer, Plain):
            if order is not None:  # behind a flattening all pixels of a channel move with it
                columns = layer.weight.unflatten(1, (len(order), -1))[:, order]
                layer.weight.copy_(columns.flatten(1, 2))
            before, order, flattened = layer, None, False
        elif type(layer) is GroupSort or type(layer) is MaxMin:
            if layer.dim != 1:
                raise ValueError(f"frame has {layer}; theirs sorts channels, dim=1")
            if not isinstance(before, Plain) or order is not None:
                raise ValueError(f"frame has {layer} without a layer of weights right before it; put one there")
            if flattened and isinstance(before, nn.Conv2d):
                raise ValueError(
                    f"frame has {layer} behind a Flatten of images, where theirs sorts pixels side by side, which ours "
                    "cannot; of images of one pixel put it before the Flatten, which is the same"
                )
            channels, group_size = before.weight.shape[0], layer.group_size if isinstance(layer, GroupSort) else 2
            if channels % group_size:
                raise ValueError(f"{layer} does not divide the {channels} channels before it")
            groups = torch.arange(channels).reshape(-1, group_size)
            # Which of their channels each of ours is; MaxMin has the larger of two first.
            order = (groups if isinstance(layer, GroupSort) else groups.flip(1)).T.flatten()
            for parameter in before.parameters():
                parameter.copy_(parameter[order])
        elif type(layer) not in TRANSPARENT:
            before = None
            if order is not None:
                raise ValueError(f"frame has {layer} between a GroupSort and the weights after it; take it out")
            if other := next((part for part in layer.modules() if type(part) not in ALIKE), None):
                raise ValueError(
                    f"frame has {other} where its channels may be in another order than theirs; write layers with "
                    "weights, sorts and ReLU in one sequence, and else modules of torch.nn"
                )
        flattened |= isinstance(layer, nn.Flatten)
    if order is not None:
        raise ValueError("frame ends with a GroupSort; its output would be in another order than theirs")
