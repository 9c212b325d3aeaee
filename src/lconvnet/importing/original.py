"""Weights of the original LConvNet as weights of the same network here.

Its parameters are other coordinates of the same kernels: where a square matrix is orthogonalised and cut, ours is the
part that is used. With U the polar factors of BCOP's `param_matrices`,

    H = U_0 cut to (ci, co),        R_j = the columns of U_j that `mask` keeps,

and the other methods keep their `weight`, RKO a matrix, OSSN also `u` and the divisor `factor`, SVCM a copy of it as
`buffer_weight`; so no two of them keep the same.
In our kernels the polar factor, its limit, stands for Björck's iteration; the baked network has what the original's
steps left. Convolutions are matched by their numbers, and dense layers: those whose names say `linear`, or, where none
does, those whose names do not say `conv`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from lconvnet.baking import bake
from lconvnet.experiments.original.networks import STEPS
from lconvnet.importing.bjorck import cut_off
from lconvnet.importing.pairing import numbered
from lconvnet.importing.pickles import by_module
from lconvnet.kernels import BCOP, OSSN, RKL2NE, RKO, SVCM, FixedBCOP, Kernel, Orthogonal
from lconvnet.layers import ConstrainedLayer, LipschitzConv2d, LipschitzLinear
from lconvnet.ops.block_conv import append_factor
from lconvnet.ops.circular import to_strided
from lconvnet.ops.orthogonalize import orthogonalize

Weights = Mapping[str, Tensor]


def load(model: nn.Module, weights: Weights) -> None:
    """Put the original's weights into the same architecture here; ValueError where they belong to another one.

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
    """The baked network of a model that `load` has filled, its iterated weights as the original left them."""
    network = bake(model)
    for (_, group), (name, layer) in _matched(by_module(weights), model):
        published = PUBLISHED.get(type(layer.kernel))
        if published:
            W = published(group, layer.kernel)
            if isinstance(layer, LipschitzConv2d):
                W = to_strided(W, layer.stride)
            with torch.no_grad():
                network.get_parameter(f"{name}.weight").copy_(W)
    return network


def unfinished(model: nn.Module, weights: Weights) -> float:
    """The largest |1 - s| of the singular values s that the original's steps left, 0 where nothing was iterated.

    The original scales by a power iteration from a random vector, which no file keeps, and `cut_off` by the norm; what
    has converged does not depend on that.
    """
    found = [0.0]
    for (_, group), (_, layer) in _matched(by_module(weights), model):
        key = ITERATED.get(type(layer.kernel))
        if key:
            values = torch.linalg.svdvals(cut_off(group[key].double(), STEPS))
            found.append(float((1 - values).abs().max()))
    return max(found)


def _matched(
    groups: Mapping[str, Weights], model: nn.Module
) -> Iterator[tuple[tuple[str, Weights], tuple[str, ConstrainedLayer]]]:
    """Pair modules with layers by number, dense ones and convolutions apart."""
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
    expected, translate = METHODS[type(kernel)]
    if set(group) != {*expected, "bias"}:
        raise ValueError(
            f"{place} has {', '.join(group)}; {type(kernel).__name__} keeps {', '.join((*expected, 'bias'))}: the "
            "configuration names another method than the weights are of"
        )
    try:
        found = {f"kernel.{key}": value for key, value in translate(group, kernel).items()} | {"bias": group["bias"]}
    except (IndexError, RuntimeError) as error:
        raise ValueError(f"{place} does not fit {type(kernel).__name__}: {str(error).splitlines()[0]}") from None
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


def _same(group: Weights, kernel: Kernel) -> dict[str, Tensor]:
    return {"W": group["weight"]}


def _ossn(group: Weights, kernel: Kernel) -> dict[str, Tensor]:
    return {"W": group["weight"], "u": group["u"], "factor": group["factor"]}


def _dense(group: Weights, kernel: Kernel) -> dict[str, Tensor]:
    return {"V": group["weight"]}


Translate = Callable[[Weights, Kernel], dict[str, Tensor]]
METHODS: Mapping[type[Kernel], tuple[tuple[str, ...], Translate]] = {
    BCOP: (("param_matrices", "mask"), _bcop),
    FixedBCOP: (("param_matrices", "mask"), _bcop),
    RKO: (("weight",), _same),
    RKL2NE: (("weight",), _same),
    SVCM: (("weight", "buffer_weight"), _same),
    OSSN: (("weight", "u", "factor"), _ossn),
    Orthogonal: (("weight",), _dense),
}


def _published_bcop(group: Weights, kernel: Kernel) -> Tensor:
    U = cut_off(group["param_matrices"].double(), STEPS)
    rank = kernel.get_parameter("R").shape[-1]
    return block_kernel(U, vars(kernel)["in_channels"], vars(kernel)["out_channels"], rank)


def block_kernel(U: Tensor, in_channels: int, out_channels: int, rank: int) -> Tensor:
    """The kernel (out, in, k, k) of BCOP's 2k - 1 matrices U (c, c) after orthogonalisation.

    >>> block_kernel(torch.eye(4).expand(5, 4, 4), 4, 3, 2).shape
    torch.Size([3, 4, 3, 3])
    """
    H = U[0, :in_channels, :out_channels]
    K = (H if in_channels <= out_channels else H.mT)[None, None]
    for index, R in enumerate(U[1:, :, :rank]):
        kept = K @ R @ R.mT
        K = append_factor(kept, K - kept, index % 2)
    return K.permute(3, 2, 1, 0) if in_channels <= out_channels else K.permute(2, 3, 1, 0)


def _published_rko(group: Weights, kernel: Kernel) -> Tensor:
    k = vars(kernel)["kernel_size"]
    U = cut_off(group["weight"].double(), STEPS)
    return U.unflatten(1, (vars(kernel)["in_channels"], k, k)) / k


def _published_dense(group: Weights, kernel: Kernel) -> Tensor:
    return cut_off(group["weight"].double(), STEPS)


PUBLISHED: Mapping[type[Kernel], Callable[[Weights, Kernel], Tensor]] = {
    BCOP: _published_bcop,
    FixedBCOP: _published_bcop,
    RKO: _published_rko,
    Orthogonal: _published_dense,
}
"""The weights that come out of Björck's iteration, after the original's number of steps."""
ITERATED: Mapping[type[Kernel], str] = {
    BCOP: "param_matrices",
    FixedBCOP: "param_matrices",
    RKO: "weight",
    Orthogonal: "weight",
}
"""The matrices that go into it."""
