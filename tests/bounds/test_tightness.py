"""How far bounds lie above the truth: the median ratio of each type of layer, against dense singular values."""

import numpy as np
import pytest
import torch
from torch import nn

from lconvnet import bake, layers, lipschitz_bound
from tests.oracles import dense_matrix


class Keep(nn.Module):
    """The identity, with a parameter that says the dtype of a network without any."""

    def __init__(self):
        super().__init__()
        self.dtype = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x


def ratio(layer, shape):
    """Bound over the largest singular value of the dense matrix, from the eigenvalues of the smaller Gram matrix."""
    network = bake(nn.Sequential(layer))
    upper = lipschitz_bound(network, input_shape=shape, diagnose=False).upper
    channels, *size = shape if len(shape) == 3 else (*shape, 1, 1)
    flat = [nn.Flatten()] if len(shape) == 1 else []
    T = dense_matrix(nn.Sequential(*flat, network, Keep()).double(), channels, tuple(size))
    gram = T @ T.T if T.shape[0] < T.shape[1] else T.T @ T
    return upper / float(torch.linalg.eigvalsh(gram)[-1]) ** 0.5


def median(build, shape, count):
    ratios = [ratio(build(), shape) for _ in range(count)]
    assert min(ratios) >= 1 - 1e-12
    return float(np.median(ratios))


ORTHOGONAL = [
    ("dense", lambda: layers.OrthogonalLinear(24, 24), (24,)),
    ("wide dense", lambda: layers.CholeskyLinear(40, 12), (40,)),
    ("bcop", lambda: layers.BCOPConv2d(4, 4, 3), (4, 8, 8)),
    ("bcop, stride 2", lambda: layers.BCOPConv2d(3, 6, 4, 2), (3, 8, 8)),
    ("bcop, even kernel", lambda: layers.BCOPConv2d(4, 6, 2), (4, 8, 8)),
]


@pytest.mark.parametrize(("build", "shape"), [case[1:] for case in ORTHOGONAL], ids=[case[0] for case in ORTHOGONAL])
def test_orthogonal_layers_are_within_a_millionth(build, shape):
    assert median(build, shape, 5) <= 1.000001


def circular(k, stride=1, **options):
    return nn.Conv2d(4, 4, k, stride, padding=k // 2, padding_mode="circular", **options)


GENERAL = [
    ("dense", lambda: nn.Linear(24, 16), (24,)),
    ("circular 3 x 3", lambda: circular(3), (4, 8, 8)),
    ("circular 5 x 5", lambda: circular(5), (4, 8, 8)),
    ("circular, stride 2", lambda: circular(3, 2), (4, 8, 8)),
    ("circular, stride (1, 2)", lambda: circular(3, (1, 2)), (4, 8, 8)),
    ("circular, groups", lambda: circular(3, groups=2), (4, 8, 8)),
    ("depthwise", lambda: circular(3, groups=4), (4, 8, 8)),
    ("circular, dilation 2", lambda: nn.Conv2d(4, 4, 3, padding=2, dilation=2, padding_mode="circular"), (4, 8, 8)),
    ("reshaped orthogonal", lambda: layers.RKOConv2d(4, 4, 3), (4, 8, 8)),
    ("spectrally normalised", lambda: layers.OSSNConv2d(4, 4, 3, input_size=8), (4, 8, 8)),
    ("patches", lambda: nn.Conv2d(4, 6, 2, 2), (4, 8, 8)),
    ("transposed patches", lambda: nn.ConvTranspose2d(4, 6, 2, 2), (4, 4, 4)),
    ("average pooling", lambda: nn.AvgPool2d(2), (4, 8, 8)),
    ("batch norm", lambda: nn.BatchNorm2d(4).eval(), (4, 4, 4)),
]


@pytest.mark.parametrize(("build", "shape"), [case[1:] for case in GENERAL], ids=[case[0] for case in GENERAL])
def test_general_layers_are_within_a_hundredth(build, shape):
    assert median(build, shape, 3) <= 1.01


ZEROS = [
    ("3 x 3", lambda c: nn.Conv2d(c, c, 3, padding=1), 32),
    ("3 x 3, unpadded", lambda c: nn.Conv2d(c, c, 3), 32),
    ("3 x 3, stride 2", lambda c: nn.Conv2d(c, c, 3, 2, padding=1), 32),
    ("4 x 4, stride 2", lambda c: nn.Conv2d(c, c, 4, 2, padding=1), 32),
    ("transposed 3 x 3", lambda c: nn.ConvTranspose2d(c, c, 3, padding=1), 32),
    ("transposed 4 x 4, stride 2", lambda c: nn.ConvTranspose2d(c, c, 4, 2, padding=1), 16),
]


@pytest.mark.parametrize(("build", "side"), [case[1:] for case in ZEROS], ids=[case[0] for case in ZEROS])
@pytest.mark.parametrize(("channels", "count"), [(1, 1), *(pytest.param(c, 3, marks=pytest.mark.slow) for c in (1, 2))])
def test_zero_padding_is_within_a_hundredth_on_32_pixels(build, side, channels, count):
    """The bound holds for every size; on 8 x 8 pixels the truth is 6.4 % below it, on 16 x 16 1.7 %, on 32 x 32 0.4 %,
    and the grid of frequencies adds 0.24 %."""
    assert median(lambda: build(channels), (channels, side, side), count) <= 1.01
