"""The Lipschitz bound of a sequential network: one rule an operation, the product from above, the Jacobian
from below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

from torch import nn

from lconvnet.bounds.fingerprint import fingerprint
from lconvnet.bounds.lower import network_lower
from lconvnet.bounds.rules import RULES
from lconvnet.bounds.types import Bound, LayerBound, Method, Operation
from lconvnet.bounds.walk import operations
from lconvnet.ops.rounding import product_up

ROUNDING = 1e-9
"""How far a lower bound may lie above the upper one before it is no longer round-off of the power iteration."""


def lipschitz_bound(
    network: nn.Module,
    *,
    input_shape: tuple[int, ...] | None = None,
    method: Method = "auto",
    diagnose: bool = True,
) -> Bound:
    """Bound the l2 Lipschitz constant of a baked network.

        upper = prod_l upper_l >= L >= lower                                    (methods.md C.2)

    Upper bounds are computed in float64 on the CPU from the weights as they are stored, and rounded outward.

    Args:
        network: a baked network: an ``nn.Sequential`` of operations with a rule
            (:data:`lconvnet.bounds.rules.RULES`).
        input_shape: shape of one image, ``(C, H, W)``. Gives tighter bounds for circular convolutions, and
            lower bounds.
        method: "auto" takes, for each layer, the residual certificate where it is nearly orthogonal, else the
            least of the Gram bounds; "spectrum" takes the exact spectrum at the true size, for networks of
            circular convolutions.
        diagnose: compute lower bounds too, and compare. That takes most of the time; ``upper`` is the same.

    Returns:
        The bound with those of its layers. Without ``input_shape`` see :attr:`Bound.input_shape` for the
        sizes it holds at.

    Raises:
        ValueError: names the module that has no rule, is unsound as configured, or has non-finite weights.
        RuntimeError: a lower bound lies above the upper one, so one of them is wrong: an incident.

    >>> from lconvnet import bake
    >>> from lconvnet.models import mlp
    >>> bound = lipschitz_bound(bake(mlp(16, 4, widths=(8,))), input_shape=(1, 4, 4))
    >>> 0.999 < bound.lower <= bound.upper < 1.00001
    True
    """
    if method not in get_args(Method):
        raise ValueError(f"method={method!r} is unknown: use one of {get_args(Method)}")
    if method == "spectrum" and input_shape is None:
        raise ValueError(
            "input_shape=None: method='spectrum' is exact at one image size only, pass input_shape=(C, H, W)"
        )
    shape = None if input_shape is None else tuple(input_shape)
    steps = operations(network, shape)
    layers = tuple(RULES[type(step.module)](step, method) for step in steps)
    bound = Bound(
        product_up(layer.upper for layer in layers), None, layers, input_shape=shape, fingerprint=fingerprint(network)
    )
    return _diagnosed(network, steps, bound) if diagnose else bound


def _diagnosed(network: nn.Module, steps: Sequence[Operation], bound: Bound) -> Bound:
    """Add lower bounds, of the layers and of the network. Raises RuntimeError where one lies above the upper bound."""
    lower = None if bound.input_shape is None else network_lower(network, bound.input_shape)
    layers = tuple(
        replace(layer, lower=_layer_lower(step, layer)) for step, layer in zip(steps, bound.layers, strict=True)
    )
    for step, layer in zip(steps, layers, strict=True):
        _check_order(f"layer {layer.name!r} ({type(step.module).__name__})", layer.lower, layer.upper)
    _check_order("the network as a whole", lower, bound.upper)
    return replace(bound, lower=lower, layers=layers)


def _layer_lower(step: Operation, layer: LayerBound) -> float | None:
    shape = (step.module.in_features,) if isinstance(step.module, nn.Linear) else step.input_shape
    if layer.lower is not None or shape is None:
        return layer.lower
    return network_lower(step.parts, shape, points=1)


def _check_order(what: str, lower: float | None, upper: float) -> None:
    if lower is not None and lower > upper * (1 + ROUNDING):
        raise RuntimeError(
            f"{what} has a lower bound {lower!r} above its upper bound {upper!r}: one of them is wrong, nothing "
            "may be certified; please report the layer"
        )
