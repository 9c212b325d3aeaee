"""Radii against their formulas: the pairwise one of a dense head, never below the one of the whole network."""

import math

import pytest
import torch
from torch import nn

from lconvnet import certify, layers

SLACK = 1e-9
"""Far above the rounding of a float64 evaluation on margins of order 1."""


def head(W, bias=None):
    rows, columns = W.shape
    linear = nn.Linear(columns, rows, bias=bias is not None, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(W)
        if bias is not None:
            linear.bias.copy_(bias)
    return linear.eval().requires_grad_(False)


def radii(network, images):
    return certify(network.eval(), images).radius


def test_the_radius_is_the_least_ratio_of_margin_and_distance_of_rows():
    for _ in range(20):
        W, images = torch.randn(5, 7, dtype=torch.float64), torch.rand(9, 7, dtype=torch.float64)
        found = radii(nn.Sequential(head(W), layers.Scale(3.0)), images)
        logits, label = images @ W.T, (images @ W.T).argmax(1).tolist()
        expected = torch.stack(
            [
                min((f[i] - f[j]) / (W[i] - W[j]).norm() for j in range(5) if j != i)
                for f, i in zip(logits, label, strict=True)
            ]
        )
        assert bool((found <= expected).all())
        assert torch.allclose(found, expected, rtol=SLACK, atol=SLACK)
        gaps = torch.stack([f[i] - torch.cat([f[:i], f[i + 1 :]]).max() for f, i in zip(logits, label, strict=True)])
        whole = gaps / (math.sqrt(2) * torch.linalg.matrix_norm(W, 2))  # never above the pairwise one
        assert bool((found >= whole * (1 - SLACK) - SLACK).all())


def test_it_is_that_of_the_whole_network_for_orthonormal_rows():
    """Then |w_i - w_j| = sqrt(2)."""
    W = torch.linalg.qr(torch.randn(6, 4, dtype=torch.float64))[0].T
    images = torch.rand(8, 6, dtype=torch.float64)
    top = (images @ W.T).topk(2, dim=1).values
    assert torch.allclose(radii(head(W), images), (top[:, 0] - top[:, 1]) / math.sqrt(2), rtol=SLACK, atol=SLACK)


def test_the_minimum_is_over_ratios_not_over_the_runner_up():
    """Margins 1 and 2 to rows at distances 1 and 10."""
    W = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 10.0]], dtype=torch.float64)
    network = head(W, torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64))
    assert float(radii(network, torch.zeros(1, 2, dtype=torch.float64))) == pytest.approx(0.2, rel=SLACK)


def test_ties_and_logits_that_are_not_finite_have_radius_zero():
    W = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    assert radii(head(W), torch.full((1, 2), 0.5, dtype=torch.float64)).tolist() == [0]
    huge = nn.Sequential(head(W * 1e308), head(W * 1e308))
    assert radii(huge, torch.tensor([[1.0, 0.5]], dtype=torch.float64)).tolist() == [0]
