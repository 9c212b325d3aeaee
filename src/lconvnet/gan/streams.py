"""Endless streams of image batches, real and generated: batch k is a function of (seed, k).

*A stream has no position*: any batch can be asked for, in any order, by any process, and it is the same one.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor

from lconvnet.data import Images, batch
from lconvnet.kernels.base import require_positive
from lconvnet.models import DCGANGenerator
from lconvnet.training import randomness

CHUNK = 256  # images generated at a time, whatever the batch


class RealSamples:
    """Batches of images drawn from a set uniformly, with replacement.

    >>> from lconvnet.data import load
    >>> stream = RealSamples(load("digits", limit=50).train, seed=0)
    >>> stream.sample(8, 3).shape, torch.equal(stream.sample(8, 3), stream.sample(8, 3))
    (torch.Size([8, 1, 28, 28]), True)
    """

    def __init__(self, images: Images, seed: int) -> None:
        if not len(images):
            raise ValueError(f"images: {images.name!r} holds none to draw from")
        self.images, self.seed = images, require_seed(seed)

    def sample(self, count: int, step: int) -> Tensor:
        """Batch number `step`: float32 ``(count, C, H, W)`` in [0, 1]."""
        require_positive(count=count)
        draws = randomness.generator(self.seed, "real", 0, step)
        return batch(self.images, torch.randint(len(self.images), (count,), generator=draws))[0]


class GeneratedSamples:
    """Batches of a generator's images, on its device, from a copy of its present weights in eval mode.

    >>> stream = GeneratedSamples(DCGANGenerator(latent=8, width=4), seed=0)
    >>> stream.sample(5, 2).shape, torch.equal(stream.sample(5, 2), stream.sample(5, 3))
    (torch.Size([5, 3, 32, 32]), False)
    """

    def __init__(self, generator: DCGANGenerator, seed: int) -> None:
        self.generator, self.seed = deepcopy(generator).requires_grad_(False), require_seed(seed)

    def sample(self, count: int, step: int) -> Tensor:
        """Batch number `step`: ``(count, C, H, W)`` in [0, 1]."""
        require_positive(count=count)
        return generated(self.generator, latents(self.generator, count, self.seed, "generated", step))


def latents(generator: DCGANGenerator, count: int, seed: int, purpose: str, step: int) -> Tensor:
    """Standard normal vectors ``(count, latent)``, a function of (seed, purpose, step), on the generator's device."""
    like = next(generator.parameters())
    return torch.randn(count, generator.latent, generator=randomness.generator(seed, purpose, 0, step)).to(like)


@torch.no_grad()
def generated(generator: DCGANGenerator, latents: Tensor) -> Tensor:
    """The images ``(B, C, H, W)`` of latent vectors in eval mode; the generator is left as it was."""
    training = generator.training
    try:
        generator.eval()
        return torch.cat([generator(part) for part in latents.split(CHUNK)])
    finally:
        generator.train(training)


def require_seed(seed: int) -> int:
    """Return `seed`; raises `ValueError` unless it is an integer."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed={seed!r}: must be an integer")
    return seed
