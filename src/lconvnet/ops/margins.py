"""Margins of a classifier: how far the answer is ahead."""

from __future__ import annotations

import math

from torch import Tensor


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """All margins f_i - f_j of class i = labels, with infinity at j = i.

    Args:
        logits: ``(B, classes)``.
        labels: ``(B,)``, integers.

    Returns:
        ``(B, classes)`` in the dtype of the logits; negative where another class is ahead.

    >>> import torch
    >>> margins(torch.tensor([[3.0, 1.0]]), torch.tensor([0])).tolist()
    [[inf, 2.0]]
    """
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"logits has shape {tuple(logits.shape)}: a margin needs (B, classes) with at least 2 classes")
    ahead = logits.gather(1, labels[:, None]) - logits
    return ahead.scatter(1, labels[:, None], math.inf)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The smallest margin of each example: top-1 minus runner-up when the answer is right, negative when it
    is wrong.

    >>> import torch
    >>> margin(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0])).tolist()
    [1.0]
    """
    return margins(logits, labels).amin(dim=1)
