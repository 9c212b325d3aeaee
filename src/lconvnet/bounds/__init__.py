"""Lipschitz bounds of baked networks: rigorous from above, a diagnosis from below."""

from lconvnet.bounds.attributes import fingerprint, program, tensors_of
from lconvnet.bounds.forward_error import AffineBound, ErrorBounds, no_rounding, relative_rounding
from lconvnet.bounds.network import bound_of, lipschitz_bound, rescale
from lconvnet.bounds.operations import register_operation
from lconvnet.bounds.tracing import in_float64, trace
from lconvnet.bounds.types import CERTIFYING_LEVELS, Bound, Graph, LayerBound, ModuleCall, Node, Trace

__all__ = [
    "CERTIFYING_LEVELS",
    "AffineBound",
    "Bound",
    "ErrorBounds",
    "Graph",
    "LayerBound",
    "ModuleCall",
    "Node",
    "Trace",
    "bound_of",
    "fingerprint",
    "in_float64",
    "lipschitz_bound",
    "no_rounding",
    "program",
    "register_operation",
    "relative_rounding",
    "rescale",
    "tensors_of",
    "trace",
]
