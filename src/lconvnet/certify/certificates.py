"""Certified radii: no l2 perturbation below it can change the answer.

What the levels account for:

- "estimate": nothing. Norms from power iteration, margins as they were computed. It certifies nothing.
- "analytic": proven norms, and the rounding of the evaluation. The network in real arithmetic keeps its answer.
- "sound": that, and the rounding of the deployed network anywhere in the ball. So does the network as it runs, in the
  dtype of its weights and in any order of summation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import index
from typing import get_args

import numpy as np
import torch
from torch import Tensor, nn

from lconvnet import allowance
from lconvnet.bounds import CERTIFYING_LEVELS, Bound, Trace, bound_of, fingerprint, lipschitz_bound, program, trace
from lconvnet.bounds.convolution import stride_divides
from lconvnet.certify.budget import PAIR, classes_of
from lconvnet.certify.claim import REASONS, Claim, Level, Radii
from lconvnet.certify.estimate import estimated
from lconvnet.certify.evaluation import logits_of, runs_as_sums
from lconvnet.ops.altered import require_module
from lconvnet.ops.images import check_eps, check_images


@dataclass(frozen=True)
class Certificates:
    """One certificate for each of N images, on the CPU.

    Attributes:
        label: the answer, int64 ``(N,)``.
        margin: its logit minus the runner-up's, float64 ``(N,)``, as evaluated.
        radius: l2 over pixels in [0, 1], float64 ``(N,)``: no perturbation of a smaller norm changes the
            answer. 0: nothing is certified.
        level: what the radius accounts for: "analytic" or "sound", or "estimate", which certifies nothing.
        reason: why, in words, an array of NumPy ``(N,)``. "certified" ("estimated" at level "estimate"): the radius
            is above 0. Else the first of these that holds:

            - "logits not finite": NaN or infinity.
            - "tie": another class has the same logit.
            - "no finite bound": the bound of the network is infinite.
            - "overflow": at this image some number on the way may exceed half of the largest of its dtype.
            - "margin below rounding": rounding alone may undo the margin.
            - "radius below underflow": hardware that reads subnormal pixels as 0 moves the image as far; at level
              "estimate", the quotient is 0.
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

    Radii are as large as a float64 evaluation proves them. Where only decisions at some radii are asked for, a float32
    network is evaluated as it is, about four times as fast on a CPU, and those images again in float64 that its proven
    rounding leaves open.

    Args:
        network: a baked network with at least two logits.
        images: ``(N, C, H, W)`` (or whatever the network takes), floats in [0, 1].
        level: "analytic", "sound" or "estimate"; see :mod:`lconvnet.certify.certificates`.
        eps: radii at which a decision is wanted: ``radius > eps`` is what it would be without them, but radii may be
            smaller, and labels may be those of float32.
        bound: from :func:`lconvnet.lipschitz_bound` of this network; None computes it at the size of the
            images.
        batch_size: images evaluated at once, at most: fewer where they would take more than half a gigabyte.

    Raises:
        ValueError: images that are no floats in [0, 1] or do not fit, a network in half precision, a bound
            that does not certify this network, with these weights, at this size.

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
        chunks = [estimated(logits_of(network, chunk), bound) for chunk in images.split(batch_size)]
        return _certificates(*map(torch.cat, zip(*chunks, strict=True)), level=level)
    claim, wanted = Claim.of(network, traced, bound, images, level), [check_eps(value) for value in eps]
    if wanted and claim.dtype == images.dtype == torch.float32 and runs_as_sums(network):
        found = _decided(claim, images, wanted, batch_size)
    else:
        found = claim.radii(images, torch.float64, batch_size)
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
    """How many images to evaluate at once in float64, their patches laid out as convolutions do."""
    widest = max(math.prod(node.shape or ()) for node in traced.graph.nodes)
    patches = [
        operation.module.weight[0].numel() * math.prod((traced.graph[name].shape or ())[1:])
        for name, operation in traced.operations.items()
        if isinstance(operation.module, nn.Conv2d)
    ]
    each = 8 * (3 * widest + max(patches, default=0)) + PAIR * classes_of(traced.graph)
    return max(1, allowance.BYTES // each)


def _decided(claim: Claim, images: Tensor, eps: Sequence[float], batch_size: int) -> Radii:
    """The network evaluated as it is, and in float64 where that leaves an eps open."""
    found = claim.radii(images, torch.float32, batch_size)
    undecided = found.open(eps)
    if bool(undecided.any()):
        better = claim.radii(images[undecided.to(images.device)], torch.float64, batch_size)
        for column, value in zip(found, better, strict=True):
            column[undecided] = value
    return found


def _refuse_half_precision(network: nn.Module) -> None:
    """The float64 copy would certify other arithmetic than what runs, with three digits at best."""
    for name, tensor in chain(network.named_parameters(), network.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"network tensor {name!r} is {tensor.dtype}, too coarse to certify what runs: bake the model in float32"
            )


def check_bound(bound: Bound, network: nn.Module, traced: Trace) -> None:
    """Refuse a bound of another kind, of another network, or for another size of image."""
    if not isinstance(bound, Bound):
        raise ValueError(f"bound is a {type(bound).__name__}: use lipschitz_bound(network)")
    if bound.level not in CERTIFYING_LEVELS:
        raise ValueError(
            f"bound.level={bound.level!r} does not certify: use the bound of lipschitz_bound(network), "
            f"level {CERTIFYING_LEVELS}"
        )
    if math.isnan(bound.upper) or bound.upper < 0:
        raise ValueError(f"bound.upper={bound.upper} is no Lipschitz constant: use lipschitz_bound(network)")
    if bound.fingerprint != fingerprint(network):
        raise ValueError(
            "bound is of other weights or another network than this one: compute it again with lipschitz_bound(network)"
        )
    shape, steps = traced.graph.nodes[0].shape, traced.operations.values()
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
