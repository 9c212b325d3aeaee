"""The graph of a baked network as pure data: a flat list of nodes in the order of their evaluation.

A chain of modules is the graph in which every node reads the one before it. Nothing here knows torch, so a graph can be
written as JSON and read by a program that has neither torch nor this package.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

INPUT = "input"
"""Name and operation of the first node."""


@dataclass(frozen=True)
class Node:
    """One operation on tensors.

    Attributes:
        name: unique in its graph: the path of the module (``"block.0"``; ``"block.0#2"`` where it is used again), or
            the name of a function call with the path of its caller (``"block/add"``).
        operation: the module's class (``"Conv2d"``, ``"MaxMin"``; in full where it is neither torch's nor ours), or
            one of the functions of :data:`lconvnet.bounds.functions.OPERATIONS`.
        inputs: names of the nodes that it reads.
        module: path of the module that computes it, or that calls the function.
        options: what it computes with besides tensors: numbers, strings, lists of those.
        tensors: names of its weights and constants in the network's ``state_dict``, by their role.
        shape: of its output without the batch; None where the size of the input is unknown.
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
