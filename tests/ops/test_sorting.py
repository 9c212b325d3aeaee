"""Sorting activations against torch.sort, and their gradients."""

import pytest
import torch

from lconvnet.ops.sorting import group_sort, max_min


@pytest.mark.parametrize(("shape", "dim"), [((3, 6), 1), ((2, 8, 3, 3), 1), ((2, 3, 4), -1)])
def test_max_min_values_and_gradient(shape, dim):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    a, b = x.chunk(2, dim)
    expected = torch.cat([torch.maximum(a, b), torch.minimum(a, b)], dim)
    assert torch.equal(max_min(x, dim), expected)
    G = torch.randn(shape, dtype=torch.float64)
    (ours,) = torch.autograd.grad(max_min(x, dim), x, G)
    (theirs,) = torch.autograd.grad(expected, x, G)
    assert torch.equal(ours, theirs)
    assert ours.norm() == pytest.approx(float(G.norm()), rel=1e-12)


def test_max_min_on_ties_and_nan():
    x = torch.tensor([[1.0, 1.0]], requires_grad=True)
    (grad,) = torch.autograd.grad(max_min(x), x, torch.tensor([[2.0, 3.0]]))
    assert grad.tolist() == [[2.0, 3.0]]
    assert max_min(torch.tensor([[float("nan"), 1.0]])).isnan().any()


def test_max_min_jacobian_in_one_batch():
    x = torch.randn(2, 4, dtype=torch.float64)
    one_by_one = torch.autograd.functional.jacobian(max_min, x)
    assert torch.equal(torch.autograd.functional.jacobian(max_min, x, vectorize=True), one_by_one)
    assert torch.autograd.gradgradcheck(lambda x: max_min(x) ** 2, (x.requires_grad_(),))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_comes_in_the_layout_of_the_image(layout):
    x = torch.randn(2, 4, 3, 5).contiguous(memory_format=layout).requires_grad_()
    for other in (torch.contiguous_format, torch.channels_last):
        (grad,) = torch.autograd.grad(max_min(x), x, torch.randn(2, 4, 3, 5).contiguous(memory_format=other))
        assert grad.is_contiguous(memory_format=layout)
    repeated = torch.randn(1, 4, 1, 1).expand(2, 4, 3, 5).requires_grad_()
    (grad,) = torch.autograd.grad(max_min(repeated).sum(), repeated)
    assert torch.equal(grad, torch.ones(2, 4, 3, 5))


@pytest.mark.parametrize("group_size", [1, 2, 3, 4, 12])
def test_group_sort_sorts_every_group(group_size):
    x = torch.randn(2, 12, 3)
    y = group_sort(x, group_size)
    for first in range(12 // group_size):
        group = slice(first, None, 12 // group_size)
        assert torch.equal(y[:, group], x[:, group].sort(1).values)


@pytest.mark.parametrize(
    ("call", "message"),
    [(lambda: max_min(torch.zeros(1, 3)), "size 3"), (lambda: group_sort(torch.zeros(1, 4), 3), "group_size=3")],
)
def test_channels_must_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
