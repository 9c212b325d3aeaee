"""Provably 1-Lipschitz convolutional networks in PyTorch.

A kernel is a module whose ``forward()`` returns the weight of a linear map with norm at most 1. Layers own a kernel.
:func:`bake` evaluates every kernel once and returns plain PyTorch. The baked network is the one to bound, certify,
attack, save and deploy.
"""

import importlib
from typing import TYPE_CHECKING, Any

from lconvnet import attacks, bounds, data, kernels, layers, losses, models, ops
from lconvnet.baking import bake
from lconvnet.bounds import Bound, LayerBound, lipschitz_bound, register_operation, rescale
from lconvnet.certify import Certificates, certified_accuracy, certify
from lconvnet.conversion import convert
from lconvnet.saving import load, save

if TYPE_CHECKING:
    from lconvnet import gan, importing, wasserstein
    from lconvnet.training import Record, fit

__version__ = "0.1.0"

__all__ = [
    "Bound",
    "Certificates",
    "LayerBound",
    "Record",
    "__version__",
    "attacks",
    "bake",
    "bounds",
    "certified_accuracy",
    "certify",
    "convert",
    "data",
    "fit",
    "gan",
    "importing",
    "kernels",
    "layers",
    "lipschitz_bound",
    "load",
    "losses",
    "models",
    "ops",
    "register_operation",
    "rescale",
    "save",
    "wasserstein",
]


def __getattr__(name: str) -> Any:
    """Import training on first use: its launcher takes as long to import as torch itself."""
    if name in ("gan", "importing", "wasserstein"):
        return importlib.import_module(f"lconvnet.{name}")
    if name in ("Record", "fit"):
        from lconvnet import training

        return getattr(training, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names for completion, including those of modules that are imported later."""
    return list(__all__)
