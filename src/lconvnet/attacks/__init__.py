"""Attacks in l2: an upper bound on robustness, and the check of every certificate."""

from lconvnet.attacks.gradient import fgsm, pgd
from lconvnet.attacks.result import Attack, AttackResult, Loss, score

__all__ = ["Attack", "AttackResult", "Loss", "fgsm", "pgd", "score"]
