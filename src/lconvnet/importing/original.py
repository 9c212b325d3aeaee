"""Weights of the original LConvNet as weights of the same network here.

Its parameters are other coordinates of the same kernels. The original orthogonalises a square matrix and cuts it; ours
is the part that is used. With U the polar factors of BCOP's `param_matrices`,

    H = U_0 cut to (ci, co),        R_j = the columns of U_j that `mask` keeps.

The other methods keep their `weight`: RKO a matrix, OSSN also `u` and the divisor `factor`, SVCM a copy of it as
`buffer_weight`. So no two of them keep the same.

Our kernels use the polar factor, the limit of Björck's iteration; the baked network has the result of the original's
steps. Convolutions are matched by their numbers, and so are dense layers: those whose names contain `linear`, or, if
none does, those whose names do not contain `conv`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lconvnet.baking import bake
from lconvnet.experiments.original import STEPS
from lconvnet.importing.pickles import by_module
from lconvnet.importing.plain_networks import numbered
from lconvnet.kernels import BCOP, OSSN, RKL2NE, RKO, SVCM, FixedBCOP, Kernel, Orthogonal
from lconvnet.layers import ConstrainedLayer, LipschitzConv2d, LipschitzLinear
from lconvnet.ops.block_conv import append_factor
from lconvnet.ops.circular import to_strided
from lconvnet.ops.orthogonalize import orthogonalize
from lconvnet.ops.polynomials import bjorck_step

Weights = Mapping[str, Tensor]


def load(model: nn.Module, weights: Weights) -> None:
    """Put the original's weights into the same architecture here. Raises ValueError if they belong to another one.

    >>> from lconvnet.models import mlp
    >>> model = mlp(4, 2, widths=(4,))
    >>> rows = {f"{n}.weight": torch.eye(4)[:r] for n, r in (("1.linear0", 4), ("1.linear1", 2))}
    >>> load(model, rows | {"1.linear0.bias": torch.zeros(4), "1.linear1.bias": torch.zeros(2)})
    >>> model.linear2.weight.round(decimals=6).tolist()
    [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]
    """
    translated: dict[str, Tensor] = {}
    for (place, group), (name, layer) in _matched(by_module(weights), model):
        translated |= {f"{name}.{key}": value for key, value in _translated(place, group, layer).items()}
    model.load_state_dict(translated)


def baked(model: nn.Module, weights: Weights) -> nn.Module:
    """Return the baked network of a model that `load` has filled, its iterated weights as the original left them."""
    network = bake(model)
    for name, layer, U in _iterated(model, weights):
        W = METHODS[type(layer.kernel)].weight(U, layer.kernel)
        if isinstance(layer, LipschitzConv2d):
            W = to_strided(W, layer.stride)
        with torch.no_grad():
            network.get_parameter(f"{name}.weight").copy_(W)
    return network


def unfinished(model: nn.Module, weights: Weights) -> float:
    """Return the largest |1 - s| over the singular values s that the original's steps left, or 0 without iterations.

    The original scales by a power iteration from a random vector, which no file keeps; `cut_off` scales by the norm.
    Values that have converged do not depend on that.
    """
    found = (float((1 - torch.linalg.svdvals(U)).abs().max()) for _, _, U in _iterated(model, weights))
    return max(found, default=0.0)


def cut_off(W: Tensor, steps: int) -> Tensor:
    """Return matrices (..., m, n) after division by their norm and some steps of Björck's iteration of order 1.

    Libraries cut the iteration off, so its unfinished result is part of their weights. Singular values are at most 1.

    >>> cut_off(torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64)), 12).diagonal().tolist()
    [1.0, 1.0]

    Raises ValueError for a matrix of zeros.
    """
    if W.shape[-2] > W.shape[-1]:
        return cut_off(W.mT, steps).mT
    norm = torch.linalg.matrix_norm(W, 2)[..., None, None]
    if not bool((norm > 0).all()):
        raise ValueError("a matrix of zeros has no direction that Björck's iteration could keep")
    W = W / norm
    for _ in range(steps):
        W = bjorck_step(W, 1)
    return W


def block_kernel(U: Tensor, in_channels: int, out_channels: int, rank: int) -> Tensor:
    """Return the kernel (out, in, k, k) of BCOP's 2k - 1 matrices U (c, c) after orthogonalisation.

    >>> block_kernel(torch.eye(4).expand(5, 4, 4), 4, 3, 2).shape
    torch.Size([3, 4, 3, 3])
    """
    H = U[0, :in_channels, :out_channels]
    K = (H if in_channels <= out_channels else H.mT)[None, None]
    for index, R in enumerate(U[1:, :, :rank]):
        kept = K @ R @ R.mT
        K = append_factor(kept, K - kept, index % 2)
    return K.permute(3, 2, 1, 0) if in_channels <= out_channels else K.permute(2, 3, 1, 0)


def _iterated(model: nn.Module, weights: Weights) -> Iterator[tuple[str, ConstrainedLayer, Tensor]]:
    """Yield the layers whose matrices go through Björck's iteration, and the result of the original's steps."""
    for (_, group), (name, layer) in _matched(by_module(weights), model):
        if key := METHODS[type(layer.kernel)].iterated:
            yield name, layer, cut_off(group[key].double(), STEPS)


def _matched(
    groups: Mapping[str, Weights], model: nn.Module
) -> Iterator[tuple[tuple[str, Weights], tuple[str, ConstrainedLayer]]]:
    """Pair modules with layers by number, dense layers and convolutions separately."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, ConstrainedLayer)}
    named = any("linear" in place for place in groups)
    for dense in (False, True):
        is_dense = {place: "linear" in place if named else "conv" not in place for place in groups}
        theirs = {place: group for place, group in groups.items() if is_dense[place] == dense}
        ours = {name: layer for name, layer in layers.items() if isinstance(layer, LipschitzLinear) == dense}
        if len(theirs) != len(ours):
            kind = "dense layers" if dense else "convolutions"
            raise ValueError(
                f"weights of {len(theirs)} {kind} ({', '.join(theirs)}), but the network of the configuration has "
                f"{len(ours)} ({', '.join(ours)}); they belong to another architecture"
            )
        ordered = ((place, theirs[place]) for place in numbered(list(theirs)))
        yield from zip(ordered, ours.items(), strict=True)


