"""Lipschitz bounds of baked networks: rigorous from above, a diagnosis from below."""

from lconvnet.bounds.fingerprint import fingerprint
from lconvnet.bounds.network import lipschitz_bound
from lconvnet.bounds.types import CERTIFYING_LEVELS, Bound, LayerBound, Operation
from lconvnet.bounds.walk import operations

__all__ = ["CERTIFYING_LEVELS", "Bound", "LayerBound", "Operation", "fingerprint", "lipschitz_bound", "operations"]
