"""What every attack asks of its arguments, and the copy of the network that it evaluates."""

from __future__ import annotations

import functools
from collections.abc import Callable
from copy import deepcopy
from numbers import Integral
from typing import Concatenate, ParamSpec, cast

import torch
from torch import Tensor, nn

from lconvnet.attacks.result import AttackResult
from lconvnet.ops.hooks import require_module, require_numbers
from lconvnet.ops.images import check_images, check_labels, is_finite_number

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
        require_numbers(network)
        if not len(check_images(images)):
            raise ValueError(f"images has shape {tuple(images.shape)}: there is nothing to attack")
        labels = check_labels(labels, len(images)).to(images.device)
        options.update({name: _option(name, value) for name, value in options.items()})
        with torch.inference_mode(False), torch.enable_grad():
            frozen, images, labels = Frozen(network), images.detach().clone(), labels.clone()
            _require_classes(frozen, images, labels)
            return attack(frozen, images, labels, *args, **options)

    return run


@torch.no_grad()
def _require_classes(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    try:
        logits = network(images[:1])
    except (RuntimeError, ValueError, IndexError) as error:
        shape, reason = tuple(images.shape[1:]), (str(error).splitlines() or [""])[0]
        raise ValueError(f"network cannot take an image of shape {shape}: {reason}") from error
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"network gives {tuple(logits.shape)} for one image: attacks need (1, classes), 2 or more")
    if int(labels.max()) >= logits.shape[1]:
        raise ValueError(f"labels has the class {int(labels.max())}, the network has {logits.shape[1]} classes from 0")


def _option(name: str, value: object) -> object:
    """The value of an option, an integer of NumPy as one of Python; ValueError for what it cannot be."""
    if name in COUNTS or name == "seed":
        least, what = (1, "an integer of at least 1") if name in COUNTS else (-(2**63), "an integer of 64 bits")
        if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) < 2**63:
            raise ValueError(f"{name}={value!r}: must be {what}")
        return int(value)
    if name == "step_size" and value is not None and not (is_finite_number(value) and cast(float, value) > 0):
        raise ValueError(f"step_size={value!r}: must be a number above 0")
    return value
