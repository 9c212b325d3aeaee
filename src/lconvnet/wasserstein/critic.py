"""The critic that is taken where none is given."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from math import prod
from typing import cast

import torch
from torch import Tensor, nn

from lconvnet.layers import LipschitzLinear, MaxMin, OrthogonalLinear, Scale
from lconvnet.models import dcgan_critic, mlp
from lconvnet.training.randomness import derive_seed

HIDDEN = 4
NARROWEST, WIDEST = 64, 256


def default_critic(samples: Tensor, seed: int) -> nn.Module:
    """The paper's critic for images `(N, C, H, W)` (Li et al. 2019, appendix), else `dense_critic`.

    Every layer is orthogonal, so gradients keep their norm; the first weights follow from `seed` and the samples
    alone. On the GPU where there is one. The paper's critic pads to 32x32 and upsamples nothing; to repeat its CIFAR-10
    setting, give `nn.Sequential(NearestUpsampling(2), *dcgan_critic(3, 64))`, whose bound says 2.

    >>> default_critic(torch.zeros(4, 2), seed=0).linear1
    LipschitzLinear(
      2, 64
      (kernel): Orthogonal()
    )
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "critic", 0))
        shape = samples.shape[1:]
        critic = dcgan_critic(shape[0], (shape[1], shape[2])) if len(shape) == 3 else dense_critic(samples)
    return critic.to("cuda" if torch.cuda.is_available() else "cpu")


def dense_critic(samples: Tensor, *, activation: Callable[[], nn.Module] = MaxMin) -> nn.Sequential:
    """s g((x - c) / s), g an orthogonal network, c the mean and s the root mean square distance from it.

    The scales cancel in the Lipschitz constant. They make the training independent of the origin and the unit of the
    samples `(N, ...)`, and without biases in the beginning every kink passes through the middle of the samples: with
    random biases most kinks stay away from them (`docs/wasserstein.md`).
    """
    flat = samples.float().flatten(1)
    centre = flat.mean(dim=0)
    scale = float((flat - centre).norm(dim=1).square().mean().sqrt()) or 1.0
    features = prod(samples.shape[1:])
    width = min(max(NARROWEST, features + features % 2), WIDEST)
    network = mlp(features, 1, (width,) * HIDDEN, linear=OrthogonalLinear, activation=activation)
    with torch.no_grad():
        for layer in network.children():
            if isinstance(layer, LipschitzLinear):
                cast(Tensor, layer.bias).zero_()
        first = cast(LipschitzLinear, network.get_submodule("linear1"))
        cast(Tensor, first.bias).copy_(-first.weight @ centre / scale)
    parts = OrderedDict(network.named_children())
    return nn.Sequential(OrderedDict(shrink=Scale(1 / scale)) | parts | OrderedDict(stretch=Scale(scale)))
