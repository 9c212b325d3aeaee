"""What a network is read as, and what a bound on it is made of.

A graph is pure data: a flat list of nodes in the order of their evaluation. It can be written as JSON and read by a
program that has neither torch nor this package. A chain of modules is the graph in which every node reads the one
before it.
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
"""Levels from which a radius may be derived. "analytic": an upper bound on the network in real arithmetic, computed in
float64 and rounded outward; the rounding of a forward pass is not part of it."""


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
        options: what it computes with besides tensors: numbers, strings, lists of those.
        tensors: names of its weights and constants in the network's ``state_dict``, by their role.
        shape: of its output without the batch; None if the size of the input is unknown.
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
    """Nodes in order, the first being the input; ``output`` names the one that is returned.

    >>> Graph((Node("input", "input"), Node("0", "ReLU", ("input",))), "0").is_chain
    True
    """

    nodes: tuple[Node, ...]
    output: str

    def __getitem__(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    @property
    def is_chain(self) -> bool:
        """Whether every node reads just the one before it."""
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
    """A registered function with its arguments behind the tensor, as a module: ``function(x, *arguments, **keywords)``.

    Attributes:
        function: the torch function or method of tensors.
        arguments: those behind the tensor.
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
    """A module at its place in a network, with the circular padding before it, and its input shape if that is known."""

    name: str
    module: nn.Module
    padding: nn.CircularPad2d | None = None
    input_shape: tuple[int, ...] | None = None

    @property
    def parts(self) -> nn.Sequential:
        """What runs: padding, then module."""
        return nn.Sequential(self.module) if self.padding is None else nn.Sequential(self.padding, self.module)

    def refuse(self, problem: str) -> ValueError:
        """The error that names this module."""
        kind = (self.module.function if isinstance(self.module, AppliedFunction) else type(self.module)).__name__
        return ValueError(f"network module {self.name!r} ({kind}) {problem}")


@dataclass(frozen=True)
class Trace:
    """A graph with the modules behind its nodes and the constants that its functions read, by their keys."""

    graph: Graph
    calls: Mapping[str, ModuleCall]
    constants: Mapping[str, Tensor]


@dataclass(frozen=True)
class LayerBound:
    """Bounds on the Lipschitz constant of one operation, in l2.

    Attributes:
        name: of the node: the path of the module in the network, such as ``"conv1"`` or ``"block.0"``.
        upper: never below the constant; of an operation with several inputs, the constant in all of them together.
        lower: never above it, from power iteration; None if the size of the input is unknown.
        method: where ``upper`` comes from.
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
        lower: reached by the Jacobian at some input, or None. It only diagnoses.
        layers: one entry for every operation, in order.
        level: what ``upper`` accounts for; only :data:`CERTIFYING_LEVELS` certify.
        input_shape: the shape, without the batch, that the bound was computed for. None: it holds for every
            size at which each circular convolution meets an image whose sides are multiples of its stride.
        fingerprint: of the network that it was computed for (:func:`lconvnet.bounds.fingerprint`), the only
            one that it certifies. Empty: none.
        program: of the forward pass as it was read at ``input_shape``; it must be the same, too.

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
        """Upper bound of what the last operation reads, if that is one tensor."""
        before = self.layers[:-1]
        reach = before[-1].reach if before else 1.0
        return product_up(layer.upper for layer in before) if reach is None else reach
