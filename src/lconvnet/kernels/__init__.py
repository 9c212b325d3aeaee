"""Kernels: modules that return the weight of a linear map with norm at most 1."""

from lconvnet.kernels.base import DenseKernel, Kernel, Promise
from lconvnet.kernels.bcop import BCOP, FixedBCOP
from lconvnet.kernels.orthogonal import RKO, Orthogonal
from lconvnet.kernels.power_iteration import OSSN, SpectralNorm
from lconvnet.kernels.rkl2ne import L2NE, RKL2NE
from lconvnet.kernels.svcm import SVCM

__all__ = [
    "BCOP",
    "L2NE",
    "OSSN",
    "RKL2NE",
    "RKO",
    "SVCM",
    "DenseKernel",
    "FixedBCOP",
    "Kernel",
    "Orthogonal",
    "Promise",
    "SpectralNorm",
]
