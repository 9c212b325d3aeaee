"""Real images where they are at hand, random ones of the same shape elsewhere; nothing is downloaded."""

import os
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.networks import CLASSES, OURS, SMALL_ON_CIFAR
from benchmarks.report import Measured
from benchmarks.steps import LOSS, training_step
from benchmarks.timing import Effort, compare
from lconvnet import data
from lconvnet.data.loading import ENVIRONMENT

BATCH = 128
BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"


def directory_of(name: str) -> Path | None:
    """The folder that holds a named set, if there is one."""
    places = [Path(os.environ[ENVIRONMENT])] if os.environ.get(ENVIRONMENT) else []
    return next((place for place in (*places, BESIDE) if (place / name).is_dir()), None)


def random_images(count: int, channels: int, size: int) -> data.Images:
    """Noise in the container of the real images."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, channels, size, size), dtype=torch.uint8, generator=generator)
    return data.Images(pixels, torch.randint(CLASSES, (count,), generator=generator), CLASSES, "random")


def mnist_images(count: int) -> tuple[Tensor, str]:
    """Test images of MNIST as floats, and what they are."""
    directory = directory_of("mnist")
    if directory is None:
        return data.batch(random_images(count, 1, 28), range(count))[0], "random images of MNIST's shape"
    images = data.load("mnist", directory=directory, limit=count).test
    return data.batch(images, range(len(images)))[0], "MNIST test images"


def cifar_images() -> tuple[data.Images, str]:
    """Training images of CIFAR-10, and what they are."""
    directory = directory_of("cifar10")
    if directory is None:
        return random_images(45_000, 3, 32), "random images of CIFAR-10's shape"
    splits = data.load("cifar10", directory=directory)
    return splits.train, f"CIFAR-10 ({splits.note})" if splits.note else "CIFAR-10"


def data_share(effort: Effort) -> Measured:
    """The part of a training step of Small that goes to fetching a batch and cropping and mirroring it."""
    images, note = cifar_images()
    generator = torch.Generator().manual_seed(0)
    batches = cycle(torch.randperm(len(images), generator=generator).split(BATCH)[:-1])

    def fetch() -> tuple[Tensor, Tensor]:
        inputs, labels = data.batch(images, next(batches))
        return data.crop_and_flip(inputs, generator=generator), labels

    def loss() -> Tensor:
        inputs, labels = fetch()
        return LOSS(network(inputs), labels)

    network = SMALL_ON_CIFAR.network(OURS)
    ours, whole = compare([fetch, training_step(network, loss)], effort)
    return Measured(ours, whole, "s per step", f"{note}, batch {BATCH}, beside the whole step")
