"""Certified radii: no l2 perturbation below the radius can change the answer.

The levels are:

- "estimate": norms from power iteration and margins as computed. It certifies nothing.
- "analytic": proven norms, and the rounding of the evaluation. The network in real arithmetic keeps its answer.
- "sound": also the rounding of the deployed network anywhere in the ball. The network as it runs keeps its answer, in
  the dtype of its weights and in any order of summation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from operator import index
from typing import get_args

import numpy as np
import torch
from torch import Tensor, nn

from lconvnet import allowance
from lconvnet.bounds import CERTIFYING_LEVELS, Bound, Trace, bound_of, fingerprint, lipschitz_bound, program, trace
from lconvnet.bounds.convolution import stride_divides
from lconvnet.bounds.linear import margin_bounds
from lconvnet.certify.certifier import (
    PAIR,
    REASONS,
    Certifier,
    Level,
    Radii,
    Reason,
    classes_of,
    logits_of,
    reason_codes,
    runs_as_sums,
)
from lconvnet.ops.hooks import require_module
from lconvnet.ops.images import check_eps, check_images, check_labels
from lconvnet.ops.margins import margins

WIDER = 1 + 2.0**-40
"""Linear margins are bounded over a ball larger by this factor, so that "radius > eps" holds at eps itself."""


@dataclass(frozen=True)
class Certificates:
    """Certificates of N images, on the CPU.

    Attributes:
        label: the answer, int64 ``(N,)``.
        margin: its logit minus the runner-up's, float64 ``(N,)``, as evaluated.
        radius: l2 over pixels in [0, 1], float64 ``(N,)``: no perturbation of a smaller norm changes the answer. A
            radius of 0 certifies nothing.
        level: what the radius accounts for: "analytic" or "sound", or "estimate", which certifies nothing.
        reason: a NumPy array ``(N,)`` of words. If the radius is above 0, "certified" ("estimated" at level
            "estimate"). Else the first of these that holds:

            - "logits not finite": NaN or infinity.
            - "tie": another class has the same logit.
            - "no finite bound": the bound of the network is infinite.
            - "overflow": some number in the forward pass may exceed half of the largest number of its dtype.
            - "margin below rounding": rounding alone may undo the margin.
            - "radius below underflow": hardware that reads subnormal pixels as 0 may move the image by as much; at
              level "estimate", the quotient is 0.
    """

    label: Tensor
    margin: Tensor
    radius: Tensor
    level: str
    reason: np.ndarray

    def __len__(self) -> int:
        return len(self.label)


def certify(
    network: nn.Module,
    images: Tensor,
    *,
    level: Level = "analytic",
    eps: Sequence[float] = (),
    bound: Bound | None = None,
    batch_size: int = 512,
) -> Certificates:
    """Certify the answers of a baked network.

    Radii are those that a float64 evaluation proves. If you only need decisions at some radii, pass them as `eps`. A
    float32 network is then evaluated in float32, about four times as fast on a CPU, and in float64 only for images
    whose decision the proven rounding leaves open.

    Args:
        network: a baked network with at least two logits.
        images: ``(N, C, H, W)``, or another shape that the network takes; floats in [0, 1].
        level: "analytic", "sound" or "estimate"; see :mod:`lconvnet.certify.certificates`.
        eps: radii that need a decision. Each ``radius > eps`` is the same as without `eps`, but radii may be smaller,
            and labels may be those of float32.
        bound: from :func:`lconvnet.lipschitz_bound` of this network; None computes it at the size of the images.
        batch_size: images evaluated at once, at most; fewer if they would take more than half a gigabyte.

    Raises:
        ValueError: for images that are not floats in [0, 1] or do not fit, a network in half precision, or a bound that
            does not certify this network with these weights at this size.

    >>> network = nn.Sequential(nn.Linear(2, 2, bias=False))
    >>> _ = network[0].weight.data.copy_(torch.eye(2))
    >>> found = certify(network, torch.tensor([[1.0, 0.0]]), level="sound")
    >>> round(float(found.radius), 4), str(found.reason[0])
    (0.7071, 'certified')
    """
    require_module(network)
    check_images(images)
    batch_size = _checked_count(batch_size)
    if not isinstance(eps, Iterable) or isinstance(eps, str) or getattr(eps, "ndim", 1) == 0:
        raise ValueError(f"eps={eps!r} is one radius: pass all of them in a sequence, ({eps},)")
    if level not in get_args(Level):
        raise ValueError(f"level={level!r} is unknown: use one of {get_args(Level)}")
    _refuse_half_precision(network)
    shape = tuple(images.shape[1:])
    try:
        traced = trace(network, shape)
    except ValueError as error:
        if images.ndim == 3 and _reads(network, images.shape):
            raise ValueError(f"{error}; one image (C, H, W) is images[None]") from None
        raise
    if bound is None:
        bound = lipschitz_bound(network, input_shape=shape) if level == "estimate" else bound_of(traced, network)
    check_bound(bound, network, traced)
    batch_size = min(batch_size, _fitting(traced))
    if level == "estimate":
        chunks = [_estimated(logits_of(network, chunk), bound) for chunk in images.split(batch_size)]
        return _certificates(*map(torch.cat, zip(*chunks, strict=True)), level=level)
    certifier, wanted = Certifier.of(network, traced, bound, images, level), [check_eps(value) for value in eps]
    if wanted and certifier.dtype == images.dtype == torch.float32 and runs_as_sums(network):
        found = _decided(certifier, images, wanted, batch_size)
    else:
        found = certifier.radii(images, torch.float64, batch_size)
    return _certificates(found.label, found.margin, found.radius, found.reason, level=level)


def _certificates(label: Tensor, margin: Tensor, radius: Tensor, codes: Tensor, *, level: Level) -> Certificates:
    return Certificates(label, margin, radius, level, np.array(REASONS)[codes.numpy()])


def _reads(network: nn.Module, shape: Sequence[int]) -> bool:
    try:
        trace(network, shape)
    except ValueError:
        return False
    return True


def _checked_count(batch_size: int) -> int:
    try:
        count = 0 if isinstance(batch_size, bool) else index(batch_size)
    except TypeError:
        count = 0
    if count < 1:
        raise ValueError(f"batch_size={batch_size!r} must be an integer, at least 1")
    return count


def _fitting(traced: Trace) -> int:
    """How many images to evaluate at once in float64, with the patches that convolutions lay out."""
    widest = max(math.prod(node.shape or ()) for node in traced.graph.nodes)
    patches = [
        call.module.weight[0].numel() * math.prod((traced.graph[name].shape or ())[1:])
        for name, call in traced.calls.items()
        if isinstance(call.module, nn.Conv2d)
    ]
    each = 8 * (3 * widest + max(patches, default=0)) + PAIR * classes_of(traced.graph)
    return max(1, allowance.BYTES // each)


def _decided(certifier: Certifier, images: Tensor, eps: Sequence[float], batch_size: int) -> Radii:
    """Evaluate in the network's dtype, then in float64 the images for which that leaves an eps open."""
    found = certifier.radii(images, torch.float32, batch_size)
    undecided = found.open(eps)
    if bool(undecided.any()):
        better = certifier.radii(images[undecided.to(images.device)], torch.float64, batch_size)
        for column, value in zip(found, better, strict=True):
            column[undecided] = value
    return found


