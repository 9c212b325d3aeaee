"""Radii of level "estimate": what libraries that take power iteration for a bound would claim. They certify nothing."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lconvnet.bounds import Bound
from lconvnet.certify.claim import Reason, reason_codes
from lconvnet.ops.margins import margins


def estimated(logits: Tensor, bound: Bound) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Label, margin, ``margin / (sqrt(2) prod_l lower_l)`` and the codes of the reasons: norms from power iteration,
    rounding ignored.

    Where the graph is no product of layers the network's own lower bound takes its place. Raises ``ValueError`` where
    the bound has none.
    """
    lowers = [layer.lower for layer in bound.layers if layer.lower is not None]
    if len(lowers) < len(bound.layers):
        lowers = [] if bound.lower is None else [bound.lower]
    if bound.layers and not lowers:
        raise ValueError("bound has no lower bounds, which level='estimate' is made of: use diagnose=True")
    label = logits.argmax(dim=1)
    margin = margins(logits, label).amin(dim=1)
    lipschitz = math.sqrt(2) * math.prod(lowers)
    radius = margin / lipschitz
    causes: dict[Reason, Tensor] = {
        "logits not finite": ~logits.isfinite().all(dim=1),
        "tie": margin == 0,
        "no finite bound": torch.full_like(margin, not math.isfinite(lipschitz), dtype=torch.bool),
    }
    return label, margin, radius, reason_codes(radius, "estimated", causes)
