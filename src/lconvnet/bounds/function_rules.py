"""How the functions of :mod:`lconvnet.bounds.functions` move what they read: one rule for each operation of a node.

A tensor whose entries are repeated r times by broadcasting moves sqrt(r) times as far, which every rule accounts for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction

import torch
from torch import Tensor

from lconvnet.bounds.graph import Node
from lconvnet.bounds.propagation import Groups, Value
from lconvnet.bounds.reading import Trace
from lconvnet.ops.float64 import to_float64
from lconvnet.ops.rounding import product_up, quotient_up, root_up

Parts = Mapping[str, Value]
"""Values of the nodes before."""


def constant_of(node: Node, constants: Mapping[str, Tensor]) -> Tensor:
    """The constant that a node adds or multiplies by, in float64."""
    if "value" in node.options:
        return torch.tensor(node.options["value"], dtype=torch.float64)
    key = node.tensors["constant"]
    return to_float64(constants[key], f"network constant {key!r}")


class Functions:
    """The rules over one graph; the ``groups`` of atoms grow as its nodes are visited."""

    def __init__(self, traced: Trace, groups: Groups) -> None:
        self.nodes = {node.name: node for node in traced.graph.nodes}
        self.constants, self.groups = traced.constants, groups
        self.pieces: dict[str, Value] = {}

    def apply(self, node: Node, values: Parts) -> tuple[Value, float]:
        """The value of a node, and the constant of its operation in all its inputs together."""
        rule = JOINS.get(node.operation)
        if rule is not None:
            return rule(self, node, values)
        if node.operation == "slice":
            return self._slice(node, values), 1.0
        factor = self.factor(node)
        return self.groups.scaled(values[node.inputs[0]], factor), factor

    def factor(self, node: Node) -> float:
        """The Lipschitz constant of a function of one tensor."""
        growth = self._growth(node, node.inputs[0])
        if node.operation == "multiply":
            return product_up((growth, float(constant_of(node, self.constants).abs().max())))
        if node.operation == "divide":
            return quotient_up(growth, float(constant_of(node, self.constants).abs().min()))
        if node.operation == "mean":
            return root_up(Fraction(math.prod(node.shape or ()), math.prod(self._shape(node.inputs[0]))))
        return growth

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.nodes[name].shape or ()

    def _copies(self, node: Node, name: str) -> Fraction:
        """How often broadcasting repeats an input."""
        return max(Fraction(1), Fraction(math.prod(node.shape or ()), math.prod(self._shape(name))))

    def _growth(self, node: Node, name: str) -> float:
        return root_up(self._copies(node, name)) if node.operation in BROADCASTING else 1.0

    def _sum(self, node: Node, values: Parts) -> tuple[Value, float]:
        if self._centers(node):
            return self.groups.scaled(values[node.inputs[0]], 1.0), 1.0
        first, second = (self._grown(node, name, values) for name in node.inputs)
        constant = root_up(sum(self._copies(node, name) for name in node.inputs))
        return self.groups.total(first, second), constant

    def _grown(self, node: Node, name: str, values: Parts) -> Value:
        growth = self._growth(node, name)
        return values[name] if growth == 1 else self.groups.scaled(values[name], growth)

    def _centers(self, node: Node) -> bool:
        """Whether the node is ``x - mean(x)``, an orthogonal projection."""
        source, mean = (self.nodes[name] for name in node.inputs)
        return (
            node.operation == "subtract"
            and mean.operation == "mean"
            and bool(mean.options["keepdim"])
            and mean.inputs == (source.name,)
            and node.shape == source.shape
        )

    def _stack(self, node: Node, values: Parts) -> tuple[Value, float]:
        rows = [row for name in node.inputs for row in self._grown(node, name, values)]
        return tuple(rows), max(self._growth(node, name) for name in node.inputs)

    def _slice(self, node: Node, values: Parts) -> Value:
        source = node.inputs[0]
        if node.name not in self.pieces:
            parts = [other for other in self.nodes.values() if other.operation == "slice" and other.inputs == (source,)]
            if len(parts) == 1 or not self._disjoint(source, parts):
                return self.groups.scaled(values[source], 1.0)
            pieces = self.groups.pieces(values[source], len(parts))
            self.pieces |= {part.name: piece for part, piece in zip(parts, pieces, strict=True)}
        return self.pieces[node.name]

    def _disjoint(self, source: str, parts: list[Node]) -> bool:
        """Whether no entry of a tensor is in two of its parts."""
        reads = torch.zeros(1, *self._shape(source), dtype=torch.int64)
        for part in parts:
            index = [slice(None)] * reads.ndim
            for axis, start, stop, step in part.options["slices"]:
                index[axis] = slice(start, stop, step)
            reads[tuple(index)] += 1
        return int(reads.max()) <= 1


JOINS: Mapping[str, Callable[[Functions, Node, Parts], tuple[Value, float]]] = {
    "add": Functions._sum,
    "subtract": Functions._sum,
    "concatenate": Functions._stack,
    "hypot": Functions._stack,
}
"""Functions of several tensors: sums of lengths, or roots of sums of squares."""

BROADCASTING = {"add", "subtract", "hypot", "shift", "multiply", "divide"}
"""Functions that may repeat the entries of an input."""
