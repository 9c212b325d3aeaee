"""Margins against their formula, one example at a time."""

import math

import pytest
import torch

from lconvnet.ops.margins import margin, margins


def test_margins_by_hand():
    logits, labels = torch.tensor([[3.0, 1.0, 2.5], [0.0, 4.0, 1.0]]), torch.tensor([0, 2])
    assert margins(logits, labels).tolist() == [[math.inf, 2.0, 0.5], [1.0, -3.0, math.inf]]
    assert margin(logits, labels).tolist() == [0.5, -3.0]


def test_one_class_has_no_margin():
    with pytest.raises(ValueError, match="at least 2 classes"):
        margins(torch.zeros(3, 1), torch.zeros(3, dtype=torch.long))
