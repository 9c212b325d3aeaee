"""Certified radii: no l2 perturbation below it can change the answer (methods.md C.1).

    r = max( m / (sqrt(2) L),   min_j m_j / (L_body |w_i - w_j|),   min_j m_j / (L_i + L_j) )

the second where the logits are those of a dense layer with rows w, scaled and shifted at most. Both are valid, so the
larger is. Rows of any norm will do; norm 1 is the last-layer normalisation of Singla, Singla & Feizi.
The third where every logit is the output of a network of its own, with the constant L_i.

Level "analytic" is about the network in real arithmetic. Its logits are evaluated in float64, and the rounding
of that forward pass is *not* subtracted from the margin. Where the margin is not far above the rounding of its
logits (:data:`MARGIN_GUARD`) nothing is certified; that is a guard, not a proof, since large intermediate
values that cancel before the logits go unseen.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from typing import cast

import torch
from torch import Tensor, nn

from lconvnet.bounds import CERTIFYING_LEVELS, Bound, Graph, Node, Trace, fingerprint, lipschitz_bound, trace
from lconvnet.bounds.convolution import stride_divides
from lconvnet.ops.images import check_images
from lconvnet.ops.margins import global_radius, margins, pairwise_radius, row_distances
from lconvnet.ops.rounding import product_up

MARGIN_GUARD = 2.0**-30
"""Nothing is certified from a margin of at most this fraction of the largest logit: 2^23 roundings of float64."""

ROUNDED_UP = 1 + 2.0**-52
"""Covers the rounding of a sum of two constants."""


@dataclass(frozen=True)
class Certificates:
    """One certificate for each of N images, on the CPU.

    Attributes:
        label: the answer, int64 ``(N,)``.
        margin: its logit minus the runner-up's, float64 ``(N,)``.
        radius: l2 over pixels in [0, 1], float64 ``(N,)``: no perturbation of a smaller norm changes the
            answer. 0: nothing is certified.
        level: what the radius accounts for. "analytic": that of the network in real arithmetic, evaluated in
            float64 without accounting for the rounding of the forward pass.
    """

    label: Tensor
    margin: Tensor
    radius: Tensor
    level: str

    def __len__(self) -> int:
        return len(self.label)


def certify(network: nn.Module, images: Tensor, *, bound: Bound | None = None, batch_size: int = 512) -> Certificates:
    """Certify the answers of a baked network; the forward pass runs in a float64 copy.

    Args:
        network: a baked network with at least two logits.
        images: ``(N, C, H, W)`` (or whatever the network takes), floats in [0, 1].
        bound: from :func:`lconvnet.lipschitz_bound` of this network; None computes it at the size of the
            images.
        batch_size: images evaluated at once.

    Raises:
        ValueError: images that are no floats in [0, 1] or do not fit, a network in half precision, a bound
            that does not certify this network, with these weights, at this size.

    >>> network = nn.Sequential(nn.Linear(2, 2, bias=False))
    >>> _ = network[0].weight.data.copy_(torch.eye(2))
    >>> round(float(certify(network, torch.tensor([[1.0, 0.0]])).radius), 6)
    0.707107
    """
    check_images(images)
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    _refuse_half_precision(network)
    traced = trace(network, tuple(images.shape[1:]))
    if bound is None:
        bound = lipschitz_bound(network, input_shape=tuple(images.shape[1:]), diagnose=False)
    _check_bound(bound, network, traced)
    evaluated = deepcopy(network).double().eval()
    device = next((tensor.device for tensor in network.parameters()), images.device)
    with torch.no_grad():
        chunks = [evaluated(chunk.to(device, torch.float64)).cpu() for chunk in images.split(batch_size)]
    return _certificates(torch.cat(chunks), bound, traced)


def _certificates(logits: Tensor, bound: Bound, traced: Trace) -> Certificates:
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"network gives an output of shape {tuple(logits.shape)}: a certificate needs (N, classes) with "
            "two classes or more"
        )
    label = logits.argmax(dim=1)
    ahead = margins(logits, label)
    radius = global_radius(ahead, bound.upper)
    head = _head(traced, bound) if math.isfinite(bound.upper) else None
    if head is not None:
        radius = torch.maximum(radius, pairwise_radius(ahead, label, row_distances(head.weight), head.lipschitz))
    apart = _apart(traced, bound)
    if apart is not None:
        radius = torch.maximum(radius, pairwise_radius(ahead, label, apart[:, None] + apart, ROUNDED_UP))
    margin = ahead.amin(dim=1)
    clear = margin > MARGIN_GUARD * logits.abs().amax(dim=1)  # false where a logit is infinite or NaN
    return Certificates(label, margin, torch.where(clear, radius, torch.zeros_like(radius)), bound.level)


@dataclass(frozen=True)
class _Head:
    """The last dense layer; ``lipschitz`` bounds all before it, times the scaling behind it."""

    weight: Tensor
    lipschitz: float


def _head(traced: Trace, bound: Bound) -> _Head | None:
    """The dense layer that gives the logits, with nothing behind it but what treats all of them alike."""
    layers = {layer.name: layer for layer in bound.layers}
    node, factors = traced.graph[traced.graph.output], []
    while _is_uniform(node, traced.graph):
        factors.append(layers[node.name].upper)
        node = traced.graph[node.inputs[0]]
    if node.operation != "Linear":
        return None
    before = layers.get(node.inputs[0])
    reach = 1.0 if before is None else before.reach
    if reach is None:
        return None
    return _Head(cast(nn.Linear, traced.operations[node.name].module).weight, product_up([reach, *factors]))


def _apart(traced: Trace, bound: Bound) -> Tensor | None:
    """The constant of each logit where every one is the output of a network of its own: a difference of two then has
    at most their sum (Qian & Wegman 2019: 2 for two 1-Lipschitz logits, sqrt(2) times that of a joint network)."""
    layers = {layer.name: layer for layer in bound.layers}
    node = traced.graph[traced.graph.output]
    logits = [traced.graph[name] for name in node.inputs] if node.operation == "concatenate" else []
    reaches = [layers[logit.name].reach for logit in logits if logit.shape == (1,) and logit.name in layers]
    if not reaches or len(reaches) < len(logits) or None in reaches:
        return None
    return torch.tensor(reaches, dtype=torch.float64)


def _is_uniform(node: Node, graph: Graph) -> bool:
    """Whether a node multiplies by one number or adds a constant to every logit."""
    if node.operation in ("multiply", "divide"):
        return "value" in node.options
    same = node.operation == "shift" and node.shape == graph[node.inputs[0]].shape
    return same or node.operation in ("Scale", "Identity", "Dropout", "negate")


def _refuse_half_precision(network: nn.Module) -> None:
    """The float64 copy would certify other arithmetic than what runs, with three digits at best."""
    for name, tensor in chain(network.named_parameters(), network.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"network tensor {name!r} is {tensor.dtype}, too coarse to certify what runs: bake the model in float32"
            )


def _check_bound(bound: Bound, network: nn.Module, traced: Trace) -> None:
    """Refuse a bound of another kind, of another network, or for another size of image."""
    if bound.level not in CERTIFYING_LEVELS:
        raise ValueError(
            f"bound.level={bound.level!r} does not certify: use the bound of lipschitz_bound(network), "
            f"level {CERTIFYING_LEVELS}"
        )
    if math.isnan(bound.upper) or bound.upper < 0:
        raise ValueError(f"bound.upper={bound.upper} is no Lipschitz constant: use lipschitz_bound(network)")
    if bound.fingerprint != fingerprint(network):
        raise ValueError(
            "bound is of other weights or another network than this one: compute it again with lipschitz_bound(network)"
        )
    shape, steps = traced.graph.nodes[0].shape, traced.operations.values()
    irregular = any(type(step.module) is nn.Conv2d and not stride_divides(step) for step in steps)
    if (irregular or bound.input_shape is not None) and shape != bound.input_shape:
        raise ValueError(
            f"bound.input_shape={bound.input_shape} does not cover images of shape {shape}: use "
            f"lipschitz_bound(network, input_shape={shape})"
        )
