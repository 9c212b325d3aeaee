"""From logits to radii.

Let i be the answer, m_j = f_i - f_j as evaluated, t at least the norm of the image, and

    Lambda_ij = min(sqrt(2) L, L_body |w_i - w_j|, L_i + L_j).

The second term applies if the logits come from a dense layer with rows w, at most scaled and shifted. The third applies
if each logit is the output of a separate network, with the constant L_i.

At the image, the margin of the network in real arithmetic is at least m_j - e_ij t - e0_ij. Within the radius r it
falls by at most Lambda_ij r, and the deployed network deviates by at most E_ij (t + r) + E0_ij (at level "analytic"
these are 0). So the answer stays the same up to

    r = min_j (m_j - (e_ij + E_ij) t - e0_ij - E0_ij) / (Lambda_ij + E_ij).

Hardware may read subnormal pixels as 0, which moves an image of n pixels by less than sqrt(n) times the least normal
number. The radius is reduced by that much.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import chain
from operator import attrgetter
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from lconvnet import allowance
from lconvnet.bounds import Bound, Graph, Node, Trace, in_float64, tensors_of
from lconvnet.bounds.forward_error import INFLATION, AffineBound, Arithmetic
from lconvnet.bounds.network import forward_error
from lconvnet.ops.float64 import row_norms, to_float64
from lconvnet.ops.margins import margins
from lconvnet.ops.rounding import UNIT_ROUNDOFF, gamma, product_up

ONEDNN = ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")
"""Environment variables that oneDNN reads and torch does not report."""

PLAIN = ("none", "ieee", "highest", "strict", False)
"""Values of the settings that keep float32 arithmetic in float32."""


def runs_as_sums(network: nn.Module) -> bool:
    """Whether the network's float32 products are ordinary sums of float32: on a CPU with unreduced precision.

    There oneDNN convolves directly (``alg:convolution_direct`` in its log), and in float32 unless torch or its
    environment variable says otherwise. Accelerators may use TensorFloat-32 or Winograd kernels.

    >>> runs_as_sums(nn.Linear(2, 2))
    True
    """
    return _devices(network) <= {"cpu"} and not _lowered("cpu")


def refuse_other_sums(network: nn.Module) -> None:
    """Raise ``ValueError`` if the rounding of a float32 network may differ from the one that level "sound" covers.

    cuDNN convolves in TensorFloat-32 unless a setting forbids it, and may choose Winograd or Fourier kernels. oneDNN
    multiplies in bfloat16 if a setting allows it. Other accelerators are refused.

    >>> refuse_other_sums(nn.Linear(2, 2))
    """
    for device in sorted(_devices(network, torch.float32)):
        if lowered := _lowered(device):
            raise ValueError(
                f"network is in float32 on {device!r}, where its products need not be plain sums of float32: "
                f"level='sound' needs something else than {', '.join(lowered)}, also where the network is deployed; "
                "or use network.double()"
            )


def _devices(network: nn.Module, dtype: torch.dtype | None = None) -> set[str]:
    tensors = chain(network.parameters(), network.buffers())
    return {tensor.device.type for tensor in tensors if dtype in (None, tensor.dtype)}


def _lowered(device: str) -> list[str]:
    """The settings under which float32 products on a device may not be sums of float32."""
    if device not in ("cpu", "cuda"):
        return [f"the device {device!r}"]
    return [f"{name} = {value!r}" for name, value in _settings(device).items() if value not in PLAIN]


def _settings(device: str) -> dict[str, Any]:
    """The float32 settings of torch and of oneDNN or cuDNN: one before torch 2.9, one per operation since."""
    backends: Any = torch.backends  # torch declares only some of these
    if device == "cpu":
        told: dict[str, Any] = {name: os.environ.get(name, "strict").lower() for name in ONEDNN}
        places = ("mkldnn", "mkldnn.conv", "mkldnn.matmul")
    else:
        told = {"torch.backends.cudnn.enabled": backends.cudnn.enabled}
        places = ("cuda.matmul",)
    if not hasattr(backends, "fp32_precision"):
        return told | {"torch.get_float32_matmul_precision()": torch.get_float32_matmul_precision()}
    names = ("fp32_precision", *(f"{place}.fp32_precision" for place in places))
    return told | {f"torch.backends.{name}": attrgetter(name)(backends) for name in names}


def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    """The logits in float64 on the CPU, computed in the dtype of the network without autocast or Winograd kernels.

    >>> logits_of(nn.Identity(), torch.ones(1, 2)).dtype
    torch.float64
    """
    like = next((tensor for tensor in network.parameters() if tensor.is_floating_point()), images)
    device = like.device
    unfused = torch.backends.nnpack.flags(enabled=False)
    with torch.no_grad(), unfused, torch.autocast(device.type, enabled=False):
        logits = network(images.to(device, like.dtype))
    return logits.cpu().double()


def image_norms(images: Tensor) -> Tensor:
    """Upper bounds on the l2 norms of images in [0, 1], float64 on the CPU: ``(N,)``.

    >>> 2 <= float(image_norms(torch.ones(1, 1, 2, 2))) < 2.001
    True
    """
    flat, tiny = images.flatten(1).cpu(), torch.finfo(torch.float64).tiny
    norms = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64)
    return (norms + (flat.shape[1] * tiny) ** 0.5) * (1 + gamma(flat.shape[1] + 4))


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
"""The reason for a radius; see :class:`lconvnet.certify.Certificates`."""

REASONS: tuple[Reason, ...] = get_args(Reason)
"""The index of a reason is its code."""

ROUNDINGS = 16 * UNIT_ROUNDOFF
"""More than the relative error of the float64 operations on one margin, error or radius."""

PAIR = 80
"""Bytes per pair of classes in the whole computation."""


class Radii(NamedTuple):
    """Answers of N images and what an evaluation proves about them.

    Attributes:
        label, margin, radius: as in :class:`lconvnet.certify.Certificates`.
        reason: codes, int8.
        ceiling: no evaluation, even an exact one, gives a larger radius.
    """

    label: Tensor
    margin: Tensor
    radius: Tensor
    reason: Tensor
    ceiling: Tensor

    def open(self, eps: Sequence[float]) -> Tensor:
        """Images for which a better evaluation may change a decision ``radius > eps``: ``(N,)``."""
        return torch.stack([(self.radius <= value) & ~(self.ceiling <= value) for value in eps]).any(dim=0)


def reason_codes(radius: Tensor, positive: Reason, causes: dict[Reason, Tensor]) -> Tensor:
    """The codes of the reasons of N radii, int8 ``(N,)``.

    `positive` is the reason of every radius above 0. For the others, `causes` say where each reason holds, ``(N,)``;
    the first that holds counts. If none holds, the radius underflows.

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
class Certifier:
    """Certifies a network at one image size, in the dtype in which it is deployed."""

    network: nn.Module
    graph: Graph
    tensors: Mapping[str, Tensor]
    bound: Bound
    level: Level
    dtype: torch.dtype
    _budgets: dict[torch.dtype, Budget] = field(default_factory=dict)

    @classmethod
    def of(cls, network: nn.Module, traced: Trace, bound: Bound, images: Tensor, level: Level) -> Certifier:
        """The certifier of a network that was traced at the shape of these images."""
        tensors = tensors_of(network)
        classes_of(traced.graph)
        if level == "sound":
            refuse_subnormal(traced.graph, tensors)
            refuse_other_sums(network)
        return cls(network, traced.graph, tensors, bound, level, _dtype(network, images, level))

    def radii(self, images: Tensor, dtype: torch.dtype, batch_size: int) -> Radii:
        """Evaluate in the network's dtype or in float64, after a check that the rounding has a bound."""
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
        own = logit_constants(self.graph, self.bound)
        key, body = head or ("", math.inf)
        rows = None if head is None else to_float64(self.tensors[key])

        def row(i: int) -> Tensor:
            whole = torch.full((classes,), math.sqrt(2) * self.bound.upper, dtype=torch.float64)
            if rows is not None:
                whole = torch.minimum(whole, row_norms(rows - rows[i]) * body)
            if own is not None:
                whole = torch.minimum(whole, own[i] + own)
            return torch.nextafter(whole * (1 + ROUNDINGS), torch.full_like(whole, math.inf))

        return Pairs(row, classes)

    def _budget(self, dtype: torch.dtype) -> Budget:
        if dtype not in self._budgets:
            self._budgets[dtype] = budget(self.graph, self.bound, self.tensors, dtype)
        return self._budgets[dtype]


