"""The critic that is taken where none is given."""

from math import prod

import torch
from torch import nn

from lconvnet.models import dcgan_critic, mlp
from lconvnet.training.randomness import derive_seed

WIDTHS = (128, 128, 128)


def default_critic(shape: tuple[int, ...], seed: int) -> nn.Module:
    """The paper's critic for images `(C, H, W)` (Li et al. 2019, appendix), else a dense MaxMin network.

    Every layer is orthogonal, so gradients keep their norm; the first weights follow from `seed` alone. On the GPU
    where there is one.

    >>> default_critic((2,), seed=0).linear1
    LipschitzLinear(
      2, 128
      (kernel): Orthogonal()
    )
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "critic", 0))
        critic = dcgan_critic(shape[0], (shape[1], shape[2])) if len(shape) == 3 else mlp(prod(shape), 1, WIDTHS)
    return critic.to("cuda" if torch.cuda.is_available() else "cpu")
