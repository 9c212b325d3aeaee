"""Images and networks so small that a run takes a second."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lconvnet import gan
from lconvnet.data import Images, load
from lconvnet.layers import MaxMin, OrthogonalLinear, OSSNConv2d, SVCMConv2d
from lconvnet.models import DCGANGenerator, baselines

SHAPE = (1, 32, 32)


def digits(limit: int = 300) -> Images:
    """Real digits, extended by zeros to 32x32."""
    train = load("digits", limit=limit).train
    return Images(F.pad(train.images, (2, 2, 2, 2)), train.labels, train.classes, "digits32")


def generator(**sizes: Any) -> DCGANGenerator:
    torch.manual_seed(1)
    return DCGANGenerator(**{"latent": 6, "channels": 1, "image_size": 32, "width": 2, **sizes})


def plain_critic() -> nn.Sequential:
    torch.manual_seed(2)
    return baselines.unconstrained_critic(1, 32, width=2)


def lipschitz_critic() -> nn.Sequential:
    """Every kind of state: power-iteration buffers, projected weights, orthogonal weights, biases."""
    torch.manual_seed(2)
    return nn.Sequential(
        OSSNConv2d(1, 4, 4, 4, input_size=(32, 32)),
        MaxMin(),
        SVCMConv2d(4, 4, 2, 2, input_size=(8, 8)),
        MaxMin(),
        nn.Flatten(),
        OrthogonalLinear(64, 1),
    )


CASES = {
    "penalty": (gan.GradientPenalty(), plain_critic),
    "clipping": (gan.WeightClipping(), plain_critic),
    "lipschitz": (gan.LipschitzCritic(), lipschitz_critic),
}


def train(case: str = "penalty", *, images: Images | None = None, **options: Any) -> gan.Record:
    """`train_gan` with small defaults; keywords replace them."""
    objective, make_critic = CASES[case]
    defaults: dict[str, Any] = {
        "objective": objective, "epochs": 2, "steps_per_epoch": 4, "batch_size": 8, "critic_steps": 2,
        "checkpoint_every": 3, "seed": 5, "generator": generator(), "critic": make_critic(),
    }  # fmt: skip
    return gan.train_gan(images=digits() if images is None else images, **(defaults | options))
