"""The last dense layer of a classifier, whose rows tell how fast a pair of logits can drift apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

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


def logit_constants(graph: Graph, bound: Bound) -> Tensor | None:
    """The constant of each logit, ``(classes,)``, where every one is the output of a network of its own, else None.

    The difference of two then has at most the sum of theirs (Qian & Wegman 2019): 2 for two 1-Lipschitz logits.
    """
    layers, end = {layer.name: layer for layer in bound.layers}, graph[graph.output]
    logits = [graph[name] for name in end.inputs] if end.operation == "concatenate" else []
    reaches = [layers[logit.name].reach for logit in logits if logit.shape == (1,) and logit.name in layers]
    if not reaches or len(reaches) < len(logits) or None in reaches:
        return None
    return torch.tensor(reaches, dtype=torch.float64)
