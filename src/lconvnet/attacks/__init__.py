"""Attacks give an upper bound on robustness and check every certificate.

`fgsm` and `pgd` have no further dependency; the others adapt libraries of the extra `attacks`.
"""

from lconvnet.attacks.gradient import LOSSES, Loss, LossName, fgsm, pgd
from lconvnet.attacks.libraries import (
    apgd,
    autoattack,
    boundary_attack,
    carlini_wagner,
    ddn,
    deepfool,
    fmn,
    hop_skip_jump,
    pointwise,
    square,
)
from lconvnet.attacks.result import Attack, AttackResult, Norm, norms, score

__all__ = [
    "LOSSES",
    "Attack",
    "AttackResult",
    "Loss",
    "LossName",
    "Norm",
    "apgd",
    "autoattack",
    "boundary_attack",
    "carlini_wagner",
    "ddn",
    "deepfool",
    "fgsm",
    "fmn",
    "hop_skip_jump",
    "norms",
    "pgd",
    "pointwise",
    "score",
    "square",
]
