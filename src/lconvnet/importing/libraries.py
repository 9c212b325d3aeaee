r"""Weights of three libraries as plain ones: "1-Lipschitz layers compared", orthogonium and deel-torchlip.

**"1-Lipschitz layers compared"** (Prach, Brau, Buttazzo & Lampert, CVPR 2024). A layer can be read if its linear map is
one kernel or one matrix. With the parameter W and its polar factor U(W), these are

    AOLConv2d      K[:, i] = W[:, i] (sum_{j, s} |A_ij(s)|)^{-1/2},   A(s) = sum_a W[:, :, a]^T W[:, :, a + s]
    BjorckConv2d   U(W), of size 1×1
    BjorckLinear   U(W)
    BCOP           the block convolution of the original LConvNet (importing/original.py) with the factors U
    CayleyLinear   [(I - Z)(I + Z)^{-1}; -2 Y (I + Z)^{-1}],   Z = X - X^T + Y^T Y,   [X; Y] = alpha W / |W|_F

Sources: Prach & Lampert 2022 (AOL), Li et al. 2019 (BCOP), Trockman & Kolter 2021 (Cayley). A state dict does
not say which class a `weight` belongs to, so the caller names the layers.

**orthogonium** (Boissin et al., "Adaptive orthogonal convolution", ICML 2025). Let $Y_j$ be the orthonormalised
matrices that it keeps, and $P_j = Y_jY_j^\top$. Its stride-1 kernel is

$$K = B_{k-1}\,\square\cdots\square\,B_1\,\square\,(I-2P_0)(I-2P_1),\qquad B_i[a,b] = P^{(i)}_aQ^{(i)}_b,\quad
  P_0 = P,\ P_1 = I-P,$$

transposed if channels decrease. The $B_i$ are multiplied in pairs $(i, i+m/2)$ while their number m is even. A kernel
of size k > s with stride s is a stride-1 kernel of size k-s+1, followed by an s×s kernel of stride s. If k = s, it is
the s×s kernel alone. Dense weights are orthonormalised; the last layer may normalise its rows instead.

**deel-torchlip** (Serrurier et al., CVPR 2021). In evaluation its spectral layers use the matrix W that Björck's method
left in the last training step; convolutions divide it by $\sqrt{\lceil k/s\rceil^2}$. Without that method they use
$W/\sigma$, $\sigma = u^\top Wv$. Frobenius layers normalise every row. Its GroupSort sorts g channels side by side;
ours sorts channels that lie C/g apart. They agree after the permutation

$$\pi(a + b\,C/g) = a\,g + b,\qquad 0\le a<C/g,\ 0\le b<g,$$

of the rows before it and of the columns after it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from lconvnet.atomic import as_path
from lconvnet.importing.original import block_kernel, cut_off
from lconvnet.importing.plain_networks import Group, Plain, fill, patches, placed, taken, weighted
from lconvnet.layers import Abs, Concat, FullSort, GroupSort, MaxMin, NormPool, Scale, Sum, TwoSidedReLU
from lconvnet.ops.images import is_finite_number
from lconvnet.ops.norm_bounds import self_correlation
from lconvnet.ops.orthogonalize import orthogonalize

ORIGINAL = "parametrizations.weight.original"
TORCHLIP_KEPT = re.compile(r"parametrizations\.weight\.(original|0\._[uv]|1\._w_bjorck)")
TRANSPARENT = (nn.ReLU, nn.Identity, nn.ZeroPad2d, nn.CircularPad2d, nn.Flatten, Abs, Scale)
"""Layers that keep the order of channels."""
ALIKE = {
    *TRANSPARENT, *get_args(Plain), nn.Sequential, nn.ModuleList, Sum, Concat, FullSort, TwoSidedReLU, NormPool,
    nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.MaxPool2d, nn.LPPool2d, nn.PixelShuffle, nn.PixelUnshuffle, nn.Dropout,
    nn.Dropout2d,
}  # fmt: skip
"""Layers that compute the same as theirs if the channels are in the same order."""


def load_torchlip(
    path: str | Path,
    frame: nn.Sequential,
    *,
    k_coef_lip: float | Sequence[float] | None = None,
    disjoint_neurons: bool | None = None,
) -> nn.Sequential:
    """Return the plain network of a state dict of deel-torchlip 1.0.5.

    Reads `SpectralConv2d`, `SpectralLinear` and `FrobeniusLinear`. In the frame, write `lconvnet.layers.GroupSort(2)`,
    or the equal `MaxMin()`, for its `GroupSort2`, and our `FullSort` for its `FullSort`.

    Args:
        path: a `.pth` file that holds a state dict; nothing in it is run.
        frame: the plain network with its strides, paddings and activations (`lconvnet.importing.plain_networks`).
            Write `Scale(k_coef_lip)` behind a GroupSort that has its own `k_coef_lip`. In its
            `Sequential(..., k_coef_lip=K)` of n Lipschitz layers, each layer has the factor K^(1/n), which the weights
            do not include.
        k_coef_lip: the factor that each layer with weights was built with, or one for all. Its default is 1. No file
            states it.
        disjoint_neurons: how a `FrobeniusLinear` with several outputs was built. Its default is True. No file states
            it.

    Raises:
        ValueError: if the file is missing, damaged or would run something, if it does not fit the frame, and if an
            argument is missing that decides the weights.
    """
    factors = iter(_factors(k_coef_lip, len(weighted(frame))))

    def weight(group: Group, layer: Plain) -> Tensor:
        return _weight(group, layer, disjoint_neurons) * next(factors)

    network = fill(as_path(path), frame, weight, TORCHLIP_KEPT)
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
    """Yield the layers in order, including those of nested sequences."""
    for part in network:
        if type(part) is nn.Sequential:
            yield from _steps(part)
        else:
            yield part


@torch.no_grad()
def _regroup(network: nn.Sequential) -> None:
    """Renumber the channels around every GroupSort, so that ours sorts the same groups as theirs."""
    before: nn.Module | None = None
    order: Tensor | None = None
    flattened = False
    for layer in _steps(network):
        if isinstance(layer, Plain):
            if order is not None:  # after a flattening, all pixels of a channel move together
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
            # Their channel for each of ours; MaxMin puts the larger of two first.
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


STEPS = 12  # of orthogonium's Björck iteration
KEPT = re.compile(r"parametrizations\.weight(_[12])?\.(original|0\.(pi\.)?parametrizations\.[uv]\.original)")


def load_compared(path: str | Path, frame: nn.Sequential, layers: Sequence[str]) -> nn.Sequential:
    """Return the plain network of a state dict of "1-Lipschitz layers compared".

    The first layer of the frame may have fewer input channels than the file, and the last layer fewer outputs. The
    input channels left out meet the zeros of a `ZeroChannelPad`; a `FirstChannels` drops the outputs left out.

    Args:
        path: a `.pth` file that holds a state dict; nothing in it is run.
        frame: the plain network with its strides, paddings and activations, see `lconvnet.importing.plain_networks`.
        layers: the class of each layer with weights, in the order of the frame; the names are those in `LAYERS`.

    Raises:
        ValueError: if the file is missing, damaged or would run something, if it does not fit the frame, and for a
            layer that has no equal here or keeps other tensors than its class does.
    """
    for name in layers:
        if name not in LAYERS:
            reason = WITHOUT_EQUAL.get(name, "is not a layer of this library that can be read")
            raise ValueError(f"layers names {name!r}, which {reason}; allowed: {', '.join(LAYERS)}")
    count = len(weighted(frame))
    if len(layers) != count:
        raise ValueError(f"layers names {len(layers)}, but the frame has weights in {count}; name each of them")
    names = iter(enumerate(layers))

    def parameters(group: Group, layer: Plain) -> tuple[Tensor, Tensor | None]:
        index, name = next(names)
        weight, bias = _compared_weight(name, group, layer), group.get("bias")
        if index == 0 and isinstance(layer, nn.Conv2d):
            weight = weight[:, : layer.in_channels]
        if index == count - 1:
            outputs = layer.weight.shape[0]
            weight, bias = weight[:outputs], None if bias is None else bias[:outputs]
        return weight, bias

    return placed(as_path(path), frame, parameters)


def _compared_weight(name: str, group: Group, layer: Plain) -> Tensor:
    known = LAYERS[name]
    if set(group) - {"bias"} not in known.kept:
        expected = " or ".join(", ".join(sorted(names)) for names in known.kept)
        raise ValueError(f"it keeps {', '.join(group)}; {name} keeps {expected}, and a bias at most")
    if not isinstance(layer, known.kind):
        raise ValueError(f"{name} stands for {known.kind.__name__}, the frame has {type(layer).__name__}")
    W = next(value for key, value in group.items() if key in MATRICES).double()
    if W.ndim != known.ndim:
        raise ValueError(f"{name} keeps {known.ndim} dimensions, it has shape {tuple(W.shape)}")
    return known.weight(W, group, layer)


def _aol(W: Tensor, group: Group, layer: Plain) -> Tensor:
    sums = self_correlation(W.transpose(0, 1)).abs().sum((1, 2, 3))
    return W / sums.where(sums > 0, 1).sqrt()[:, None, None]


def _bjorck(W: Tensor, group: Group, layer: Plain) -> Tensor:
    if W.ndim == 4 and W.shape[2:] != (1, 1):
        raise ValueError(f"BjorckConv2d is of size 1x1, it has shape {tuple(W.shape)}")
    return orthogonalize(W.flatten(1)).reshape(W.shape)


def _bcop(W: Tensor, group: Group, layer: Plain) -> Tensor:
    """Return the kernel. The bias states the number of outputs; the factors have the larger number of channels."""
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
    """Return the semi-orthogonal matrix of a free one, tall or wide.

    >>> cayley(torch.zeros(2, 1)).tolist()
    [[1.0], [-0.0]]
    """
    if W.shape[0] < W.shape[1]:
        return cayley(W.mT).mT
    X, Y = W[: W.shape[1]], W[W.shape[1] :]
    Z, identity = X - X.mT + Y.mT @ Y, torch.eye(W.shape[1], dtype=W.dtype)
    return torch.linalg.solve(identity + Z, torch.cat([identity - Z, -2 * Y]), left=False)


class Layer(NamedTuple):
    """The plain layer that replaces one of theirs, the tensors it keeps besides a bias, and its weight from them."""

    kind: type[nn.Conv2d] | type[nn.Linear]
    ndim: int
    kept: tuple[set[str], ...]
    weight: Callable[[Tensor, Group, Plain], Tensor]


MATRICES = ("weight", "conv_matrices", "param_matrices")
LAYERS: Mapping[str, Layer] = {
    "AOLConv2d": Layer(nn.Conv2d, 4, ({"weight"},), _aol),
    "BjorckConv2d": Layer(nn.Conv2d, 4, ({"weight"},), _bjorck),
    "BjorckLinear": Layer(nn.Linear, 2, ({"weight"},), _bjorck),
    "BCOP": Layer(nn.Conv2d, 3, ({"conv_matrices", "mask"}, {"param_matrices", "mask"}), _bcop),
    "CayleyLinear": Layer(nn.Linear, 2, ({"weight", "alpha"},), _cayley),
}
NO_KERNEL = "is not a convolution with a kernel of its own: it computes in the frequency domain or by a series"
RESIDUAL = "is a residual block, which no plain layer is"
WITHOUT_EQUAL = {
    **dict.fromkeys(("CayleyConv", "LOT", "LOT2t", "SOC", "ECO", "SandwichConv", "SandwichFc"), NO_KERNEL),
    **dict.fromkeys(("CPLConv2d", "SLLConv2d"), RESIDUAL),
}


def load_orthogonium(path: str | Path, frame: nn.Sequential) -> nn.Sequential:
    """Return the plain network of a state dict of orthogonium 0.0.4 with its default orthogonalisation.

    Reads `AdaptiveOrthoConv2d` (without groups), `OrthoLinear` and `UnitNormLinear`; its `MaxMin` is ours. Arguments
    and errors are those of `lconvnet.importing.load_plain`.
    """
    return fill(as_path(path), frame, _orthogonium_weight, KEPT)


def _orthogonium_weight(group: Group, layer: Plain) -> Tensor:
    first = group.get("parametrizations.weight_1.original")
    if isinstance(layer, nn.Linear):
        W = taken(group, "parametrizations.weight.original").double()
        spectral = any(".0.parametrizations.u" in name for name in group)
        return cut_off(W, STEPS) if spectral else W / W.norm(dim=1, keepdim=True)
    if first is not None:
        second = taken(group, "parametrizations.weight_2.original")
        inner = bcop_kernel(first, layer.in_channels, second.shape[1])
        return compose(_reshaped(second), inner)
    W = taken(group, "parametrizations.weight.original")
    if any(".pi." in name for name in group):
        return _reshaped(W) / patches(layer)
    return bcop_kernel(W, layer.in_channels, layer.out_channels)


def bcop_kernel(matrices: Tensor, in_channels: int, out_channels: int) -> Tensor:
    """Return the kernel (out, in, k, k) of `matrices` (1, 2k, c, c/2), in float64.

    >>> bcop_kernel(torch.eye(4)[:, :2].expand(1, 6, 4, 2), 3, 4).shape
    torch.Size([4, 3, 3, 3])
    """
    if matrices.ndim != 4 or matrices.shape[0] != 1:
        raise ValueError(f"matrices of shape {tuple(matrices.shape)}; groups cannot be read")
    if matrices.shape[1] < 2 or matrices.shape[1] % 2:
        raise ValueError(f"{matrices.shape[1]} matrices; a kernel of side k has 2 k")
    Y = cut_off(matrices[0].double(), STEPS)
    P = Y @ Y.mT
    identity = torch.eye(P.shape[-1], dtype=P.dtype)
    thin, size = min(in_channels, out_channels), len(P) // 2
    K = ((identity - 2 * P[0]) @ (identity - 2 * P[1]))[:, :thin, None, None]
    blocks = [
        torch.stack([torch.stack([a @ b for b in (q, identity - q)], -1) for a in (p, identity - p)], -2)
        for p, q in zip(P[2 : size + 1], P[size + 1 :], strict=True)
    ]
    while len(blocks) > 1 and len(blocks) % 2 == 0:
        half = len(blocks) // 2
        blocks = [compose(after, before) for before, after in zip(blocks[:half], blocks[half:], strict=True)]
    for block in blocks:
        K = compose(block, K)
    return K if in_channels <= out_channels else K.transpose(0, 1)


def compose(after: Tensor, before: Tensor) -> Tensor:
    """Return the kernel of `after` (p, n, k, k) behind `before` (n, m, l, l), which is (p, m, k + l - 1, k + l - 1).

    >>> compose(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))[0, 0].tolist()
    [[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]
    """
    k, side = after.shape[-1], before.shape[-1]
    K = before.new_zeros(after.shape[0], before.shape[1], k + side - 1, k + side - 1)
    for a, b in product(range(k), range(k)):
        K[..., a : a + side, b : b + side] += torch.einsum("pn,nmxy->pmxy", after[..., a, b], before)
    return K


def _reshaped(W: Tensor) -> Tensor:
    return cut_off(W.double().flatten(1), STEPS).reshape(W.shape)
