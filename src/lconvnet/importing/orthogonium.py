r"""Weights of orthogonium (Boissin et al., "Adaptive orthogonal convolution", ICML 2025) as plain ones.

With $Y_j$ the orthonormalised matrices it keeps and $P_j = Y_jY_j^\top$, its stride-1 kernel is

$$K = B_{k-1}\,\square\cdots\square\,B_1\,\square\,(I-2P_0)(I-2P_1),\qquad B_i[a,b] = P^{(i)}_aQ^{(i)}_b,\quad
  P_0 = P,\ P_1 = I-P,$$

transposed where channels decrease; the $B_i$ are multiplied in pairs $(i, i+m/2)$ while m, their number, is even. A
kernel with stride s is an s×s one of stride s after such a one of size k-s+1, and of size k = s the s×s one alone.
Dense weights are orthonormalised; the rows of the last one may be normalised instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from lconvnet.atomic import as_path
from lconvnet.importing.bjorck import cut_off
from lconvnet.importing.frames import Plain, fill, patches, taken

STEPS = 12  # of Björck's iteration
KEPT = re.compile(r"parametrizations\.weight(_[12])?\.(original|0\.(pi\.)?parametrizations\.[uv]\.original)")


def load_orthogonium(path: str | Path, frame: nn.Sequential) -> nn.Sequential:
    """Return the plain network of a state dict of orthogonium 0.0.4 with its default orthogonalisation.

    Its `AdaptiveOrthoConv2d` (without groups), `OrthoLinear` and `UnitNormLinear` are read; its `MaxMin` is ours.

    Args:
        path: a `.pth` file that holds a state dict; nothing in it is run.
        frame: the plain network with its strides, paddings and activations, see `lconvnet.importing.frames`.

    Raises:
        ValueError: for a file that is missing, damaged, or would run something, and where it does not fit the frame.
    """
    return fill(as_path(path), frame, _weight, KEPT)


def _weight(group: Mapping[str, Tensor], layer: Plain) -> Tensor:
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
    """The kernel (out, in, k, k) of `matrices` (1, 2k, c, c/2), in float64.

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
    blocks = [_block(p, q) for p, q in zip(P[2 : size + 1], P[size + 1 :], strict=True)]
    while len(blocks) > 1 and len(blocks) % 2 == 0:
        half = len(blocks) // 2
        blocks = [compose(after, before) for before, after in zip(blocks[:half], blocks[half:], strict=True)]
    for block in blocks:
        K = compose(block, K)
    return K if in_channels <= out_channels else K.transpose(0, 1)


def compose(after: Tensor, before: Tensor) -> Tensor:
    """The kernel of one convolution after another: (p, n, k, k) after (n, m, l, l) is (p, m, k + l - 1, k + l - 1).

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


def _block(P: Tensor, Q: Tensor) -> Tensor:
    """The elementary 2×2 kernel of two projectors."""
    identity = torch.eye(len(P), dtype=P.dtype)
    return torch.stack([torch.stack([p @ q for q in (Q, identity - Q)], -1) for p in (P, identity - P)], -2)
