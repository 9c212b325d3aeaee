"""From logits to radii.

With i the answer, m_j = f_i - f_j as evaluated, t at least the norm of the image, and

    Lambda_ij = min(sqrt(2) L, L_body |w_i - w_j|, L_i + L_j)

(the second where the logits are those of a dense layer with rows w, scaled and shifted at most, the third where every
one is the output of a network of its own, with the constant L_i),
the margin of the network in real arithmetic is at least m_j - e_ij t - e0_ij at the image, falls by at most Lambda_ij r
within the radius r, and the deployed network deviates by at most E_ij (t + r) + E0_ij there (none of it at level
"analytic"). So the answer stays the same up to

    r = min_j (m_j - (e_ij + E_ij) t - e0_ij - E0_ij) / (Lambda_ij + E_ij).

Hardware may read subnormal pixels as 0, which moves an image of n pixels by less than sqrt(n) times the least normal
number; so much is taken off the radius.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from lconvnet.bounds import Bound, Trace, in_float64, tensors_of
from lconvnet.bounds.graph import Graph
from lconvnet.certify.budget import Budget, Pairs, budget, classes_of, refuse_subnormal
from lconvnet.certify.evaluation import image_norms, logits_of, refuse_other_sums
from lconvnet.certify.head import find_head, logit_constants
from lconvnet.ops.float64 import row_norms, to_float64
from lconvnet.ops.margins import margins
from lconvnet.ops.rounding import UNIT_ROUNDOFF

Level = Literal["estimate", "analytic", "sound"]
"""What a radius accounts for; see :mod:`lconvnet.certify.certificates`."""

Reason = Literal[
    "certified",
    "estimated",
    "logits not finite",
    "tie",
    "no finite bound",
    "overflow",
    "margin below rounding",
    "radius below underflow",
]
"""Why a radius is what it is; see :class:`lconvnet.certify.Certificates`."""

REASONS: tuple[Reason, ...] = get_args(Reason)
"""A reason's place here is its code."""

ROUNDINGS = 16 * UNIT_ROUNDOFF
"""More than the float64 operations on one margin, error or radius can change, relatively."""


class Radii(NamedTuple):
    """Answers of N images with what an evaluation proves about them.

    Attributes:
        label, margin, radius: as in :class:`lconvnet.certify.Certificates`.
        reason: codes, int8.
        ceiling: no evaluation, however exact, gives a larger radius.
    """

    label: Tensor
    margin: Tensor
    radius: Tensor
    reason: Tensor
    ceiling: Tensor

    def open(self, eps: Sequence[float]) -> Tensor:
        """Images for which a better evaluation may decide ``radius > eps`` otherwise: ``(N,)``."""
        return torch.stack([(self.radius <= value) & ~(self.ceiling <= value) for value in eps]).any(dim=0)


def reason_codes(radius: Tensor, positive: Reason, causes: dict[Reason, Tensor]) -> Tensor:
    """The codes of the reasons of N radii, int8 ``(N,)``.

    Args:
        radius: ``(N,)``.
        positive: the reason of every radius above 0, and of no other.
        causes: where each of them holds, ``(N,)``; the first counts. Where none does, the radius underflows.

    >>> ties = torch.tensor([True, False, False])
    >>> [REASONS[code] for code in reason_codes(torch.tensor([0, 0, 0.5]), "certified", {"tie": ties})]
    ['tie', 'radius below underflow', 'certified']
    """
    codes = torch.full(radius.shape, REASONS.index("radius below underflow"), dtype=torch.int8)
    for reason, holds in reversed(causes.items()):
        codes[holds] = REASONS.index(reason)
    codes[radius > 0] = REASONS.index(positive)
    return codes


