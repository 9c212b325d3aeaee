"""What every attack asks of its arguments, and the copy of the network that it evaluates."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from copy import deepcopy
from typing import Concatenate, ParamSpec

import torch
from torch import Tensor, nn

from lconvnet.attacks.result import AttackResult
from lconvnet.ops.altered import require_module
from lconvnet.ops.images import check_images, check_labels

COUNTS = ("steps", "restarts", "queries", "binary_search_steps", "max_gradient_eval_steps")
P = ParamSpec("P")
Attacking = Callable[Concatenate[nn.Module, Tensor, Tensor, P], AttackResult]


class Frozen(nn.Module):
    """A copy of a network in eval mode that gathers no gradients and takes images of any dtype in its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = deepcopy(network).requires_grad_(False)
        self.dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), None)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.to(self.dtype) if self.dtype else images)


def checked(attack: Attacking[P]) -> Attacking[P]:
    """Let an attack see a frozen copy of the network, images without a graph, and labels that are classes of it.

    The network and the mode that gradients are in stay as they are. Raises `ValueError` for what does not fit.
    """

    @functools.wraps(attack)
    def run(network: nn.Module, images: Tensor, labels: Tensor, /, *args: P.args, **options: P.kwargs) -> AttackResult:
        require_module(network)
        if not len(check_images(images)):
            raise ValueError(f"images has shape {tuple(images.shape)}: there is nothing to attack")
        labels = check_labels(labels, len(images)).to(images.device)
        for name, value in options.items():
            _check_option(name, value)
        with torch.inference_mode(False), torch.enable_grad():
            frozen, images, labels = Frozen(network), images.detach().clone(), labels.clone()
            _require_classes(frozen, images, labels)
            return attack(frozen, images, labels, *args, **options)

    return run


@torch.no_grad()
def _require_classes(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    logits = network(images[:1])
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"network gives {tuple(logits.shape)} for one image: attacks need (1, classes), 2 or more")
    if int(labels.max()) >= logits.shape[1]:
        raise ValueError(f"labels has the class {int(labels.max())}, the network has {logits.shape[1]} classes from 0")


def _check_option(name: str, value: object) -> None:
    if name in COUNTS and not (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        raise ValueError(f"{name}={value!r}: must be an integer of at least 1")
    if name == "seed" and (isinstance(value, bool) or not isinstance(value, int)):
        raise ValueError(f"seed={value!r}: must be an integer")
    positive = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
    if name == "step_size" and value is not None and not positive:
        raise ValueError(f"step_size={value!r}: must be a number above 0")
