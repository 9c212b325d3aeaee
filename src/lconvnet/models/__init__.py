"""The paper's networks as functions that take the convolution, the dense layer and the activation as callables."""

from lconvnet.models import baselines
from lconvnet.models.generators import DCGANGenerator
from lconvnet.models.networks import dcgan_critic, large_convnet, mlp, small_convnet

__all__ = ["DCGANGenerator", "baselines", "dcgan_critic", "large_convnet", "mlp", "small_convnet"]