@dataclass(eq=False)
class Claim:
    """What is certified: a network at one size of image, in the dtype that it is deployed in."""

    network: nn.Module
    graph: Graph
    tensors: Mapping[str, Tensor]
    bound: Bound
    level: Level
    dtype: torch.dtype
    _budgets: dict[torch.dtype, Budget] = field(default_factory=dict)

    @classmethod
    def of(cls, network: nn.Module, traced: Trace, bound: Bound, images: Tensor, level: Level) -> Claim:
        """The claim about a network that was traced on images of this shape."""
        tensors = tensors_of(network)
        classes_of(traced.graph)
        if level == "sound":
            refuse_subnormal(traced.graph, tensors)
            refuse_other_sums(network)
        return cls(network, traced.graph, tensors, bound, level, _dtype(network, images, level))

    def radii(self, images: Tensor, dtype: torch.dtype, batch_size: int) -> Radii:
        """Evaluate in float32, as the network is, or in float64, once its rounding is known to be bounded."""
        for used in (dtype, self.dtype) if self.level == "sound" else (dtype,):
            self._budget(used)
        network = self._double if dtype == torch.float64 else self.network
        chunks = [self._radii(chunk, logits_of(network, chunk.to(dtype)), dtype) for chunk in images.split(batch_size)]
        return Radii(*map(torch.cat, zip(*chunks, strict=True)))

    def _radii(self, images: Tensor, logits: Tensor, dtype: torch.dtype) -> Radii:
        label, norms = logits.argmax(dim=1), image_norms(images)
        ahead, evaluation = margins(logits, label), self._budget(dtype)
        error, slope = evaluation.at(norms, label), self._lipschitz[label]
        unbounded = ~slope.amax(dim=1).isfinite()
        deployed, reach = torch.zeros_like(error), torch.full_like(norms, math.inf)
        if self.level == "sound":
            rounding = self._budget(self.dtype)
            deployed, reach = rounding.at(norms, label), rounding.reach - norms
            slope = (slope + rounding.slope[label]) * (1 + ROUNDINGS)
        excess = ahead * (1 - ROUNDINGS) - (error + deployed) * (1 + ROUNDINGS)
        proven, margin = (excess / slope).amin(dim=1), ahead.amin(dim=1)
        ceiling = ((ahead + 2 * error - deployed) / slope).amin(dim=1) * (1 + 2.0**-20)
        flushed = math.sqrt(math.prod(images.shape[1:])) * torch.finfo(self.dtype).tiny
        radius = torch.minimum((proven - flushed) * (1 - ROUNDINGS), reach)
        radius = torch.where((radius > 0) & (norms < evaluation.reach), radius, 0.0)
        causes: dict[Reason, Tensor] = {
            "logits not finite": ~logits.isfinite().all(dim=1),
            "tie": margin == 0,
            "no finite bound": unbounded,
            "overflow": ~((norms < evaluation.reach) & (reach > 0)),
            "margin below rounding": ~(excess.amin(dim=1) > 0),
        }
        return Radii(label, margin, radius, reason_codes(radius, "certified", causes), ceiling)

    @cached_property
    def _double(self) -> nn.Module:
        return in_float64(self.network, self.graph)

    @cached_property
    def _lipschitz(self) -> Pairs:
        """Lambda of every pair of classes."""
        classes, head = classes_of(self.graph), find_head(self.graph, self.bound)
        own, rows = logit_constants(self.graph, self.bound), None
        if head is not None:
            rows = to_float64(self.tensors[head.node.tensors["weight"]])

        def row(i: int) -> Tensor:
            whole = torch.full((classes,), math.sqrt(2) * self.bound.upper, dtype=torch.float64)
            if head is not None and rows is not None:
                whole = torch.minimum(whole, row_norms(rows - rows[i]) * head.lipschitz)
            if own is not None:
                whole = torch.minimum(whole, own[i] + own)
            return torch.nextafter(whole * (1 + ROUNDINGS), torch.full_like(whole, math.inf))

        return Pairs(row, classes)

    def _budget(self, dtype: torch.dtype) -> Budget:
        if dtype not in self._budgets:
            self._budgets[dtype] = budget(self.graph, self.bound, self.tensors, dtype)
        return self._budgets[dtype]


def _dtype(network: nn.Module, images: Tensor, level: Level) -> torch.dtype:
    """That of the network's weights; of the images where it has none."""
    dtypes = {tensor.dtype for tensor in chain(network.parameters(), network.buffers()) if tensor.is_floating_point()}
    if len(dtypes) > 1 and level == "sound":
        raise ValueError(f"network has weights of {len(dtypes)} dtypes, so its arithmetic is not known: use one dtype")
    return dtypes.pop() if len(dtypes) == 1 else images.dtype
