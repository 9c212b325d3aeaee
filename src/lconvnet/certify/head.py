"""The last dense layer of a classifier, whose rows tell how fast a pair of logits can drift apart (methods.md C.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lconvnet.bounds import Bound
from lconvnet.bounds.graph import Graph, Node
from lconvnet.ops.rounding import product_up


@dataclass(frozen=True)
class Head:
    """The dense layer of the logits; ``lipschitz`` bounds all before it, times the scaling behind it."""

    node: Node
    lipschitz: float


def find_head(graph: Graph, bound: Bound) -> Head | None:
    """The dense layer with nothing behind it but what treats all logits alike; None where there is no such layer."""
    layers = {layer.name: layer for layer in bound.layers}
    node, factors = graph[graph.output], []
    while _is_uniform(node, graph):
        factors.append(layers[node.name].upper)
        node = graph[node.inputs[0]]
    if node.operation != "Linear" or not math.isfinite(bound.upper):
        return None
    before = layers.get(node.inputs[0])
    reach = 1.0 if before is None else before.reach
    return None if reach is None else Head(node, product_up([reach, *factors]))


def _is_uniform(node: Node, graph: Graph) -> bool:
    """Whether a node multiplies by one number or adds a constant to every logit."""
    if node.operation in ("multiply", "divide"):
        return "value" in node.options
    same = node.operation == "shift" and node.shape == graph[node.inputs[0]].shape
    return same or node.operation in ("Scale", "Identity", "Dropout", "negate")
