"""The Lipschitz bound of a network: one rule an operation, carried through its graph; the Jacobian from below."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from numbers import Real
from typing import get_args

from torch import Tensor, nn

from lconvnet import allowance
from lconvnet.bounds.fingerprint import fingerprint, program
from lconvnet.bounds.folding import Folding
from lconvnet.bounds.function_rules import Functions
from lconvnet.bounds.graph import INPUT
from lconvnet.bounds.lower import network_lower
from lconvnet.bounds.propagation import Groups
from lconvnet.bounds.rules import RULES
from lconvnet.bounds.types import Bound, LayerBound, Method, Operation
from lconvnet.bounds.walk import Trace, in_float64, trace
from lconvnet.ops.rounding import float_up

KEPT = 128
"""Bytes of a number while a network is differentiated twice, at four points in float64."""

KEPT_ONCE = 64
"""The same of a layer at one point."""

ROUNDING = 1e-9
"""How far a lower bound may lie above the upper one before it is no longer round-off of the power iteration."""


def lipschitz_bound(
    network: nn.Module,
    *,
    input_shape: Sequence[int] | None = None,
    method: Method = "auto",
    diagnose: bool = True,
) -> Bound:
    """Bound the l2 Lipschitz constant of a baked network.

        upper >= L >= lower

    ``upper`` is the product over a chain, the sum over branches that are added, the root of the sum of squares over
    what is concatenated, the maximum over branches that read disjoint parts (:mod:`lconvnet.bounds.propagation`), and
    the norm of the joint map where no activation lies between (:mod:`lconvnet.bounds.folding`). It is computed in
    float64 on the CPU from the weights as they are stored, and rounded outward.

    Args:
        network: a baked network: modules with a rule (:data:`lconvnet.bounds.rules.RULES`), in an ``nn.Sequential`` or
            called by a forward pass of your own, beside functions such as sums, concatenation and slices
            (:data:`lconvnet.bounds.functions.HANDLERS`). For others see :func:`lconvnet.bounds.register_rule`.
        input_shape: shape of one image, ``(C, H, W)``. Gives tighter bounds for circular convolutions, and
            lower bounds; none of a network or layer so deep or wide that they would take more memory than its
            weights allow (:mod:`lconvnet.allowance`). A network with functions needs it.
        method: "auto" takes, for each layer, the residual certificate where it is nearly orthogonal, else the
            least of the Gram bounds; "spectrum" takes the exact spectrum at the true size, for networks of
            circular convolutions.
        diagnose: compute lower bounds too, and compare. That takes most of the time; ``upper`` is the same.

    Returns:
        The bound with those of its layers. Without ``input_shape`` see :attr:`Bound.input_shape` for the
        sizes it holds at.

    Raises:
        ValueError: names the module or function that has no rule, is unsound as configured, or has non-finite weights.
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
    traced = trace(network, input_shape)
    bound = bound_of(traced, network, method)
    return _diagnosed(network, traced, bound) if diagnose else bound


def bound_of(traced: Trace, network: nn.Module, method: Method = "auto") -> Bound:
    """The bound without lower bounds of a network that was just traced, and has not changed since."""
    layers = _propagated(traced, method)
    upper = next((layer.reach for layer in reversed(layers) if layer.reach is not None), 1.0)
    shape = traced.graph.nodes[0].shape
    return Bound(upper, None, layers, input_shape=shape, fingerprint=fingerprint(network), program=program(traced))


def _propagated(traced: Trace, method: Method) -> tuple[LayerBound, ...]:
    """The bounds of the operations, each with its reach from the input; the last one is the output's."""
    groups = Groups()
    functions, folding, layers, values = Functions(traced, groups), Folding(traced), [], {INPUT: groups.input}
    for node in traced.graph.nodes[1:]:
        if node.name in traced.operations:
            operation = traced.operations[node.name]
            layer = _ruled(operation, method)
            values[node.name] = groups.scaled(values[node.inputs[0]], layer.upper)
        else:
            values[node.name], constant = functions.apply(node, values)
            layer = LayerBound(node.name, constant, None, node.operation)
        folded = folding.visit(node) if method == "auto" else None
        if folded is not None:
            source, upper = folded
            joint = groups.scaled(values[source], upper)
            values[node.name] = min(joint, values[node.name], key=groups.norm)
        layers.append(replace(layer, reach=groups.norm(values[node.name])))
    return tuple(layers)


def _ruled(operation: Operation, method: Method) -> LayerBound:
    """What the rule of an operation says, if that is a bound."""
    layer = RULES[type(operation.module)](operation, method)
    upper = layer.upper if isinstance(layer, LayerBound) else None
    upper = upper.item() if isinstance(upper, Tensor) and upper.numel() == 1 else upper
    if not isinstance(upper, Real) or isinstance(upper, bool) or not upper >= 0:
        raise operation.refuse(
            f"has a rule that returns {layer!r}: a rule returns a LayerBound whose upper is a number of at least 0"
        )
    return replace(layer, name=operation.name, upper=float_up(upper))  # pyright: ignore[reportArgumentType]


def _diagnosed(network: nn.Module, traced: Trace, bound: Bound) -> Bound:
    """Add lower bounds, of the layers and of the network. Raises RuntimeError where one lies above the upper bound."""
    shape = bound.input_shape
    lower = network_lower(in_float64(network, traced.graph), shape) if shape and _has_room(traced) else None
    layers = tuple(_with_lower(traced, layer) for layer in bound.layers)
    for layer in layers:
        kind = traced.graph[layer.name].operation.rpartition(".")[2]
        _check_order(f"layer {layer.name!r} ({kind})", layer.lower, layer.upper)
    _check_order("the network as a whole", lower, bound.upper)
    return replace(bound, lower=lower, layers=layers)


def _has_room(traced: Trace) -> bool:
    """Whether the network may be differentiated as a whole, which keeps what every operation returns."""
    size = sum(tensor.nbytes for step in traced.operations.values() for tensor in step.module.parameters())
    return KEPT * _numbers(node.shape for node in traced.graph.nodes) <= allowance.allowed(size)


def _layer_has_room(traced: Trace, operation: Operation) -> bool:
    """Whether a layer may be differentiated by itself."""
    size = sum(tensor.nbytes for tensor in operation.module.parameters())
    numbers = _numbers([operation.input_shape, traced.graph[operation.name].shape])
    return KEPT_ONCE * numbers <= allowance.allowed(size)


def _numbers(shapes: Iterable[tuple[int, ...] | None]) -> int:
    return sum(math.prod(shape or ()) for shape in shapes)


def _with_lower(traced: Trace, layer: LayerBound) -> LayerBound:
    operation = traced.operations.get(layer.name)
    if operation is None or layer.lower is not None or not _layer_has_room(traced, operation):
        return layer
    module, shape = operation.module, operation.input_shape
    shape = (module.in_features,) if type(module) is nn.Linear else shape
    return layer if shape is None else replace(layer, lower=network_lower(operation.parts, shape, points=1))


def _check_order(what: str, lower: float | None, upper: float) -> None:
    if lower is not None and lower > upper * (1 + ROUNDING):
        raise RuntimeError(
            f"{what} has a lower bound {lower!r} above its upper bound {upper!r}: one of them is wrong, nothing "
            "may be certified; please report the layer"
        )
