"""Attacks: an upper bound on robustness, and the check of every certificate.

`fgsm` and `pgd` need nothing else; the others adapt libraries of the extra `attacks`.
"""

from lconvnet.attacks.gradient import fgsm, pgd
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
from lconvnet.attacks.losses import LOSSES, Loss, LossName
from lconvnet.attacks.result import Attack, AttackResult, MinimumNormAttack, Norm, norms, score

__all__ = [
    "LOSSES",
    "Attack",
    "AttackResult",
    "Loss",
    "LossName",
    "MinimumNormAttack",
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
