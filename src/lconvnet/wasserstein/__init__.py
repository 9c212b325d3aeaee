"""Certified lower bounds on the Wasserstein-1 distance between two distributions.

*The mean difference of a critic, divided by a rigorous bound of its Lipschitz constant, is never above the distance.*
"""

from lconvnet.wasserstein.critic import default_critic, dense_critic
from lconvnet.wasserstein.estimate import estimate
from lconvnet.wasserstein.exact import transport
from lconvnet.wasserstein.pictures import draw
from lconvnet.wasserstein.result import Estimate, certified_values
from lconvnet.wasserstein.samples import Sampler

__all__ = ["Estimate", "Sampler", "certified_values", "default_critic", "dense_critic", "draw", "estimate", "transport"]
