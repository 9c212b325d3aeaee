"""The Lipschitz bound of a network: rules of operations from above, carried through its graph; Jacobians from below."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import count
from numbers import Real
from typing import Any, get_args

import torch
from torch import Tensor, nn

from lconvnet import allowance
from lconvnet.bounds.attributes import fingerprint, program
from lconvnet.bounds.folding import Folding
from lconvnet.bounds.forward_error import IMAGE, ZERO, AffineBound, Arithmetic, ErrorBounds, Setting
from lconvnet.bounds.operations import FUNCTIONS, operation_named, operation_of
from lconvnet.bounds.propagation import Propagation
from lconvnet.bounds.tracing import in_float64, trace
from lconvnet.bounds.types import Bound, Graph, LayerBound, Method, ModuleCall, Node, Trace
from lconvnet.layers import Scale
from lconvnet.ops.rounding import TooManyError, float_up, product_up

KEPT = 128
"""Bytes per number while a network is differentiated twice, at four points in float64."""

KEPT_ONCE = 64
"""Bytes per number while a layer is differentiated twice, at one point in float64."""

ROUNDING = 1e-9
"""A lower bound is reduced by this fraction, far more than float64 can have added. It may exceed the upper bound by the
same fraction, as round-off of the power iteration."""


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
    branches that are concatenated, the maximum over branches that read disjoint parts
    (:mod:`lconvnet.bounds.propagation`), and the norm of the joint map if no activation lies between
    (:mod:`lconvnet.bounds.folding`). It is computed in float64 on the CPU from the stored weights and rounded outward.

    Args:
        network: a baked network: modules of :mod:`lconvnet.bounds.operations`, in an ``nn.Sequential`` or called by a
            forward pass of your own, which may also use functions such as sums, concatenation and slices. For others
            see :func:`lconvnet.register_operation`.
        input_shape: shape of one image, ``(C, H, W)``. It gives tighter bounds for circular convolutions, and lower
            bounds, except for a network or layer that would need more memory than its weights allow
            (:mod:`lconvnet.allowance`). A network with functions needs it.
        method: "auto" takes the residual bound of a nearly orthogonal layer, and the least of the Gram bounds of any
            other; "spectrum" takes the exact spectrum at the true size, for networks of circular convolutions.
        diagnose: also compute lower bounds, and compare. This takes most of the time and does not change ``upper``.

    Returns:
        The bound of the network and of its layers. Without ``input_shape``, :attr:`Bound.input_shape` says at which
        sizes it holds.

    Raises:
        ValueError: names a module or function that has no rule, is unsound as configured, or has non-finite weights.
        RuntimeError: if a lower bound lies above the upper one. Then one of them is wrong: please report it.

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
    """The bound, without lower bounds, of a network that has not changed since it was traced."""
    layers = _propagated(traced, method)
    upper = next((layer.reach for layer in reversed(layers) if layer.reach is not None), 1.0)
    shape = traced.graph.nodes[0].shape
    return Bound(upper, None, layers, input_shape=shape, fingerprint=fingerprint(network), program=program(traced))


def _propagated(traced: Trace, method: Method) -> tuple[LayerBound, ...]:
    """The bounds of the operations, each with its reach from the input; the last one is the output's."""
    at, folding, layers = Propagation(traced), Folding(traced), []
    for node in traced.graph.nodes[1:]:
        if node.name in traced.calls:
            layer = _ruled(traced.calls[node.name], method)
            at.values[node.name], _ = at.stretched(node, layer.upper)
        else:
            at.values[node.name], constant = FUNCTIONS[node.operation].rule(at, node)
            layer = LayerBound(node.name, constant, None, node.operation)
        folded = folding.visit(node) if method == "auto" else None
        if folded is not None:
            source, upper = folded
            at.values[node.name] = min(at.scaled(at.values[source], upper), at.values[node.name], key=at.norm)
        layers.append(replace(layer, reach=at.norm(at.values[node.name])))
    return tuple(layers)


def _ruled(call: ModuleCall, method: Method) -> LayerBound:
    """The result of a module's rule, after a check that it is a bound."""
    operation = operation_of(call.module)
    if operation is None:  # it had a record when it was traced
        raise call.refuse("has no Lipschitz rule any more")
    if not operation.registered:
        return operation.rule(call, method)
    answer = operation.rule(call)
    upper: Any = answer.item() if isinstance(answer, Tensor) and answer.numel() == 1 else answer
    if not _is_constant(upper):
        raise call.refuse(f"has a rule that returns {answer!r}: a rule returns a finite number of at least 0")
    return LayerBound(call.name, float_up(upper), None, "registered")


