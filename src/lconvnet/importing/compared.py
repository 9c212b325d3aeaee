r"""Weights of "1-Lipschitz layers compared" (Prach, Brau, Buttazzo & Lampert, CVPR 2024) as plain ones.

Of its layers those have an equal here whose linear map is one kernel or one matrix. With the parameter W and U(W) its
polar factor,

    AOLConv2d      K[:, i] = W[:, i] (sum_{j, s} |A_ij(s)|)^{-1/2},   A(s) = sum_a W[:, :, a]^T W[:, :, a + s]
    BjorckConv2d   U(W), of size 1×1
    BjorckLinear   U(W)
    BCOP           the block convolution of the original LConvNet (importing/original.py) with the factors U
    CayleyLinear   [(I - Z)(I + Z)^{-1}; -2 Y (I + Z)^{-1}],   Z = X - X^T + Y^T Y,   [X; Y] = alpha W / |W|_F

Sources: Prach & Lampert 2022 (AOL), Li et al. 2019 (BCOP), Trockman & Kolter 2021 (Cayley). A state dict does
not say which of them a `weight` is of, so the layers are named by whoever loads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lconvnet.atomic import as_path
from lconvnet.importing.frames import Plain, placed, weighted
from lconvnet.importing.original import block_kernel
from lconvnet.ops.norm_bounds import self_correlation
from lconvnet.ops.orthogonalize import orthogonalize

Group = Mapping[str, Tensor]


def load_compared(path: str | Path, frame: nn.Sequential, layers: Sequence[str]) -> nn.Sequential:
    """Return the plain network of a state dict of "1-Lipschitz layers compared".

    The first layer of the frame may have fewer input channels than the file has, and the last one fewer outputs: what
    is cut there meets the zeros of a `ZeroChannelPad`, or is dropped by a `FirstChannels`.

    Args:
        path: a `.pth` file that holds a state dict; nothing in it is run.
        frame: the plain network with its strides, paddings and activations, see `lconvnet.importing.frames`.
        layers: the class of each layer with weights in the order of the frame, of `LAYERS`.

    Raises:
        ValueError: for a file that is missing, damaged, or would run something, where it does not fit the frame, and
            for a layer that keeps anything else than its class does, or that has no equal here.
    """
    for name in layers:
        if name not in LAYERS:
            reason = WITHOUT_EQUAL.get(name, "is no layer of this library that can be read")
            raise ValueError(f"layers names {name!r}, which {reason}; allowed: {', '.join(LAYERS)}")
    count = len(weighted(frame))
    if len(layers) != count:
        raise ValueError(f"layers names {len(layers)}, but the frame has weights in {count}; name each of them")
    names = iter(enumerate(layers))

    def parameters(group: Group, layer: Plain) -> tuple[Tensor, Tensor | None]:
        index, name = next(names)
        weight, bias = _weight(name, group, layer), group.get("bias")
        if index == 0 and isinstance(layer, nn.Conv2d):
            weight = weight[:, : layer.in_channels]
        if index == count - 1:
            outputs = layer.weight.shape[0]
            weight, bias = weight[:outputs], None if bias is None else bias[:outputs]
        return weight, bias

    return placed(as_path(path), frame, parameters)


def _weight(name: str, group: Group, layer: Plain) -> Tensor:
    kind, ndim, kept, constrained = LAYERS[name]
    if set(group) - {"bias"} not in kept:
        expected = " or ".join(", ".join(sorted(names)) for names in kept)
        raise ValueError(f"it keeps {', '.join(group)}; {name} keeps {expected}, and a bias at most")
    if not isinstance(layer, kind):
        raise ValueError(f"{name} stands for {kind.__name__}, the frame has {type(layer).__name__}")
    W = next(value for key, value in group.items() if key in MATRICES).double()
    if W.ndim != ndim:
        raise ValueError(f"{name} keeps {ndim} dimensions, it has shape {tuple(W.shape)}")
    return constrained(W, group, layer)


def _aol(W: Tensor, group: Group, layer: Plain) -> Tensor:
    sums = self_correlation(W.transpose(0, 1)).abs().sum((1, 2, 3))
    return W / sums.where(sums > 0, 1).sqrt()[:, None, None]


def _bjorck(W: Tensor, group: Group, layer: Plain) -> Tensor:
    if W.ndim == 4 and W.shape[2:] != (1, 1):
        raise ValueError(f"BjorckConv2d is of size 1x1, it has shape {tuple(W.shape)}")
    return orthogonalize(W.flatten(1)).reshape(W.shape)


def _bcop(W: Tensor, group: Group, layer: Plain) -> Tensor:
    """The bias says how many outputs there are; the factors are as large as the larger number of channels."""
    channels, rank = W.shape[-1], W.shape[-1] // 2
    expected = (torch.arange(channels) < rank).expand(len(W) - 1, 1, -1)
    if not torch.equal(group["mask"], expected.to(group["mask"].dtype)):
        raise ValueError(f"mask does not keep the first {rank} of {channels} columns, as it does in BCOP")
    outputs = len(group["bias"]) if "bias" in group else layer.weight.shape[0]
    return block_kernel(orthogonalize(W), channels, outputs, rank)[:, : layer.weight.shape[1]]


def _cayley(W: Tensor, group: Group, layer: Plain) -> Tensor:
    if group["alpha"].numel() != 1:
        raise ValueError(f"alpha has shape {tuple(group['alpha'].shape)}; it is one number")
    return cayley(group["alpha"].double() * W / W.norm())


def cayley(W: Tensor) -> Tensor:
    """The semi-orthogonal matrix of a free one, tall or wide.

    >>> cayley(torch.zeros(2, 1)).tolist()
    [[1.0], [-0.0]]
    """
    if W.shape[0] < W.shape[1]:
        return cayley(W.mT).mT
    X, Y = W[: W.shape[1]], W[W.shape[1] :]
    Z, identity = X - X.mT + Y.mT @ Y, torch.eye(W.shape[1], dtype=W.dtype)
    return torch.linalg.solve(identity + Z, torch.cat([identity - Z, -2 * Y]), left=False)


MATRICES = ("weight", "conv_matrices", "param_matrices")
WEIGHT = (frozenset({"weight"}),)
FACTORS = (frozenset({"conv_matrices", "mask"}), frozenset({"param_matrices", "mask"}))
Kind = type[nn.Conv2d] | type[nn.Linear]
Constrained = Callable[[Tensor, Group, Plain], Tensor]
LAYERS: Mapping[str, tuple[Kind, int, tuple[frozenset[str], ...], Constrained]] = {
    "AOLConv2d": (nn.Conv2d, 4, WEIGHT, _aol),
    "BjorckConv2d": (nn.Conv2d, 4, WEIGHT, _bjorck),
    "BjorckLinear": (nn.Linear, 2, WEIGHT, _bjorck),
    "BCOP": (nn.Conv2d, 3, FACTORS, _bcop),
    "CayleyLinear": (nn.Linear, 2, (frozenset({"weight", "alpha"}),), _cayley),
}
"""Layer there -> the plain layer that takes its place, the dimensions of what it constrains, what it keeps beside a
bias, and the weight."""
NO_KERNEL = "is no convolution with a kernel of its own: it computes in the frequency domain or by a series"
RESIDUAL = "is a residual block, which no plain layer is"
WITHOUT_EQUAL = {
    **dict.fromkeys(("CayleyConv", "LOT", "LOT2t", "SOC", "ECO", "SandwichConv", "SandwichFc"), NO_KERNEL),
    **dict.fromkeys(("CPLConv2d", "SLLConv2d"), RESIDUAL),
}
