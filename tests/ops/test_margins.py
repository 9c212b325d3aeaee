"""Margins and radii against their formulas, one example at a time."""

import math

import pytest
import torch

from lconvnet.ops.margins import global_radius, margin, margins, pairwise_radius, row_distances


def orthonormal_rows(rows, columns):
    return torch.linalg.qr(torch.randn(columns, rows, dtype=torch.float64))[0].T


def test_margins_by_hand():
    logits, labels = torch.tensor([[3.0, 1.0, 2.5], [0.0, 4.0, 1.0]]), torch.tensor([0, 2])
    assert margins(logits, labels).tolist() == [[math.inf, 2.0, 0.5], [1.0, -3.0, math.inf]]
    assert margin(logits, labels).tolist() == [0.5, -3.0]


def test_pairwise_radius_is_never_below_the_global_one():
    for _ in range(20):
        W = torch.randn(5, 7, dtype=torch.float64)
        logits = torch.randn(9, 5, dtype=torch.float64)
        label = logits.argmax(1)
        ahead = margins(logits, label)
        whole = global_radius(ahead, 3 * float(torch.linalg.matrix_norm(W, 2)))
        pairwise = pairwise_radius(ahead, label, row_distances(W), 3.0)
        assert (pairwise >= whole * (1 - 1e-14)).all()
        expected = [
            min((f[i] - f[j]) / (3 * (W[i] - W[j]).norm()) for j in range(5) if j != i)
            for f, i in zip(logits, label.tolist(), strict=True)
        ]
        assert (pairwise <= torch.stack(expected)).all()
        torch.testing.assert_close(pairwise, torch.stack(expected), rtol=1e-13, atol=0)


def test_equality_for_orthonormal_rows():
    """The two radii agree, because then |w_i - w_j| = sqrt(2)."""
    W, logits = orthonormal_rows(4, 6), torch.randn(8, 4, dtype=torch.float64)
    label = logits.argmax(1)
    ahead = margins(logits, label)
    torch.testing.assert_close(
        pairwise_radius(ahead, label, row_distances(W), 1.0), global_radius(ahead, 1.0), rtol=1e-13, atol=0
    )


def test_the_minimum_is_over_ratios_not_over_the_runner_up():
    W = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 10.0]], dtype=torch.float64)
    ahead = torch.tensor([[math.inf, 1.0, 2.0]], dtype=torch.float64)
    radius = pairwise_radius(ahead, torch.tensor([0]), row_distances(W), 1.0)
    assert radius.item() == pytest.approx(0.2, rel=1e-12)


def test_nan_ties_and_wrong_answers_have_radius_zero():
    ahead = torch.tensor([[math.inf, math.nan], [math.inf, 0.0], [math.inf, -1.0]], dtype=torch.float64)
    distances = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    assert global_radius(ahead, 1.0).tolist() == [0, 0, 0]
    assert pairwise_radius(ahead, torch.zeros(3, dtype=torch.long), distances, 1.0).tolist() == [0, 0, 0]
    good = torch.tensor([[math.inf, 1.0]], dtype=torch.float64)
    assert global_radius(good, math.inf).tolist() == [0]


def test_one_class_has_no_margin():
    with pytest.raises(ValueError, match="at least 2 classes"):
        margins(torch.zeros(3, 1), torch.zeros(3, dtype=torch.long))
