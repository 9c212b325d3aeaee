"""Layers with a known Lipschitz constant: each linear one owns a kernel."""

from lconvnet.layers.activations import Abs, FullSort, GroupSort, MaxMin
from lconvnet.layers.constrained import ConstrainedLayer
from lconvnet.layers.conv import (
    BCOPConv2d,
    FixedBCOPConv2d,
    LipschitzConv2d,
    OSSNConv2d,
    RKL2NEConv2d,
    RKOConv2d,
    SVCMConv2d,
)
from lconvnet.layers.linear import CholeskyLinear, LipschitzLinear, OrthogonalLinear, SpectralNormLinear
from lconvnet.layers.resampling import InvertibleDownsampling, InvertibleUpsampling, NearestUpsampling, Scale

__all__ = [
    "Abs",
    "BCOPConv2d",
    "CholeskyLinear",
    "ConstrainedLayer",
    "FixedBCOPConv2d",
    "FullSort",
    "GroupSort",
    "InvertibleDownsampling",
    "InvertibleUpsampling",
    "LipschitzConv2d",
    "LipschitzLinear",
    "MaxMin",
    "NearestUpsampling",
    "OSSNConv2d",
    "OrthogonalLinear",
    "RKL2NEConv2d",
    "RKOConv2d",
    "SVCMConv2d",
    "Scale",
    "SpectralNormLinear",
]