def _is_constant(number: Any) -> bool:
    return isinstance(number, Real) and not isinstance(number, bool) and bool(0 <= number < math.inf)  # pyright: ignore[reportOperatorIssue]


def forward_error(
    graph: Graph, uppers: Mapping[str, float], tensors: Mapping[str, Tensor], arithmetic: Arithmetic
) -> dict[str, ErrorBounds]:
    """Bounds on the values that each node stores in floating point, by name.

    The graph must have a known image size; see :class:`lconvnet.bounds.forward_error.Setting`. Raises ``ValueError``
    for an operation without a rule, and for sums too long for the arithmetic.
    """
    shapes = {node.name: node.shape for node in graph.nodes if node.shape is not None}
    if len(shapes) < len(graph.nodes):
        raise ValueError("graph is of no known image size, on which its rounding depends: pass input_shape to trace")
    setting = Setting(uppers, tensors, shapes, arithmetic)
    stored = {graph.nodes[0].name: ErrorBounds(IMAGE, ZERO, IMAGE)}
    for node in graph.nodes[1:]:
        try:
            stored[node.name] = _rounded(node, [stored[name] for name in node.inputs], setting)
        except TooManyError:
            raise ValueError(
                f"network node {node.name!r} ({node.operation}) adds up more numbers than their rounding is bounded "
                f"for in its dtype, {0.5 / arithmetic.unit:.0f}: certify network.double(), or smaller images"
            ) from None
    return stored


def _rounded(node: Node, inputs: Sequence[ErrorBounds], setting: Setting) -> ErrorBounds:
    """The result of a node's rounding rule, after a check that it is a bound."""
    operation = operation_named(node.operation)
    if operation is None or operation.rounding is None:
        raise ValueError(
            f"network node {node.name!r} ({node.operation}) has no rule for its rounding, and none is assumed: give "
            "lconvnet.register_operation one, rounding=...; only level 'estimate' needs none"
        )
    found = operation.rounding(node, inputs, setting)
    if operation.registered and not _bounds(found):
        raise ValueError(
            f"network node {node.name!r} ({node.operation}) has a rounding that returns {found!r}: it returns "
            "ErrorBounds whose AffineBounds have numbers of at least 0"
        )
    return found


def _bounds(found: Any) -> bool:
    parts = (found.norm, found.error, found.peak) if isinstance(found, ErrorBounds) else (None,)
    return all(isinstance(part, AffineBound) and part.slope >= 0 and part.offset >= 0 for part in parts)


def _diagnosed(network: nn.Module, traced: Trace, bound: Bound) -> Bound:
    """Add lower bounds of the layers and of the network. Raises RuntimeError if one lies above its upper bound."""
    shape = bound.input_shape
    room = _has_room(KEPT, traced.calls.values(), (node.shape for node in traced.graph.nodes))
    lower = network_lower(in_float64(network, traced.graph), shape) if shape and room else None
    layers = tuple(_with_lower(traced, layer) for layer in bound.layers)
    for layer in layers:
        kind = traced.graph[layer.name].operation.rpartition(".")[2]
        _check_order(f"layer {layer.name!r} ({kind})", layer.lower, layer.upper)
    _check_order("the network as a whole", lower, bound.upper)
    return replace(bound, lower=lower, layers=layers)


def _has_room(kept: int, calls: Iterable[ModuleCall], shapes: Iterable[tuple[int, ...] | None]) -> bool:
    """Whether memory allows differentiating modules together, which takes `kept` bytes per number that they return."""
    size = sum(tensor.nbytes for call in calls for tensor in call.module.parameters())
    return kept * sum(math.prod(shape or ()) for shape in shapes) <= allowance.allowed(size)


def _with_lower(traced: Trace, layer: LayerBound) -> LayerBound:
    call = traced.calls.get(layer.name)
    if call is None or layer.lower is not None:
        return layer
    if not _has_room(KEPT_ONCE, [call], (call.input_shape, traced.graph[call.name].shape)):
        return layer
    shape = (call.module.in_features,) if type(call.module) is nn.Linear else call.input_shape
    return layer if shape is None else replace(layer, lower=network_lower(call.parts, shape, points=1))


def _check_order(what: str, lower: float | None, upper: float) -> None:
    if lower is not None and lower > upper * (1 + ROUNDING):
        raise RuntimeError(
            f"{what} has a lower bound {lower!r} above its upper bound {upper!r}: one of them is wrong, nothing "
            "may be certified; please report the layer"
        )


