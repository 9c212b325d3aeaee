"""The paper's networks as functions of their parts, and the baselines they are compared with."""

from lconvnet.models import baselines
from lconvnet.models.baselines import kw_large, kw_resnet, kw_small, qw_convnet
from lconvnet.models.networks import DCGANGenerator, dcgan_critic, large_convnet, mlp, small_convnet

__all__ = [
    "DCGANGenerator",
    "baselines",
    "dcgan_critic",
    "kw_large",
    "kw_resnet",
    "kw_small",
    "large_convnet",
    "mlp",
    "qw_convnet",
    "small_convnet",
]