def _dtype(network: nn.Module, images: Tensor, level: Level) -> torch.dtype:
    """The dtype of the network's weights, or of the images if it has none."""
    dtypes = {tensor.dtype for tensor in chain(network.parameters(), network.buffers()) if tensor.is_floating_point()}
    if len(dtypes) > 1 and level == "sound":
        raise ValueError(f"network has weights of {len(dtypes)} dtypes, so its arithmetic is not known: use one dtype")
    return dtypes.pop() if len(dtypes) == 1 else images.dtype


class Pairs:
    """A table of pairs of classes, float64 ``(classes, classes)``. Each row is computed on demand.

    The table keeps as many rows as fit into a part of `allowance.BYTES`.

    >>> Pairs(lambda label: torch.eye(3, dtype=torch.float64)[label], 3)[torch.tensor([2, 0])].tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """

    def __init__(self, row: Callable[[int], Tensor], classes: int) -> None:
        self.classes = classes
        self.row = lru_cache(maxsize=max(1, allowance.BYTES // (PAIR * classes)))(row)

    def __getitem__(self, labels: Tensor) -> Tensor:
        """The rows of these labels: ``(N, classes)``."""
        found, places = labels.unique(return_inverse=True)
        rows = torch.empty(len(found), self.classes, dtype=torch.float64)
        for row, label in zip(rows, found.tolist(), strict=True):
            row.copy_(self.row(label))
        return rows[places]


@dataclass(frozen=True)
class Budget:
    """A bound on rounding: for an image of norm t <= reach, ``f_i - f_j`` of the float network differs from its value
    in real arithmetic by at most ``slope[i, j] t + offset[i, j]``. Beyond `reach`, numbers may overflow."""

    slope: Pairs
    offset: Pairs
    reach: float

    def at(self, norms: Tensor, labels: Tensor) -> Tensor:
        """The error at images of these norms with these labels as answers: ``(N, classes)``."""
        return (self.slope[labels] * norms[:, None] + self.offset[labels]) * INFLATION


def budget(graph: Graph, bound: Bound, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Budget:
    """The budget of a network with this ``state_dict`` that runs in this dtype.

        error_ij = |w_i - w_j| D + g (||w_i| + |w_j|| R + |b_i| + |b_j|) + underflow

    if the network ends in a dense layer with rows w, else sqrt(2) D.
    """
    arithmetic, uppers = Arithmetic.of(dtype), {layer.name: layer.upper for layer in bound.layers}
    stored = forward_error(graph, uppers, tensors, arithmetic)
    end = graph[graph.output]
    whole, classes = stored[end.name], classes_of(graph)
    reach = _reach(whole.peak, arithmetic)
    if end.operation != "Linear":
        root = math.sqrt(2) * INFLATION
        ones = torch.ones(classes, dtype=torch.float64)
        slopes, offsets = ones * whole.error.slope * root, ones * whole.error.offset * root
        return Budget(Pairs(lambda _: slopes, classes), Pairs(lambda _: offsets, classes), reach)
    body = stored[end.inputs[0]]
    W, bias = to_float64(tensors[end.tensors["weight"]]), end.tensors.get("bias")
    b = W.new_zeros(len(W)) if bias is None else tensors[bias].detach().cpu().double().abs()
    rounding, underflow, A = arithmetic.gamma(W.shape[1]), 2 * arithmetic.underflow(W.shape[1]), W.abs()
    apart = Pairs(lambda i: row_norms(W - W[i]), classes)
    sums = Pairs(lambda i: row_norms(A + A[i]), classes)  # upper bounds, of the rows' absolute values

    def slope(i: int) -> Tensor:
        return (apart.row(i) * body.error.slope + rounding * sums.row(i) * body.norm.slope) * INFLATION

    def offset(i: int) -> Tensor:
        biases = rounding * (sums.row(i) * body.norm.offset + b[i] + b)
        return (apart.row(i) * body.error.offset + biases + underflow) * INFLATION

    return Budget(Pairs(slope, classes), Pairs(offset, classes), reach)


def refuse_subnormal(graph: Graph, tensors: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` for a subnormal weight or constant: hardware may read it as 0.

    A running variance counts only if it could change the sum with its eps.
    """
    for node in graph.nodes:
        for role, key in node.tensors.items():
            values = tensors[key].detach()
            if not values.is_floating_point():
                continue
            info = torch.finfo(values.dtype)
            built_in = node.operation in ("BatchNorm1d", "BatchNorm2d")
            unseen = built_in and role == "running_var" and node.options["eps"] * info.eps >= 2 * info.tiny
            if not unseen and bool(((values != 0) & (values.abs() < info.tiny)).any()):
                raise ValueError(
                    f"network tensor {key!r} holds subnormal numbers, which hardware may read as 0: set them to 0"
                )


def classes_of(graph: Graph) -> int:
    """The number of logits; ValueError unless the output is a row of at least two."""
    shape = graph[graph.output].shape
    if shape is None or len(shape) != 1 or shape[0] < 2:
        raise ValueError(
            f"network gives an output of shape (N, *{shape}): a certificate needs (N, classes) with two classes or more"
        )
    return shape[0]


def _reach(peak: AffineBound, arithmetic: Arithmetic) -> float:
    """The norm of the image up to which no number exceeds half of the largest one."""
    room = (arithmetic.largest / 2 - peak.offset) * (1 - 2.0**-40)
    return room / peak.slope if peak.slope > 0 else math.inf


def find_head(graph: Graph, bound: Bound) -> tuple[str, float] | None:
    """The weight of the dense layer that gives the logits, and the constant of all before it times the scaling after
    it. Only nodes that treat all logits alike may follow; None if there is no such layer."""
    layers = {layer.name: layer for layer in bound.layers}
    node, factors = graph[graph.output], []
    while _is_uniform(node, graph):
        factors.append(layers[node.name].upper)
        node = graph[node.inputs[0]]
    if node.operation != "Linear" or not math.isfinite(bound.upper):
        return None
    before = layers.get(node.inputs[0])
    reach = 1.0 if before is None else before.reach
    return None if reach is None else (node.tensors["weight"], product_up([reach, *factors]))


def _is_uniform(node: Node, graph: Graph) -> bool:
    """Whether a node multiplies by one number or adds a constant to every logit."""
    if node.operation in ("multiply", "divide"):
        return "value" in node.options
    same = node.operation == "shift" and node.shape == graph[node.inputs[0]].shape
    return same or node.operation in ("Scale", "Identity", "Dropout", "negate")


def logit_constants(graph: Graph, bound: Bound) -> Tensor | None:
    """The constant of each logit, ``(classes,)``, if every one is the output of a separate network, else None.

    The constant of a difference is at most the sum of the two (Qian & Wegman 2019): 2 for two 1-Lipschitz logits.
    """
    layers, end = {layer.name: layer for layer in bound.layers}, graph[graph.output]
    logits = [graph[name] for name in end.inputs] if end.operation == "concatenate" else []
    reaches = [layers[logit.name].reach for logit in logits if logit.shape == (1,) and logit.name in layers]
    if not reaches or len(reaches) < len(logits) or None in reaches:
        return None
    return torch.tensor(reaches, dtype=torch.float64)