def _translated(place: str, group: Weights, layer: ConstrainedLayer) -> dict[str, Tensor]:
    kernel = layer.kernel
    method, expected = METHODS[type(kernel)], (*METHODS[type(kernel)].kept, "bias")
    if set(group) != set(expected):
        raise ValueError(
            f"{place} has {', '.join(group)}; {type(kernel).__name__} keeps {', '.join(expected)}: the configuration "
            "names another method than the weights are of"
        )
    try:
        own = method.translate(group, kernel)
    except (IndexError, RuntimeError) as error:
        raise ValueError(f"{place} does not fit {type(kernel).__name__}: {str(error).splitlines()[0]}") from None
    found = {**{f"kernel.{key}": value for key, value in own.items()}, "bias": group["bias"]}
    for key, value in layer.state_dict().items():
        if found[key].shape != value.shape:
            raise ValueError(f"{place}: {key} has shape {tuple(found[key].shape)}, expected {tuple(value.shape)}")
    return found


def _bcop(group: Weights, kernel: Kernel) -> dict[str, Tensor]:
    factors, mask = group["param_matrices"], group["mask"]
    U = orthogonalize(factors.double()).to(factors.dtype)
    wide, rank = kernel.get_parameter("R").shape[1:]
    expected = (torch.arange(wide) < rank).to(mask.dtype).expand(len(U) - 1, 1, wide)
    if not torch.equal(mask, expected):
        raise ValueError(f"mask does not keep the first {rank} of {wide} columns; only mask_half: true can be read")
    in_channels, out_channels = vars(kernel)["in_channels"], vars(kernel)["out_channels"]
    H = U[0, :in_channels, :out_channels]
    return {"H": H if in_channels <= out_channels else H.mT, "R": U[1:, :, :rank]}


def _bcop_weight(U: Tensor, kernel: Kernel) -> Tensor:
    rank = kernel.get_parameter("R").shape[-1]
    return block_kernel(U, vars(kernel)["in_channels"], vars(kernel)["out_channels"], rank)


def _rko_weight(U: Tensor, kernel: Kernel) -> Tensor:
    k = vars(kernel)["kernel_size"]
    return U.unflatten(1, (vars(kernel)["in_channels"], k, k)) / k


def _renamed(**names: str) -> Callable[[Weights, Kernel], dict[str, Tensor]]:
    """Return a translation that only renames: ours -> theirs."""
    return lambda group, kernel: {ours: group[theirs] for ours, theirs in names.items()}


@dataclass(frozen=True)
class Method:
    """The tensors that a layer of the original keeps besides its bias, and their translation to our kernel.

    `iterated` names the matrices that go through Björck's iteration; `weight` makes the layer's weight from the result.
    """

    kept: tuple[str, ...]
    translate: Callable[[Weights, Kernel], dict[str, Tensor]]
    iterated: str = ""
    weight: Callable[[Tensor, Kernel], Tensor] = lambda U, kernel: U


_BCOP = Method(("param_matrices", "mask"), _bcop, "param_matrices", _bcop_weight)
METHODS: Mapping[type[Kernel], Method] = {
    BCOP: _BCOP,
    FixedBCOP: _BCOP,
    RKO: Method(("weight",), _renamed(W="weight"), "weight", _rko_weight),
    RKL2NE: Method(("weight",), _renamed(W="weight")),
    SVCM: Method(("weight", "buffer_weight"), _renamed(W="weight")),
    OSSN: Method(("weight", "u", "factor"), _renamed(W="weight", u="u", factor="factor")),
    Orthogonal: Method(("weight",), _renamed(V="weight"), "weight"),
}
