"""How far the nodes of a graph move when its input moves by one.

The change of every node is bounded by lengths of *atoms*, pieces of which one knows how far they move together:

    |dv|^2 <= sum_i ( sum_a C_ia |a| )^2,        |(atoms of a group g)| <= L_g |dx|,

so |dv|^2 <= sum_{g, h} |C_g^T C_h|_2 L_g L_h |dx|^2, with C_g the columns of one group. The input is an atom with
L = 1, the disjoint parts of a tensor that is split form a group. This one formula is the product of a chain, the sum
of branches, the root of the sum of squares of what is concatenated, the maximum of branches that read other parts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import combinations

import torch

from lconvnet.ops.norm_bounds import dense_bound
from lconvnet.ops.rounding import product_up, root_up, sum_up

Atom = tuple[int, int]
"""The number of its group and its place there."""

Row = Mapping[Atom, float]
"""Coefficients C_ia of one i."""

Value = tuple[Row, ...]
"""The rows of one node."""

STEPS = 24
"""Of Gram iteration on a matrix of coefficients: its truncation is then below rank^(2^-25) - 1, 1e-7 for rank 20."""

TINY = 2.0**-400
"""Beyond this, and beyond its inverse, squares leave the range of floats."""


class Groups:
    """The groups of atoms and their L_g. Each is new: a name never stands for two things."""

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
        """An operation with a Lipschitz constant; several rows become one atom."""
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
    """Largest singular value of a non-negative matrix, rounded upward; exact where every row or every column has but
    one entry, up to one rounding where the matrix is a row or a column."""
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
