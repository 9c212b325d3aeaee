"""Weights of the original LConvNet as weights of the same network here.

Its parameters are other coordinates of the same kernels: where a square matrix is orthogonalised and cut, ours is the
part that is used. With U the polar factors of BCOP's `param_matrices`,

    H = U_0 cut to (ci, co),        R_j = the columns of U_j that `mask` keeps,

and the other methods keep their `weight`, OSSN also `u` and the divisor `factor`; SVCM's `buffer_weight` is a copy.
Björck's iteration stands for its limit. Modules are matched in order, so the names that an architecture gives to its
layers do not matter.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from lconvnet.importing.pickles import by_module
from lconvnet.kernels import BCOP, OSSN, RKL2NE, RKO, SVCM, FixedBCOP, Kernel, Orthogonal
from lconvnet.layers import ConstrainedLayer
from lconvnet.ops.orthogonalize import orthogonalize

Weights = Mapping[str, Tensor]
STEPS = 20  # of Björck's iteration, order 1, in the original
TOLERANCE = 1e-5  # what float32 leaves of singular values that are 1

logger = logging.getLogger("lconvnet")


def load(model: nn.Module, weights: Weights) -> None:
    """Put the original's weights into the same architecture here; ValueError where they belong to another one.

    >>> from lconvnet.models import mlp
    >>> model = mlp(4, 2, widths=(4,))
    >>> rows = {f"{n}.weight": torch.eye(4)[:r] for n, r in (("1.linear0", 4), ("1.linear1", 2))}
    >>> load(model, rows | {"1.linear0.bias": torch.zeros(4), "1.linear1.bias": torch.zeros(2)})
    >>> model.linear2.weight.tolist()
    [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, ConstrainedLayer)}
    groups = by_module(weights)
    if len(groups) != len(layers):
        raise ValueError(
            f"weights of {len(groups)} layers ({', '.join(groups)}), but the network of the configuration has "
            f"{len(layers)} ({', '.join(layers)}); they belong to another architecture"
        )
    unfinished: list[str] = []
    translated: dict[str, Tensor] = {}
    for (place, group), (name, layer) in zip(groups.items(), layers.items(), strict=True):
        for key, value in _translated(place, group, layer).items():
            translated[f"{name}.{key}"] = value
        if type(layer.kernel) in ORTHOGONALISED and not _converged(_matrices(group)):
            unfinished.append(place)
    if unfinished:
        logger.warning(
            "%s: the original's %d steps had not made these weights orthogonal; here they are, so outputs may differ",
            ", ".join(unfinished),
            STEPS,
        )
    model.load_state_dict(translated)


def _matrices(group: Weights) -> Tensor:
    """What the original orthogonalises of a layer."""
    return group["param_matrices"] if "param_matrices" in group else group["weight"].flatten(1)


def _converged(matrices: Tensor) -> bool:
    """Whether Björck's steps s -> 1.5 s - 0.5 s^3, from norm 1, had taken all singular values to 1."""
    s = torch.linalg.svdvals(matrices.double())
    s = s / s.amax(-1, keepdim=True)
    for _ in range(STEPS):
        s = 1.5 * s - 0.5 * s**3
    return bool((s > 1 - TOLERANCE).all())


def _translated(place: str, group: Weights, layer: ConstrainedLayer) -> dict[str, Tensor]:
    kernel = layer.kernel
    expected, translate = METHODS[type(kernel)]
    if set(group) - {"buffer_weight"} != {*expected, "bias"}:
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


def _flat(group: Weights, kernel: Kernel) -> dict[str, Tensor]:
    return {"W": group["weight"].flatten(1)}


def _ossn(group: Weights, kernel: Kernel) -> dict[str, Tensor]:
    return {"W": group["weight"], "u": group["u"], "factor": group["factor"]}


def _dense(group: Weights, kernel: Kernel) -> dict[str, Tensor]:
    return {"V": group["weight"]}


Translate = Callable[[Weights, Kernel], dict[str, Tensor]]
METHODS: Mapping[type[Kernel], tuple[tuple[str, ...], Translate]] = {
    BCOP: (("param_matrices", "mask"), _bcop),
    FixedBCOP: (("param_matrices", "mask"), _bcop),
    RKO: (("weight",), _flat),
    RKL2NE: (("weight",), _same),
    SVCM: (("weight",), _same),
    OSSN: (("weight", "u", "factor"), _ossn),
    Orthogonal: (("weight",), _dense),
}
ORTHOGONALISED = (BCOP, FixedBCOP, RKO, Orthogonal)
