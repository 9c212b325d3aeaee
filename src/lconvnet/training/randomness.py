"""All randomness of a training run as a pure function of where the run stands.

A generator that is carried along must be saved and restored exactly; one that is derived from (seed, purpose, epoch,
step) needs neither, so a resumed run replays the interrupted one by construction.
"""

import functools
import hashlib

import torch


def derive_seed(seed: int, purpose: str, epoch: int, step: int = 0) -> int:
    """A 63-bit seed, independent for different arguments (SHA-256, so nearby seeds are unrelated).

    >>> derive_seed(0, "order", 1) == derive_seed(0, "order", 1)
    True
    >>> derive_seed(0, "order", 1) == derive_seed(0, "order", 2)
    False
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{epoch}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, purpose: str, epoch: int, step: int = 0) -> torch.Generator:
    """A CPU generator seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, epoch, step))


def seed_global(seed: int, device: torch.device) -> None:
    """Seed the global generators that a step on `device` draws from (dropout), and no others.

    `torch.manual_seed` seeds every kind of device and takes milliseconds where CUDA is not initialised.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, count: int) -> torch.Tensor:
    """The order `(count,)` in which epoch number `epoch` visits the training images; not to be changed in place."""
    return torch.randperm(count, generator=generator(seed, "order", epoch))
