"""Certified accuracy: the fraction of a set that is answered rightly and provably so."""

from __future__ import annotations

from torch import Tensor

from lconvnet.certify.certificates import Certificates
from lconvnet.ops.images import check_eps, check_labels


def certified_accuracy(certificates: Certificates, labels: Tensor, eps: float) -> float:
    """Fraction of images with the right answer and a radius above eps, strictly.

        #{ n : label_n = labels_n and radius_n > eps } / N

    Args:
        certificates: of N images.
        labels: true classes, integers ``(N,)``.
        eps: l2 radius over pixels in [0, 1].

    >>> import numpy as np
    >>> import torch
    >>> one = torch.ones(2, dtype=torch.float64)
    >>> certificates = Certificates(torch.tensor([3, 4]), one, one, "analytic", np.array(["certified"] * 2))
    >>> certified_accuracy(certificates, torch.tensor([3, 5]), 0.5)
    0.5
    """
    eps = check_eps(eps)
    if len(certificates) == 0:
        raise ValueError("certificates is empty: an accuracy needs at least one image")
    if certificates.level == "estimate":
        raise ValueError("certificates are of level 'estimate', which certifies nothing: use 'analytic' or 'sound'")
    right = certificates.label == check_labels(labels, len(certificates)).to(certificates.label.device)
    return float((right & (certificates.radius > eps)).double().mean())
