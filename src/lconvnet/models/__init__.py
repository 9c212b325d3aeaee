"""The paper's networks as functions that take the convolution, the dense layer and the activation as callables."""

from lconvnet.models import baselines
from lconvnet.models.generators import DCGANGenerator
from lconvnet.models.kw import kw_large, kw_resnet, kw_small
from lconvnet.models.networks import dcgan_critic, large_convnet, mlp, small_convnet
from lconvnet.models.qw import qw_convnet

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
