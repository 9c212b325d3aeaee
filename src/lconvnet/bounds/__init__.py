"""Lipschitz bounds of baked networks: rigorous from above, a diagnosis from below."""

from lconvnet.bounds.fingerprint import fingerprint, program
from lconvnet.bounds.graph import Graph, Node
from lconvnet.bounds.network import bound_of, lipschitz_bound
from lconvnet.bounds.reading import tensors_of
from lconvnet.bounds.rescaling import rescale
from lconvnet.bounds.rules import register_rule
from lconvnet.bounds.types import CERTIFYING_LEVELS, Bound, LayerBound, Operation
from lconvnet.bounds.walk import Trace, in_float64, operations, trace

__all__ = [
    "CERTIFYING_LEVELS",
    "Bound",
    "Graph",
    "LayerBound",
    "Node",
    "Operation",
    "Trace",
    "bound_of",
    "fingerprint",
    "in_float64",
    "lipschitz_bound",
    "operations",
    "program",
    "register_rule",
    "rescale",
    "tensors_of",
    "trace",
]