def _refuse_half_precision(network: nn.Module) -> None:
    """Refuse half precision: the float64 copy would certify other arithmetic than the one that runs."""
    for name, tensor in chain(network.named_parameters(), network.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"network tensor {name!r} is {tensor.dtype}, too coarse to certify what runs: bake the model in float32"
            )


def check_bound(bound: Bound, network: nn.Module, traced: Trace) -> None:
    """Refuse a bound that does not certify, or that belongs to another network or image size."""
    if not isinstance(bound, Bound):
        raise ValueError(f"bound is a {type(bound).__name__}: use lipschitz_bound(network)")
    if bound.level not in CERTIFYING_LEVELS:
        raise ValueError(
            f"bound.level={bound.level!r} does not certify: use the bound of lipschitz_bound(network), "
            f"level {CERTIFYING_LEVELS}"
        )
    if math.isnan(bound.upper) or bound.upper < 0:
        raise ValueError(f"bound.upper={bound.upper} is not a Lipschitz constant: use lipschitz_bound(network)")
    if bound.fingerprint != fingerprint(network):
        raise ValueError(
            "bound is of other weights or another network than this one: compute it again with lipschitz_bound(network)"
        )
    shape, steps = traced.graph.nodes[0].shape, traced.calls.values()
    irregular = any(type(step.module) is nn.Conv2d and not stride_divides(step) for step in steps)
    if (irregular or bound.input_shape is not None) and shape != bound.input_shape:
        raise ValueError(
            f"bound.input_shape={bound.input_shape} does not cover images of shape {shape}: use "
            f"lipschitz_bound(network, input_shape={shape})"
        )
    if bound.program != program(traced if shape == bound.input_shape else trace(network, bound.input_shape)):
        raise ValueError(
            "bound is of another forward pass than this network's, whose numbers have changed: compute it again with "
            "lipschitz_bound(network)"
        )


