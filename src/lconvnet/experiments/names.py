"""Where the names of a configuration meet Python: literal dictionaries, the only such table of the package.

Each key is a value that `lconvnet.experiments.config` allows; a test holds the two equal.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from lconvnet import attacks, data, layers, losses, models
from lconvnet.models import baselines
from lconvnet.training import schedules

CONVS: Mapping[str, Callable[..., nn.Module]] = {
    "bcop": layers.BCOPConv2d,
    "bcop-fixed": layers.FixedBCOPConv2d,
    "rko": layers.RKOConv2d,
    "ossn": layers.OSSNConv2d,
    "svcm": layers.SVCMConv2d,
    "rkl2ne": layers.RKL2NEConv2d,
    "unconstrained": baselines.unconstrained_conv,
}
LINEARS: Mapping[str, Callable[..., nn.Module]] = {
    "orthogonal": layers.OrthogonalLinear,
    "cholesky": layers.CholeskyLinear,
    "spectral-norm": layers.SpectralNormLinear,
    "unconstrained": baselines.unconstrained_linear,
}
ACTIVATIONS: Mapping[str, Callable[..., nn.Module]] = {
    "maxmin": layers.MaxMin,
    "groupsort": layers.GroupSort,
    "fullsort": layers.FullSort,
    "abs": layers.Abs,
    "relu": nn.ReLU,
}
ARCHITECTURES: Mapping[str, Callable[..., nn.Sequential]] = {
    "mlp": models.mlp,
    "small": models.small_convnet,
    "large": models.large_convnet,
    "kw-small": models.kw_small,
    "kw-large": models.kw_large,
    "kw-resnet": models.kw_resnet,
    "qw": models.qw_convnet,
    "dcgan": models.dcgan_critic,
}
LOSSES: Mapping[str, Callable[..., Any]] = {
    "hinge": losses.Hinge,
    "offset-cross-entropy": losses.OffsetCrossEntropy,
}
OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
}
SCHEDULES: Mapping[str, Callable[..., schedules.Schedule]] = {
    "exponential": schedules.exponential,
    "one-cycle": schedules.one_cycle,
    "constant": schedules.constant,
}
AUGMENTATIONS: Mapping[str, Callable[..., torch.Tensor] | None] = {
    "none": None,
    "crop-flip": data.crop_and_flip,
}
ATTACKS: Mapping[str, Callable[..., attacks.AttackResult]] = {
    "pgd": attacks.pgd,
    "fgsm": attacks.fgsm,
    "apgd": attacks.apgd,
    "square": attacks.square,
    "autoattack": attacks.autoattack,
}
MINIMUM_NORM_ATTACKS: Mapping[str, Callable[..., attacks.AttackResult]] = {
    "deepfool": attacks.deepfool,
    "carlini_wagner": attacks.carlini_wagner,
    "ddn": attacks.ddn,
    "fmn": attacks.fmn,
    "boundary_attack": attacks.boundary_attack,
    "pointwise": attacks.pointwise,
    "hop_skip_jump": attacks.hop_skip_jump,
}
