"""Certificates of ReLU networks from linear bounds at a given radius (`lconvnet.bounds.linear`).

An image is certified at eps where no image of the ball of radius eps can have another answer: the lower bound of every
margin over the ball is positive. The level is "analytic", as that of a Lipschitz bound; what rounding can change in the
bounds is taken off them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from lconvnet.bounds.linear import margin_bounds
from lconvnet.certify.certificates import Certificates
from lconvnet.ops.images import check_eps

WIDER = 1 + 2.0**-40
"""Margins are bounded over a ball of this times the radius, so that "radius > eps" holds at eps itself."""


def linear_margins(network: nn.Module, images: Tensor, labels: Tensor, eps: float, *, batch_size: int = 16) -> Tensor:
    """The smallest margin's lower bound over the ball of radius `eps` around each image, float64 ``(N,)``.

    Args:
        network, images, labels, eps: see :func:`lconvnet.bounds.linear.margin_bounds`.
        batch_size: images bounded at once; memory grows with it.

    >>> network = nn.Sequential(nn.Linear(2, 2, bias=False))
    >>> _ = network[0].weight.data.copy_(torch.eye(2))
    >>> round(float(linear_margins(network, torch.tensor([[1.0, 0.0]]), torch.tensor([0]), 0.5)), 6)
    0.292893
    """
    radius = check_eps(eps) * WIDER
    pairs = zip(images.split(batch_size), labels.split(batch_size), strict=True)
    return torch.cat([margin_bounds(network, chunk, answer, radius).amin(dim=1) for chunk, answer in pairs])


def certified_at(certificates: Certificates, margins: Tensor, eps: float) -> Certificates:
    """The certificates with a radius just above `eps` where the linear bounds of the answer's margins are positive.

    >>> why = np.array(["no finite bound"] * 2)
    >>> known = Certificates(torch.tensor([0, 1]), torch.ones(2), torch.zeros(2), "analytic", why)
    >>> found = certified_at(known, torch.tensor([0.2, -0.2]), 0.5)
    >>> [round(r, 6) for r in found.radius.tolist()], found.reason.tolist()
    ([0.5, 0.0], ['certified', 'no finite bound'])
    """
    radius = certificates.radius
    proved = torch.maximum(radius, torch.full_like(radius, eps * WIDER))
    wider = torch.where(margins > 0, proved, radius)
    newly = (wider > 0) & ~(radius > 0)
    return replace(certificates, radius=wider, reason=np.where(newly, "certified", certificates.reason))
