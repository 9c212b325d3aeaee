"""Results of attacks, an independent check of them, and checks of the arguments that all attacks share."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from numbers import Integral
from typing import Concatenate, Literal, ParamSpec, Protocol, cast, get_args, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn

from lconvnet.ops.hooks import require_module, require_numbers
from lconvnet.ops.images import check_images, check_labels, is_finite_number
from lconvnet.ops.numbers import PositiveFloat, PositiveInt

Norm = Literal["l2", "linf"]
"""How a perturbation is measured: Euclidean length, or the largest change of a pixel."""


@dataclass(frozen=True)
class AttackResult:
    """The result of an attack on B images.

    Attributes:
        adversarial: images in [0, 1], with the shape and dtype of the originals.
        success: bool ``(B,)``: the answer differs from the label, and the norm is at most eps (if the attack takes an
            eps).
        norm: exact distance to the original in the norm of the attack, float64 ``(B,)``.
        zero_gradient: bool ``(B,)``: the answer is right, and an attack along the gradient had none to follow (zero or
            not finite), for `fgsm` and `pgd` at every point they visited, for attacks of the libraries at the image.
    """

    adversarial: Tensor
    success: Tensor
    norm: Tensor
    zero_gradient: Tensor

    def replaced(self, index: Tensor, new: AttackResult) -> AttackResult:
        """Return the result with new outcomes for the images at `index`."""
        return AttackResult(*(old.index_copy(0, index, vars(new)[name]) for name, old in vars(self).items()))


P = ParamSpec("P")


class Attack(Protocol[P]):
    """An attack on images ``(B, C, H, W)`` in [0, 1] with their labels.

    An attack within a ball takes the radius eps next. One that looks for the shortest perturbation takes none, and a
    single run serves every eps. `library` names the library behind it, if any; `by_gradient` says whether it follows
    the gradient.
    """

    library: str
    by_gradient: bool

    def __call__(
        self, network: nn.Module, images: Tensor, labels: Tensor, /, *args: P.args, **options: P.kwargs
    ) -> AttackResult:
        """Attack the images."""
        ...


@torch.no_grad()
def score(
    network: nn.Module, images: Tensor, labels: Tensor, adversarial: Tensor, eps: float | Tensor, *, norm: Norm = "l2"
) -> AttackResult:
    """Clip to [0, 1], measure the distance in float64, and ask the network again.

    An image that is further away than eps (one number, or one per image), or not finite, counts as a failed attack.

    >>> x = torch.zeros(1, 2)
    >>> score(nn.Flatten(), x, torch.tensor([0]), torch.tensor([[0.0, 1.0]]), eps=0.5).success.tolist()
    [False]
    """
    clipped = adversarial.to(images.dtype).clamp(0, 1)
    distance = norms(clipped.double() - images.double(), norm)
    fooled = network(clipped).argmax(dim=1) != labels
    return AttackResult(clipped, fooled & (distance <= eps), distance, torch.zeros_like(fooled))


def norms(perturbation: Tensor, norm: Norm = "l2") -> Tensor:
    """Return the norm of every image of a batch ``(B, ...)``: ``(B,)``.

    >>> norms(torch.tensor([[3.0, -4.0]])).item(), norms(torch.tensor([[3.0, -4.0]]), "linf").item()
    (5.0, 4.0)
    """
    if norm not in get_args(Norm):
        raise ValueError(f"norm={norm!r}: must be 'l2' or 'linf'")
    return torch.linalg.vector_norm(perturbation.flatten(1), ord=2 if norm == "l2" else torch.inf, dim=1)


class Frozen(nn.Module):
    """A copy of a network in eval mode. Its parameters have no gradients, and it casts images to its own dtype."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = deepcopy(network).requires_grad_(False)
        self.dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), None)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.to(self.dtype) if self.dtype else images)


def checked(
    library: str = "", *, by_gradient: bool = True
) -> Callable[[Callable[Concatenate[nn.Module, Tensor, Tensor, P], AttackResult]], Attack[P]]:
    """Decorate an attack: it gets a frozen copy of the network, images without a graph, and valid labels.

    The network and the gradient mode stay unchanged. Raises `ValueError` for arguments that do not fit.
    """

    def decorate(attack: Callable[Concatenate[nn.Module, Tensor, Tensor, P], AttackResult]) -> Attack[P]:
        hints = get_type_hints(attack, include_extras=True)

        @functools.wraps(attack)
        def run(
            network: nn.Module, images: Tensor, labels: Tensor, /, *args: P.args, **options: P.kwargs
        ) -> AttackResult:
            require_module(network)
            require_numbers(network)
            if not len(check_images(images)):
                raise ValueError(f"images has shape {tuple(images.shape)}: there is nothing to attack")
            labels = check_labels(labels, len(images)).to(images.device)
            options.update({name: _option(name, value, hints.get(name)) for name, value in options.items()})
            with torch.inference_mode(False), torch.enable_grad():
                frozen, images, labels = Frozen(network), images.detach().clone(), labels.clone()
                _require_classes(frozen, images, labels)
                return attack(frozen, images, labels, *args, **options)

        found = cast(Attack[P], run)
        found.library, found.by_gradient = library, by_gradient
        return found

    return decorate


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


def _option(name: str, value: object, hint: object) -> object:
    """The value of an option, with an integer of NumPy as one of Python; ValueError for a value that does not fit."""
    kinds = (hint, *get_args(hint))  # and the members of a union
    if name == "seed" or PositiveInt in kinds:
        least, what = (-(2**63), "an integer of 64 bits") if name == "seed" else (1, "an integer of at least 1")
        if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) < 2**63:
            raise ValueError(f"{name}={value!r}: must be {what}")
        return int(value)
    if PositiveFloat in kinds and value is not None and not (is_finite_number(value) and cast(float, value) > 0):
        raise ValueError(f"{name}={value!r}: must be a number above 0")
    if name == "norm" and value not in get_args(Norm):
        raise ValueError(f"norm={value!r}: must be 'l2' or 'linf'")
    return value


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global random generators within the block, and restore them afterwards. Attack libraries draw from them.

    >>> with seeded(3, torch.device("cpu")):
    ...     first = torch.rand(1).item()
    >>> with seeded(3, torch.device("cpu")):
    ...     torch.rand(1).item() == first
    True
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (the libraries use no other)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            torch.manual_seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
