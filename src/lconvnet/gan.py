"""Generators trained against a critic: WGAN, WGAN-GP, and WGAN with a critic that is 1-Lipschitz by construction.

*The state of a run depends only on its settings, its seed and the number of steps done.* Pixels are in [0, 1].
"""

from lconvnet.tasks.generation import train_gan
from lconvnet.tasks.images import (
    GeneratedSamples,
    RealSamples,
    grid,
    load_generator,
    png,
    save_generator,
)
from lconvnet.tasks.objectives import CriticLoss, GradientPenalty, LipschitzCritic, Objective, WeightClipping
from lconvnet.training.record import GeneratorEpoch as Epoch
from lconvnet.training.record import Record

__all__ = [
    "CriticLoss",
    "Epoch",
    "GeneratedSamples",
    "GradientPenalty",
    "LipschitzCritic",
    "Objective",
    "RealSamples",
    "Record",
    "WeightClipping",
    "grid",
    "load_generator",
    "png",
    "save_generator",
    "train_gan",
]
