"""Types of the graph of a network and of the bounds on it.

A graph is pure data: a flat list of nodes in the order of evaluation. It can be written as JSON, and a program without
torch and this package can read it. In a chain of modules every node reads the one before it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from lconvnet.ops.rounding import product_up

INPUT = "input"
"""Name and operation of the first node."""

Method = Literal["auto", "spectrum"]
"""How the norm of a layer is bounded: by certificates that hold for every size, or by the exact spectrum at the true
size."""

CERTIFYING_LEVELS = ("analytic",)
"""Levels from which a radius may be derived. "analytic": an upper bound for the network in real arithmetic, computed in
float64 and rounded outward, without the rounding of a forward pass."""


@dataclass(frozen=True)
class Node:
    """One operation on tensors.

    Attributes:
        name: unique in its graph: the path of the module (``"block.0"``; ``"block.0#2"`` if it is used again), or the
            name of a function call with the path of its caller (``"block/add"``).
        operation: name of its :class:`lconvnet.bounds.operations.Operation`: the module's class (``"Conv2d"``,
            ``"MaxMin"``; in full if it was registered), or a function (``"add"``).
        inputs: names of the nodes that it reads.
        module: path of the module that computes it, or that calls the function.
        options: its parameters besides tensors: numbers, strings, lists of those.
        tensors: names of its weights and constants in the network's ``state_dict``, by role.
        shape: shape of its output without the batch; None if the size of the input is unknown.
    """

    name: str
    operation: str
    inputs: tuple[str, ...] = ()
    module: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Graph:
    """Nodes in order, beginning with the input; ``output`` names the node that is returned.

    >>> Graph((Node("input", "input"), Node("0", "ReLU", ("input",))), "0").is_chain
    True
    """

    nodes: tuple[Node, ...]
    output: str

    def __getitem__(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    @property
    def is_chain(self) -> bool:
        """Whether every node reads only the one before it."""
        return all(node.inputs == (before.name,) for before, node in zip(self.nodes, self.nodes[1:], strict=False))

    def to_json(self) -> str:
        """The graph as a JSON object of ``nodes`` and ``output``.

        >>> graph = Graph((Node("input", "input", shape=(2,)),), "input")
        >>> Graph.from_json(graph.to_json()) == graph
        True
        """
        return json.dumps({"nodes": [asdict(node) for node in self.nodes], "output": self.output})

    @classmethod
    def from_json(cls, text: str) -> Graph:
        """Inverse of :meth:`to_json`."""
        data = json.loads(text)
        return cls(tuple(_node(**entry) for entry in data["nodes"]), data["output"])


def _node(inputs: list[str], shape: list[int] | None, **rest: Any) -> Node:
    return Node(inputs=tuple(inputs), shape=None if shape is None else tuple(shape), **rest)


class AppliedFunction(nn.Module):
    """A registered function with its arguments, as a module: ``function(x, *arguments, **keywords)``.

    Attributes:
        function: the torch function or method of tensors.
        arguments: positional arguments after the tensor.
        keywords: pairs of name and value, sorted.
    """

    def __init__(self, function: Callable[..., Tensor], *arguments: Any, **keywords: Any) -> None:
        super().__init__()
        self.function, self.arguments, self.keywords = function, list(arguments), sorted(keywords.items())
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.arguments, **dict(self.keywords))


@dataclass(frozen=True)
class ModuleCall:
    """A module at its place in a network, with the circular padding before it, and its input shape if known."""

    name: str
    module: nn.Module
    padding: nn.CircularPad2d | None = None
    input_shape: tuple[int, ...] | None = None

    @property
    def parts(self) -> nn.Sequential:
        """The padding, if any, and then the module."""
        return nn.Sequential(self.module) if self.padding is None else nn.Sequential(self.padding, self.module)

    def refuse(self, problem: str) -> ValueError:
        """An error that names this module."""
        kind = (self.module.function if isinstance(self.module, AppliedFunction) else type(self.module)).__name__
        return ValueError(f"network module {self.name!r} ({kind}) {problem}")


@dataclass(frozen=True)
class Trace:
    """A graph with the modules of its nodes and the constants that its functions read, by key."""

    graph: Graph
    calls: Mapping[str, ModuleCall]
    constants: Mapping[str, Tensor]


@dataclass(frozen=True)
class LayerBound:
    """Bounds on the Lipschitz constant of one operation, in l2.

    Attributes:
        name: name of the node: the path of the module in the network, such as ``"conv1"`` or ``"block.0"``.
        upper: never below the constant; if an operation has several inputs, the constant in all of them together.
        lower: never above the constant, from power iteration; None if the size of the input is unknown.
        method: the source of ``upper``.
        reach: upper bound on the constant from the network's input to the output of this operation.
    """

    name: str
    upper: float
    lower: float | None
    method: str
    reach: float | None = None


@dataclass(frozen=True)
class Bound:
    """Bounds on the Lipschitz constant of a network, in l2 from its input to its output.

    Attributes:
        upper: never below the constant. It certifies.
        lower: attained by the Jacobian at some input, or None. It only diagnoses.
        layers: one entry per operation, in order.
        level: what ``upper`` accounts for; only :data:`CERTIFYING_LEVELS` certify.
        input_shape: the shape, without the batch, of the bound. If None, the bound holds at every size for which the
            sides of the input of each circular convolution are multiples of its stride.
        fingerprint: hash of the only network that the bound certifies (:func:`lconvnet.bounds.fingerprint`). If empty,
            it certifies none.
        program: hash of the forward pass as traced at ``input_shape``, which must also be the same.

    >>> layers = LayerBound("a", 4.0, None, "exact"), LayerBound("b", 0.5, None, "exact")
    >>> Bound(2.0, None, layers).body_upper
    4.0
    """

    upper: float
    lower: float | None
    layers: tuple[LayerBound, ...]
    level: str = "analytic"
    input_shape: tuple[int, ...] | None = None
    fingerprint: str = ""
    program: str = ""

    @property
    def body_upper(self) -> float:
        """Upper bound of the input of the last operation, if that is one tensor."""
        before = self.layers[:-1]
        reach = before[-1].reach if before else 1.0
        return product_up(layer.upper for layer in before) if reach is None else reach
