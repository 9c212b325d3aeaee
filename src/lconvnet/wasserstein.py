"""Certified lower bounds on the Wasserstein-1 distance between two distributions.

*The mean difference of a critic, divided by a rigorous bound on its Lipschitz constant, never exceeds the distance.*
"""

from lconvnet.tasks.estimates import Estimate, certified_values, draw
from lconvnet.tasks.samples import Sampler
from lconvnet.tasks.transport import transport
from lconvnet.tasks.wasserstein import default_critic, dense_critic, estimate

__all__ = ["Estimate", "Sampler", "certified_values", "default_critic", "dense_critic", "draw", "estimate", "transport"]
