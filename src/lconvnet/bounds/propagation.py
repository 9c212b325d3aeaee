"""How far the nodes of a graph move if its input moves by one.

The change of every node is bounded by lengths of *atoms*, pieces with a known bound on their joint move:

    |dv|^2 <= sum_i ( sum_a C_ia |a| )^2,        |(atoms of a group g)| <= L_g |dx|,

so |dv|^2 <= sum_{g, h} |C_g^T C_h|_2 L_g L_h |dx|^2, where C_g are the columns of one group. The input is an atom with
L = 1; the disjoint parts of a split tensor form a group. This one formula gives the product over a chain, the sum over
added branches, the root of the sum of squares over concatenated ones, and the maximum over branches that read disjoint
parts.

The rule of a function takes the propagation and the node. It returns the value of the node, and the constant of its
operation in all inputs together. If broadcasting repeats the entries of a tensor r times, the tensor moves sqrt(r)
times as far; every rule accounts for this.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import combinations

import torch
from torch import Tensor

from lconvnet.bounds.types import INPUT, Node, Trace
from lconvnet.ops.float64 import to_float64
from lconvnet.ops.norm_bounds import dense_bound
from lconvnet.ops.rounding import product_up, quotient_up, root_up, sum_up

Atom = tuple[int, int]
"""The number of the atom's group and its index there."""

Row = Mapping[Atom, float]
"""Coefficients C_ia for one i."""

Value = tuple[Row, ...]
"""The rows of one node."""


STEPS = 24
"""Steps of Gram iteration on coefficients: its slack is then below rank^(2^-25) - 1, which is 1e-7 for rank 20."""

TINY = 2.0**-400
"""Beyond this, and beyond its inverse, squares leave the range of floats."""


class Groups:
    """The groups of atoms and their L_g. A number is never used for two groups."""

    def __init__(self) -> None:
        self.lengths = {0: 1.0}
        self.input: Value = ({(0, 0): 1.0},)

    def norm(self, value: Value) -> float:
        """``sqrt( sum_{g, h} |C_g^T C_h|_2 L_g L_h )``, rounded upward."""
        parts = {group: _matrix(value, group) for group in sorted({group for row in value for group, _ in row})}
        reached = {group: product_up((_matrix_norm(C), self.lengths[group])) for group, C in parts.items()}
        if len(parts) == 1 or not all(math.isfinite(length) for length in reached.values()):
            return sum_up(reached.values())
        square = sum((Fraction(length) ** 2 for length in reached.values()), Fraction())
        for g, h in combinations(parts, 2):
            cross = _matrix_norm(_product(parts[g], parts[h]))
            square += 2 * Fraction(product_up((cross, self.lengths[g], self.lengths[h])))
        return min(root_up(square), sum_up(reached.values()))

    def scaled(self, value: Value, factor: float) -> Value:
        """The value after an operation with this Lipschitz constant; several rows become one atom."""
        (row,) = value if len(value) == 1 else self.pieces(value, 1)[0]
        return ({atom: product_up((c, factor)) for atom, c in row.items()},)

    def pieces(self, value: Value, count: int) -> list[Value]:
        """Disjoint parts of one tensor: the atoms of a new group."""
        group = len(self.lengths)
        self.lengths[group] = self.norm(value)
        return [({(group, i): 1.0},) for i in range(count)]

    def total(self, first: Value, second: Value) -> Value:
        """A sum or a difference."""
        a, b = self.scaled(first, 1.0)[0], self.scaled(second, 1.0)[0]
        return ({atom: sum_up((a.get(atom, 0.0), b.get(atom, 0.0))) for atom in {**a, **b}},)


class Propagation(Groups):
    """The values of the nodes of one graph. Visiting the nodes in order creates new groups."""

    def __init__(self, traced: Trace) -> None:
        super().__init__()
        self.nodes = {node.name: node for node in traced.graph.nodes}
        self.constants = traced.constants
        self.values = {INPUT: self.input}
        self.parts: dict[str, Value] = {}

    def copies(self, node: Node, name: str) -> Fraction:
        """The number of times that broadcasting repeats an input."""
        return max(Fraction(1), Fraction(math.prod(node.shape or ()), self.size(name)))

    def size(self, name: str) -> int:
        """Number of entries of a node."""
        return math.prod(self.nodes[name].shape or ())

    def grown(self, node: Node, name: str) -> Value:
        """An input, repeated by broadcasting."""
        copies = self.copies(node, name)
        return self.values[name] if copies == 1 else self.scaled(self.values[name], root_up(copies))

    def stretched(self, node: Node, factor: float) -> tuple[Value, float]:
        """The result of a function of one tensor with this Lipschitz constant."""
        return self.scaled(self.values[node.inputs[0]], factor), factor


Applied = tuple[Value, float]
"""The value of a node, and the constant of its operation."""


