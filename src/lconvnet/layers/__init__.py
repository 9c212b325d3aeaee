"""Layers with a known Lipschitz constant: each linear one owns a kernel."""

from lconvnet.layers.activations import Abs, FullSort, GroupSort, MaxMin, TwoSidedReLU
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
from lconvnet.layers.fixed import (
    Concat,
    InvertibleDownsampling,
    InvertibleUpsampling,
    NearestUpsampling,
    Normalize,
    NormPool,
    Scale,
    Sum,
)
from lconvnet.layers.linear import CholeskyLinear, L2NELinear, LipschitzLinear, OrthogonalLinear, SpectralNormLinear

__all__ = [
    "Abs",
    "BCOPConv2d",
    "CholeskyLinear",
    "Concat",
    "ConstrainedLayer",
    "FixedBCOPConv2d",
    "FullSort",
    "GroupSort",
    "InvertibleDownsampling",
    "InvertibleUpsampling",
    "L2NELinear",
    "LipschitzConv2d",
    "LipschitzLinear",
    "MaxMin",
    "NearestUpsampling",
    "NormPool",
    "Normalize",
    "OSSNConv2d",
    "OrthogonalLinear",
    "RKL2NEConv2d",
    "RKOConv2d",
    "SVCMConv2d",
    "Scale",
    "SpectralNormLinear",
    "Sum",
    "TwoSidedReLU",
]
