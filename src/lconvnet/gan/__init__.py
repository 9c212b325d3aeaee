"""Generators trained against a critic: WGAN, WGAN-GP, and WGAN with a critic that is 1-Lipschitz by construction.

*The state of a run is a function of its settings, its seed and the number of steps done.* Pixels are in [0, 1].
"""

from lconvnet.gan.clipping import WeightClipping
from lconvnet.gan.files import load_generator, save_generator
from lconvnet.gan.grids import grid, png
from lconvnet.gan.lipschitz import LipschitzCritic
from lconvnet.gan.objective import CriticLoss, Objective
from lconvnet.gan.penalty import GradientPenalty
from lconvnet.gan.record import Epoch, Record
from lconvnet.gan.streams import GeneratedSamples, RealSamples
from lconvnet.gan.train import train_gan

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