def moved(at: Propagation, node: Node) -> Applied:
    """Moves and sign changes of entries, and sums with a constant."""
    return at.stretched(node, root_up(at.copies(node, node.inputs[0])))


def multiplied(at: Propagation, node: Node) -> Applied:
    """The largest factor."""
    growth = root_up(at.copies(node, node.inputs[0]))
    return at.stretched(node, product_up((growth, float(constant_of(node, at.constants).abs().max()))))


def divided(at: Propagation, node: Node) -> Applied:
    """The inverse of the smallest divisor."""
    growth = root_up(at.copies(node, node.inputs[0]))
    return at.stretched(node, quotient_up(growth, float(constant_of(node, at.constants).abs().min())))


def averaged(at: Propagation, node: Node) -> Applied:
    """A mean of n entries: 1 / sqrt(n)."""
    return at.stretched(node, root_up(Fraction(at.size(node.name), at.size(node.inputs[0]))))


def added(at: Propagation, node: Node) -> Applied:
    """A sum or a difference of two tensors: lengths add up."""
    if _centers(at, node):
        return at.stretched(node, 1.0)
    first, second = (at.grown(node, name) for name in node.inputs)
    return at.total(first, second), root_up(sum(at.copies(node, name) for name in node.inputs))


def _centers(at: Propagation, node: Node) -> bool:
    """Whether the node is ``x - mean(x)``, an orthogonal projection."""
    source, mean = (at.nodes[name] for name in node.inputs)
    return (
        node.operation == "subtract"
        and mean.operation == "mean"
        and bool(mean.options["keepdim"])
        and mean.inputs == (source.name,)
        and node.shape == source.shape
    )


def concatenated(at: Propagation, node: Node) -> Applied:
    """Concatenation: squares of lengths add up."""
    return tuple(row for name in node.inputs for row in at.values[name]), 1.0


def hypot(at: Propagation, node: Node) -> Applied:
    """``sqrt(a^2 + b^2)``, entry by entry: moves no further than the concatenation."""
    rows = tuple(row for name in node.inputs for row in at.grown(node, name))
    return rows, max(root_up(at.copies(node, name)) for name in node.inputs)


def sliced(at: Propagation, node: Node) -> Applied:
    """A part of a tensor. All parts form a group if no two of them overlap."""
    source = node.inputs[0]
    if node.name not in at.parts:
        parts = [other for other in at.nodes.values() if other.operation == "slice" and other.inputs == (source,)]
        if len(parts) == 1 or not _disjoint(at.nodes[source], parts):
            return at.stretched(node, 1.0)
        pieces = at.pieces(at.values[source], len(parts))
        at.parts |= {part.name: piece for part, piece in zip(parts, pieces, strict=True)}
    return at.parts[node.name], 1.0


def _disjoint(source: Node, parts: Sequence[Node]) -> bool:
    """Whether no two parts of a tensor share an entry."""
    reads = torch.zeros(1, *(source.shape or ()), dtype=torch.int64)
    for part in parts:
        index = [slice(None)] * reads.ndim
        for axis, start, stop, step in part.options["slices"]:
            index[axis] = slice(start, stop, step)
        reads[tuple(index)] += 1
    return int(reads.max()) <= 1


def constant_of(node: Node, constants: Mapping[str, Tensor]) -> Tensor:
    """The constant that a node adds or multiplies by, in float64."""
    if "value" in node.options:
        return torch.tensor(node.options["value"], dtype=torch.float64)
    key = node.tensors["constant"]
    return to_float64(constants[key], f"network constant {key!r}")


def _matrix(value: Value, group: int) -> list[list[float]]:
    atoms = sorted({atom for row in value for atom in row if atom[0] == group})
    return [[row.get(atom, 0.0) for atom in atoms] for row in value]


def _product(A: Sequence[Sequence[float]], B: Sequence[Sequence[float]]) -> list[list[float]]:
    """A^T B, each entry rounded upward."""
    columns = list(zip(*B, strict=True))
    return [
        [sum_up(product_up(pair) for pair in zip(a, b, strict=True)) for b in columns] for a in zip(*A, strict=True)
    ]


def _matrix_norm(C: Sequence[Sequence[float]]) -> float:
    """Largest singular value of a non-negative matrix, rounded upward. Exact if every row or every column has only one
    entry; up to one rounding if the matrix is a row or a column."""
    entries = [[c for c in row if c] for row in C], [[c for c in column if c] for column in zip(*C, strict=True)]
    largest = max((c for row in C for c in row), default=0.0)
    if math.isinf(largest) or all(len(line) <= 1 for lines in entries for line in lines):
        return largest
    if not TINY < largest < 1 / TINY:
        return sum_up(c for row in C for c in row)
    for lines in entries:
        if sum(bool(line) for line in lines) == 1:
            return root_up(sum(Fraction(c) ** 2 for line in lines for c in line))
    return dense_bound(torch.tensor(C, dtype=torch.float64), steps=STEPS)