def _estimated(logits: Tensor, bound: Bound) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Label, margin, ``margin / (sqrt(2) prod_l lower_l)`` and the codes of the reasons; rounding is ignored.

    If a layer has no lower bound, the lower bound of the whole network replaces the product. Raises ``ValueError`` if
    there is none.
    """
    lowers = [layer.lower for layer in bound.layers if layer.lower is not None]
    if len(lowers) < len(bound.layers):
        lowers = [] if bound.lower is None else [bound.lower]
    if bound.layers and not lowers:
        raise ValueError("bound has no lower bounds, which level='estimate' is made of: use diagnose=True")
    label = logits.argmax(dim=1)
    margin = margins(logits, label).amin(dim=1)
    lipschitz = math.sqrt(2) * math.prod(lowers)
    radius = margin / lipschitz
    causes: dict[Reason, Tensor] = {
        "logits not finite": ~logits.isfinite().all(dim=1),
        "tie": margin == 0,
        "no finite bound": torch.full_like(margin, not math.isfinite(lipschitz), dtype=torch.bool),
    }
    return label, margin, radius, reason_codes(radius, "estimated", causes)


def certified_accuracy(certificates: Certificates, labels: Tensor, eps: float) -> float:
    """Fraction of images with the right answer and a radius strictly above eps.

        #{ n : label_n = labels_n and radius_n > eps } / N

    Args:
        certificates: of N images.
        labels: true classes, integers ``(N,)``.
        eps: l2 radius over pixels in [0, 1].

    >>> import numpy as np
    >>> import torch
    >>> one = torch.ones(2, dtype=torch.float64)
    >>> certificates = Certificates(torch.tensor([3, 4]), one, one, "analytic", np.array(["certified"] * 2))
    >>> certified_accuracy(certificates, torch.tensor([3, 5]), 0.5)
    0.5
    """
    eps = check_eps(eps)
    if len(certificates) == 0:
        raise ValueError("certificates is empty: an accuracy needs at least one image")
    if certificates.level == "estimate":
        raise ValueError("certificates are of level 'estimate', which certifies nothing: use 'analytic' or 'sound'")
    right = certificates.label == check_labels(labels, len(certificates)).to(certificates.label.device)
    return float((right & (certificates.radius > eps)).double().mean())


def linear_margins(network: nn.Module, images: Tensor, labels: Tensor, eps: float, *, batch_size: int = 16) -> Tensor:
    """A lower bound on the smallest margin over the ball of radius `eps` around each image, float64 ``(N,)``.

    Args:
        network, images, labels, eps: see :func:`lconvnet.bounds.linear.margin_bounds`.
        batch_size: images bounded at once; memory grows with it.

    >>> network = nn.Sequential(nn.Linear(2, 2, bias=False))
    >>> _ = network[0].weight.data.copy_(torch.eye(2))
    >>> round(float(linear_margins(network, torch.tensor([[1.0, 0.0]]), torch.tensor([0]), 0.5)), 6)
    0.292893
    """
    radius = check_eps(eps) * WIDER
    pairs = zip(images.split(batch_size), labels.split(batch_size), strict=True)
    return torch.cat([margin_bounds(network, chunk, answer, radius).amin(dim=1) for chunk, answer in pairs])


def certified_at(certificates: Certificates, margins: Tensor, eps: float) -> Certificates:
    """Raise a radius to just above `eps` if the linear bound of the answer's margin is positive.

    >>> why = np.array(["no finite bound"] * 2)
    >>> known = Certificates(torch.tensor([0, 1]), torch.ones(2), torch.zeros(2), "analytic", why)
    >>> found = certified_at(known, torch.tensor([0.2, -0.2]), 0.5)
    >>> [round(r, 6) for r in found.radius.tolist()], found.reason.tolist()
    ([0.5, 0.0], ['certified', 'no finite bound'])
    """
    radius = certificates.radius
    proved = torch.maximum(radius, torch.full_like(radius, eps * WIDER))
    wider = torch.where(margins > 0, proved, radius)
    newly = (wider > 0) & ~(radius > 0)
    return replace(certificates, radius=wider, reason=np.where(newly, "certified", certificates.reason))