def jacobian_norm(function: Callable[[Tensor], Tensor], points: Tensor, *, iterations: int = 20) -> float:
    """A lower bound on the Lipschitz constant: the largest ``|J(x) v| / |v|`` found at the points by power
    iteration.

        v <- J^T u / |J^T u|,   u <- J v / |J v|

    Args:
        function: maps a batch ``(P, ...)`` example by example; piecewise differentiable.
        points: ``(P, ...)`` in float64, where the Jacobian is taken.
        iterations: of the power method, from a fixed random start.

    Returns:
        The bound, lowered by the fraction 1e-9. It never exceeds the constant, unless a point is on a kink of the
        function.

    >>> round(jacobian_norm(lambda x: 3 * x, torch.ones(2, 4, dtype=torch.float64)), 6)
    3.0
    """
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(False), torch.enable_grad():
        x = points.detach().clone().requires_grad_()
        y = function(x.clone())  # a copy, because the function may change it in place
        u = torch.randn(y.shape, generator=generator, dtype=y.dtype).to(y.device).requires_grad_()
        (pulled,) = torch.autograd.grad(y, x, u, create_graph=True)
        norm = torch.zeros(len(points), dtype=y.dtype, device=y.device)
        v = _normalized(pulled.detach())
        for _ in range(iterations):
            (pushed,) = torch.autograd.grad(pulled, u, v, retain_graph=True)  # J v: J^T u is linear in u
            norm = torch.maximum(norm, _norms(pushed) / _norms(v).clamp(min=0.5))
            (back,) = torch.autograd.grad(y, x, _normalized(pushed), retain_graph=True)
            v = _normalized(back)
    return float(norm.nan_to_num(nan=0.0).max()) * (1 - ROUNDING)  # NaN: a root of zero has no slope


def network_lower(network: nn.Module, input_shape: tuple[int, ...], *, points: int = 4) -> float:
    """A lower bound on the Lipschitz constant of a network over images: :func:`jacobian_norm` at random
    images in [0, 1].

    >>> round(network_lower(nn.Sequential(nn.Flatten(), nn.Hardtanh()), (1, 2)), 6)
    1.0
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(points, *input_shape, generator=generator, dtype=torch.float64)
    with torch.inference_mode(False):  # a copy made in inference mode could not be differentiated
        copy = deepcopy(network).to("cpu", torch.float64).eval().requires_grad_(False)
    return jacobian_norm(copy, images)


def _norms(vectors: Tensor) -> Tensor:
    return vectors.reshape(len(vectors), -1).norm(dim=1)


def _normalized(vectors: Tensor) -> Tensor:
    norms = _norms(vectors).clamp(min=torch.finfo(vectors.dtype).tiny)
    return vectors / norms.reshape(-1, *[1] * (vectors.ndim - 1))


def rescale(network: nn.Module, *, input_shape: tuple[int, ...] | None = None) -> nn.Sequential:
    """The network divided by its certified bound, so that its bound is at most 1.

        f -> c f,        c = the largest float32 with c upper <= 1

    Answers and certified radii stay the same; a critic's value becomes a certified one.

    Args:
        network: a baked network. It stays unchanged, and the result shares its layers.
        input_shape: as in :func:`lconvnet.lipschitz_bound`; the result is 1-Lipschitz at that shape.

    Returns:
        The layers, followed by a :class:`lconvnet.layers.Scale` called ``rescale`` (``rescale2`` and so on if a layer
        has that name), or by nothing if the bound is already at most 1. The factor is a float32, so a network in
        float32 multiplies by exactly that.

    Raises:
        ValueError: if the network cannot be bounded, or its bound is infinite.
        RuntimeError: if the bound of the result is above 1: please report it.

    >>> rescaled = rescale(nn.Sequential(nn.Flatten(), Scale(3.0)))
    >>> lipschitz_bound(rescaled).upper <= 1, rescaled.rescale
    (True, Scale(factor=0.3333333134651184))
    """
    upper = lipschitz_bound(network, input_shape=input_shape, diagnose=False).upper
    layers = OrderedDict(network._modules if type(network) is nn.Sequential else {"network": network})
    factor = torch.tensor(1 / max(upper, 1.0), dtype=torch.float32)
    while product_up((upper, float(factor))) > 1:
        factor = torch.nextafter(factor, torch.zeros((), dtype=torch.float32))
    if factor == 0:
        raise ValueError(f"network has the bound {upper}, whose inverse is not a float32: train it with a constraint")
    if upper > 1:
        names = ("rescale" if i == 1 else f"rescale{i}" for i in count(1))
        layers[next(name for name in names if name not in layers)] = Scale(float(factor)).train(network.training)
    rescaled = nn.Sequential(layers)
    rescaled.training = network.training  # the shared layers keep their modes
    found = lipschitz_bound(rescaled, input_shape=input_shape, diagnose=False).upper
    if not found <= 1:
        raise RuntimeError(f"network has the bound {found!r} after it was divided by {upper!r}: please report it")
    return rescaled
