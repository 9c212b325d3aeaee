"""The paper's networks: shapes, widths, any image, any parts."""

import pytest
import torch
from torch import nn

import lconvnet as lc
from lconvnet.layers import FullSort, GroupSort, LipschitzConv2d, RKOConv2d, SpectralNormLinear
from lconvnet.models import dcgan_critic, large_convnet, mlp, small_convnet
from lconvnet.models.baselines import unconstrained_conv, unconstrained_linear


def shapes(network):
    return [
        (m.in_channels, m.out_channels, m.kernel_size, m.stride)
        if isinstance(m, LipschitzConv2d)
        else (m.in_features, m.out_features)
        for m in network
        if hasattr(m, "kernel")
    ]


def test_the_published_architectures():
    assert shapes(small_convnet(1, 28, 10)) == [(1, 16, 4, 2), (16, 32, 4, 2), (1568, 100), (100, 10)]
    assert shapes(large_convnet(3, 32, 10)) == [
        (3, 32, 3, 1),
        (32, 32, 4, 2),
        (32, 64, 3, 1),
        (64, 64, 4, 2),
        (4096, 512),
        (512, 512),
        (512, 10),
    ]
    assert shapes(mlp(784, 10)) == [(784, 1024), (1024, 1024), (1024, 1024), (1024, 10)]
    assert shapes(dcgan_critic(3, 32)) == [
        (3, 64, 4, 2),
        (64, 128, 4, 2),
        (128, 256, 4, 2),
        (256, 512, 4, 2),
        (2048, 1),
    ]


@pytest.mark.parametrize("image_size", [8, (12, 8), (9, 10), 13, 1, (3, 20)], ids=str)
@pytest.mark.parametrize("network", [small_convnet, large_convnet])
def test_any_image_size_preserves_distances_as_far_as_a_network_can(network, image_size):
    height, width = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    model = network(2, image_size, 7).double().eval()
    x, y = torch.rand(2, 5, 2, height, width, dtype=torch.float64)
    with torch.no_grad():
        moved = (model(x) - model(y)).flatten(1).norm(dim=1)
        assert model(x).shape == (5, 7)
    assert (moved <= (x - y).flatten(1).norm(dim=1) * (1 + 1e-9)).all()


@pytest.mark.parametrize("network", [small_convnet, large_convnet])
@pytest.mark.parametrize("activation", [lambda: GroupSort(2), FullSort, nn.ReLU])
def test_parts_are_callables(network, activation):
    model = network(1, 8, 3, conv=RKOConv2d, linear=SpectralNormLinear, activation=activation)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    plain = network(1, 8, 3, conv=unconstrained_conv, linear=unconstrained_linear, activation=activation)
    assert plain(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert [type(m) for m in plain] == [type(m) for m in lc.bake(plain)]


def test_the_baked_network_is_plain():
    network = lc.bake(small_convnet(1, 9, 10))
    assert [name for name, _ in network.named_children()] == [
        "pad",
        "conv1_pad",
        "conv1",
        "conv1_activation",
        "conv2_pad",
        "conv2",
        "conv2_activation",
        "flatten",
        "linear1",
        "linear1_activation",
        "linear2",
    ]
    assert not network.training and not any(p.requires_grad for p in network.parameters())


def test_baking_reaches_into_other_modules():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = small_convnet(1, 8, 3), mlp(64, 3, (8,))

        def forward(self, x):
            return self.first(x) + self.second(x)

    model = Branches().eval()
    network = lc.bake(model)
    x = torch.rand(2, 1, 8, 8)
    assert not any(hasattr(m, "kernel") and hasattr(m.kernel, "promise") for m in network.modules())
    assert torch.allclose(network(x), model(x), atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: small_convnet(0, 28, 10), "in_channels=0"),
        (lambda: small_convnet(1, 0, 10), "image_height=0"),
        (lambda: small_convnet(1, 28, 0), "classes=0"),
        (lambda: mlp(0, 10), "in_features=0"),
    ],
)
def test_sizes_are_checked(call, message):
    with pytest.raises(ValueError, match=message):
        call()
