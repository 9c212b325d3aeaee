"""A penalty on a layer's gradient trains its kernel, in training and in eval mode: it is never left out."""

import pytest
import torch
import torch.nn.functional as F

from lconvnet.layers import LipschitzConv2d
from tests.kernels.test_current_weights import LAYERS, each_layer


def plain(layer, x, W):
    """The layer's map by PyTorch's own functions."""
    if W.ndim == 2:
        return F.linear(x, W)
    return F.conv2d(F.pad(x, (1, 0, 1, 0), mode="circular"), W)


def penalised(outputs, x, kernel):
    """The gradient, with respect to the kernel's parameters, of a sum of cubes of the gradient at the input."""
    weights = torch.linspace(-1, 1, outputs[0].numel(), dtype=x.dtype).reshape(outputs[0].shape)
    (at_x,) = torch.autograd.grad((outputs * weights).sum(), x, create_graph=True)  # linear: nothing else is kept
    return torch.autograd.grad((at_x**3).sum(), list(kernel.parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("training", [True, False])
@each_layer
def test_a_penalty_on_the_gradient_reaches_the_kernel(name, training, dtype):
    torch.manual_seed(0)
    layer = LAYERS[name](dtype=dtype).train(training).requires_grad_()
    x = torch.rand((2, 3, 4, 4) if isinstance(layer, LipschitzConv2d) else (5, 4), dtype=dtype, requires_grad=True)
    layer.kernel.train(training and name not in ("OSSN", "norm"))  # whose divisors move in training
    found = penalised(layer(x), x, layer.kernel)
    expected = penalised(plain(layer, x, layer.weight), x, layer.kernel)
    assert all(value.abs().max() > 1e-2 for value in expected)
    # sums of some ten products, times the condition number of well-conditioned matrices
    torch.testing.assert_close(
        found, expected, rtol=1e-3 if dtype == torch.float32 else 1e-10, atol=100 * torch.finfo(dtype).eps
    )
