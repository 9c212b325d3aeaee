"""The inequality that proves a certificate, in ball arithmetic.

Let i be the label, m_j = f_i - f_j at the image in real arithmetic (exact), t the norm of the image and r the radius.
The certificate holds if

    m_j > r Lambda_ij + E_ij        for every j != i.

Lambda_ij = min(sqrt(2) prod_l U_l, |w_i - w_j| prod_{l != head} U_l, L_i + L_j) bounds how fast f_i - f_j falls. The
second term needs a head that is a dense layer with rows w, followed by nothing but multiplication by a constant. The
third needs logits that are computed apart, with the constants L_i. E_ij bounds the change of f_i - f_j by rounding at
any image of norm t + r; at level "analytic" it is zero. A sum of n products and a bias, rounded in any order, is off by
at most g (sum |w| |x| + |b|) + underflow, with g = (n + 1) u / (1 - (n + 1) u). So, layer by layer, with R the norm of
the stored values and D their distance from real arithmetic,

    D <- U D + g (P R + |b|) + sqrt(outputs) underflow,        R <- U R + |b| + the same rounding,

with U and P the claimed bounds on W and on its absolute values. No value may come near the largest number.

The norm of a layer is at most U if U^2 I - W W^* is positive definite, which Cholesky shows. Let A be a Hermitian
matrix of order n. If the Cholesky factorisation of A - c I runs to its end in floating point, then A is positive
definite, provided that c is at least g(4 n + 8) tr(A) plus the rounding of A itself (Rump, BIT 46, 2006).

A convolution is taken on a torus: on that of its image if it wraps around, else on one that holds the image with its
zeros. There it is block diagonal, with the blocks K^(w) = sum_a K_a exp(i <w, a>) at the frequencies of the torus.
Strides s and t that divide the torus become s t times as many channels first. The layer's outputs are some of those on
the torus.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from flint import arb, ctx, fmpq, fmpz

from lconvnet_verify.exact import Exact, forward, padding, require_room
from lconvnet_verify.reading import JOINS, WEIGHTED, Certificate, Layer, Model, Node, NotProved, prove, require_same

UNIT = 2.0**-53
CHUNK = 2**20
"""Complex numbers held at once in blocks."""


@np.errstate(over="ignore", invalid="ignore")
def require_norm(node: Node, claim: Layer, tensors: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> None:
    """Raise NotProved unless the claimed bounds hold for the node at an input of this shape."""
    what = f"layer {node.name!r}"
    if node.operation in JOINS:
        return
    weighted = node.operation in WEIGHTED
    prove(weighted == (claim.absolute is not None), f"{what} needs a bound on its absolute weights if it has any")
    if not weighted:
        prove(claim.upper >= known_norm(node, tensors), f"{what} has a larger norm than {claim.upper!r}")
        return
    W = tensors[node.tensors["weight"]].astype(np.float64)
    absolute = claim.absolute or 0.0
    if node.operation == "Linear":
        prove(norm_is_at_most(W[None], claim.upper), f"the norm of {what} is not shown to be at most {claim.upper!r}")
        prove(norm_is_at_most(np.abs(W)[None], absolute), f"|abs(W)| of {what} is not shown to be at most {absolute!r}")
        return
    for kernel in np.split(W, node.options["groups"]):
        K, torus = on_torus(node, kernel, shape)
        error = (32 + 4 * K.shape[2] * K.shape[3]) * UNIT * float(np.sqrt((K**2).sum(axis=(0, 1))).sum())
        for blocks in transfer(K, torus):
            shown = norm_is_at_most(blocks, claim.upper - 2 * error)
            prove(shown, f"the norm of {what} is not shown to be at most {claim.upper!r}")
        total = np.abs(K).sum(axis=(2, 3))[None]  # a kernel without negative entries is largest at frequency zero
        rounding = max(2.0**-40, 4 * K.shape[2] * K.shape[3] * UNIT)
        shown = norm_is_at_most(total, absolute * (1 - rounding))
        prove(shown, f"|abs(W)| of {what} is not shown to be at most {absolute!r}")


def known_norm(node: Node, tensors: Mapping[str, np.ndarray]) -> float:
    """Return the norm of a node without weights: 1 if it moves, chooses, negates or shifts entries."""
    if node.operation == "Scale":
        return abs(node.options["factor"])
    if node.operation == "multiply":
        key = node.tensors.get("constant")
        return abs(node.options["value"]) if key is None else float(np.abs(tensors[key].astype(np.float64)).max())
    return float(node.options["factor"]) if node.operation == "NearestUpsampling" else 1.0


@np.errstate(over="ignore", invalid="ignore")
def norm_is_at_most(W: np.ndarray, bound: float) -> bool:
    """Return whether all matrices ``(F, m, n)``, real or complex, are shown to have at most this norm."""
    if not 1e-150 < bound < 1e150:
        return bound >= 0 and not W.any()
    W = W if W.shape[1] <= W.shape[2] else W.conj().transpose(0, 2, 1)
    exponent = math.frexp(bound)[1]  # a power of two brings the bound near 1, where squares keep their digits
    W, bound = W * 2.0**-exponent, bound * 2.0**-exponent
    order, terms = W.shape[1:]
    squares = float((np.abs(W) ** 2).sum(axis=(1, 2)).max()) * (1 + 1e-6)
    A = bound**2 * np.eye(order) - W @ W.conj().transpose(0, 2, 1)
    trace = float(np.abs(np.trace(A, axis1=1, axis2=2)).max()) + 8 * order * UNIT * (bound**2 + squares)
    changed = 4 * (terms + 4) * UNIT * squares + 8 * UNIT * (bound**2 + squares) + 1e-300
    shift = (changed + 4 * (4 * order + 8) * UNIT * trace) * (1 + 1e-6)
    if not np.isfinite(A).all():
        return False
    try:
        np.linalg.cholesky(A - shift * np.eye(order))
    except np.linalg.LinAlgError:
        return False
    return True


def on_torus(node: Node, K: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, tuple[int, int]]:
    """Return a stride-1 kernel and a torus on which its norm is at least that of one group of the convolution."""
    stride, dilation = node.options["stride"], node.options["dilation"]
    above_below, left_right, circular = padding(node)
    totals = (sum(above_below), sum(left_right))
    spread = tuple(d * (k - 1) for d, k in zip(dilation, K.shape[2:], strict=True))
    require_room((*K.shape[:2], spread[0] + stride[0], spread[1] + stride[1]))
    wide = np.zeros((*K.shape[:2], spread[0] + 1, spread[1] + 1))
    wide[:, :, :: dilation[0], :: dilation[1]] = K
    s = (stride[0], stride[1])
    if circular and any(totals):
        prove(all(t <= r for t, r in zip(totals, spread, strict=True)), f"node {node.name!r} repeats outputs")
        sides = shape[1:]
        s = s if all(n % step == 0 for n, step in zip(sides, s, strict=True)) else (1, 1)
    else:
        sides = tuple(-(-(n + t) // step) * step for n, t, step in zip(shape[1:], totals, s, strict=True))
    return unshuffled(wide, s), (sides[0] // s[0], sides[1] // s[1])


def unshuffled(K: np.ndarray, stride: tuple[int, int]) -> np.ndarray:
    """Return the equal kernel of stride 1 for an image whose s x t blocks have become channels."""
    s, t = stride
    K = np.pad(K, np.array([(0, 0), (0, 0), (0, -K.shape[2] % s), (0, -K.shape[3] % t)]))
    out, channels, height, width = K.shape
    blocks = K.reshape(out, channels, height // s, s, width // t, t).transpose(0, 1, 3, 5, 2, 4)
    return blocks.reshape(out, channels * s * t, height // s, width // t)


def transfer(K: np.ndarray, torus: tuple[int, int]) -> Iterator[np.ndarray]:
    """Yield the blocks ``(F, co, ci)`` at the frequencies of the torus; conjugate ones are left out."""
    rows, columns = roots(torus[0]), roots(torus[1])
    taps = K.reshape(*K.shape[:2], -1).transpose(2, 0, 1)
    step, half = max(1, CHUNK // max(K[:, :, 0, 0].size, len(taps))), torus[1] // 2 + 1
    for start in range(0, torus[0] * half, step):
        u, v = np.divmod(np.arange(start, min(start + step, torus[0] * half)), half)
        down = rows[np.outer(u, np.arange(K.shape[2])) % torus[0]]
        along = columns[np.outer(v, np.arange(K.shape[3])) % torus[1]]
        phases = down[:, :, None] * along[:, None, :]
        yield np.tensordot(phases.reshape(len(u), -1), taps, axes=1)


def roots(period: int) -> np.ndarray:
    """Return exp(2 pi i u / period) for u < period, each accurate up to the last bit."""
    pairs = (arb.sin_cos_pi_fmpq(fmpq(2 * u, period)) for u in range(period))
    return np.array([complex(float(cosine.mid()), float(sine.mid())) for sine, cosine in pairs])


PRECISION = 256
ARITHMETIC = {"<f4": (-24, -126, 127), "<f8": (-53, -1022, 1023)}
"""Exponents of the round-off, of the least normal number, and of half the limit that no number reaches."""

ROUNDED = ("Conv2d", "Linear", "Scale", "add", "multiply", "shift", "subtract")
"""Operations that round; all others move, choose, repeat or negate entries."""

UNIFORM = ("Identity", "Scale", "multiply", "negate")
"""Operations that treat all logits alike, unless they use a tensor."""


class Stored(NamedTuple):
    """Norm of the values that a float network stores after a node, and their distance from real arithmetic."""

    norm: arb
    error: arb


@dataclass(frozen=True)
class Arithmetic:
    """Round-off, least normal number, and half the limit that no number reaches."""

    unit: arb
    tiny: arb
    limit: arb

    def relative(self, roundings: int) -> arb:
        """Return the largest relative error of so many roundings."""
        prove(roundings * self.unit < arb(1) / 2, f"{roundings} roundings have no bound")
        return roundings * self.unit / (1 - roundings * self.unit)

    def underflow(self, products: int) -> arb:
        """Return the largest error by underflow in a sum of so many products."""
        return (2 * products + 2) * self.tiny * (1 + self.relative(products + 1))


class Prover:
    """Proves certificates about one model; work that does not depend on the image is done once."""

    def __init__(self, model: Model) -> None:
        self.model = model
        named = {name for node in model.nodes for name in node.tensors.values()}
        self.tensors = {name: Exact.of(model.tensors[name]) for name in named}
        self.confirmed: set[object] = set()

    def prove(self, certificate: Certificate) -> None:
        """Raise NotProved unless the certificate holds, whatever the obstacle."""
        try:
            self._prove(certificate)
        except NotProved:
            raise
        except Exception as error:
            raise NotProved(f"it cannot be checked ({type(error).__name__}: {error})") from None

    def _prove(self, certificate: Certificate) -> None:
        ctx.prec = PRECISION
        prove(certificate.level in ("analytic", "sound"), f"level {certificate.level!r} certifies nothing")
        require_same(certificate, self.model)
        image = certificate.image
        prove(bool(((image >= 0) & (image <= 1)).all()), "its input is outside [0, 1]")
        values = forward(self.model.nodes, self.tensors, image)
        self._require_norms(certificate, values)
        logits, label = values[self.model.output], certificate.label
        prove(logits.integers.ndim == 1 and 0 <= label < len(logits.integers) > 1, f"label {label} is not a logit")
        reaches, stored = self._reaches(certificate), self._stored(certificate, values)
        radius = arb(certificate.radius) + self._flushed(certificate)
        for j in range(len(logits.integers)):
            if j != label:
                margin = ball(logits.integers[label] - logits.integers[j], logits.exponent)
                slope = self._slope(certificate, values, reaches, j)
                needed = radius * slope + self._error(certificate, stored, j)
                prove(margin > needed, f"the margin to class {j} is {margin.str(5)}, and {needed.str(5)} is needed")

    def _require_norms(self, certificate: Certificate, values: dict[str, Exact]) -> None:
        for node in self.model.nodes[1:]:
            shape, claim = values[node.inputs[0]].integers.shape, certificate.layers[node.name]
            known = (node.name, shape, claim)
            if known not in self.confirmed:
                require_norm(node, claim, self.model.tensors, shape)
                self.confirmed.add(known)

    def _flushed(self, certificate: Certificate) -> arb:
        """Return how far an image moves at most if subnormal pixels are read as zero. Refuses subnormal constants."""
        if certificate.level == "analytic":
            return arb(0)
        tiny = 2.0 ** ARITHMETIC[self.dtype][1]
        for node in self.model.nodes:
            for name in node.tensors.values():
                small = np.abs(self.model.tensors[name])
                prove(not ((small > 0) & (small < tiny)).any(), f"tensor {name!r} has subnormal entries: not sound")
        return arb(certificate.image.size).sqrt() * self.arithmetic.tiny

    def _reaches(self, certificate: Certificate) -> dict[str, arb]:
        """Return how far each node moves at most if the image moves by 1."""
        first, *nodes = self.model.nodes
        reaches = {first.name: arb(1)}
        for node in nodes:
            parts = [reaches[name] for name in node.inputs]
            upper = arb(certificate.layers[node.name].upper)
            reaches[node.name] = joined(node, parts) if node.operation in JOINS else upper * parts[0]
        return reaches

    def _stored(self, certificate: Certificate, values: dict[str, Exact]) -> dict[str, Stored]:
        """Return what the float network stores at any image within the radius; zeros at level "analytic"."""
        first, *nodes = self.model.nodes
        if certificate.level == "analytic":
            return {node.name: Stored(arb(0), arb(0)) for node in self.model.nodes}
        stored = {first.name: Stored(norm(values[first.name]) + arb(certificate.radius), arb(0))}
        for node in nodes:
            inputs, entries = [stored[name] for name in node.inputs], values[node.name].integers.size
            if node.operation in JOINS:
                size, error = joined(node, [x.norm for x in inputs]), joined(node, [x.error for x in inputs])
                sums, products = size, 0
            else:
                size, error, sums, products = self._one(node, inputs[0], certificate, entries)
            rounding = arb(0)
            if node.operation in ROUNDED:
                relative, underflow = self.arithmetic.relative(products + 1), self.arithmetic.underflow(products)
                rounding = relative * sums + arb(entries).sqrt() * underflow
            prove(size.max(sums) + rounding < self.arithmetic.limit, f"node {node.name!r} may overflow")
            stored[node.name] = Stored(size + rounding, error + rounding)
        return stored

    def _one(self, node: Node, x: Stored, certificate: Certificate, size: int) -> tuple[arb, arb, arb, int]:
        """Return norm, error, norm of absolute sums, and products per sum, before the rounding of a one-input node."""
        layer = certificate.layers[node.name]
        upper, absolute = arb(layer.upper), arb(layer.upper if layer.absolute is None else layer.absolute)
        value = node.options.get("factor", node.options.get("value", 0.0))
        in_range = value == 0 or self.arithmetic.tiny <= arb(abs(value)) <= self.arithmetic.limit
        prove(in_range, f"node {node.name!r} loses its constant {value!r}")
        moved = self._moved(node, size)
        products = self.model.tensors[node.tensors["weight"]][0].size if node.operation in WEIGHTED else 1
        return x.norm * upper + moved, x.error * upper, x.norm * absolute + moved, products

    def _moved(self, node: Node, size: int) -> arb:
        """Return the norm of what a node adds to so many entries: a bias to every pixel, or a constant."""
        role = "constant" if node.operation == "shift" else "bias"
        if role in node.tensors:
            values = self.tensors[node.tensors[role]]
        elif node.operation == "shift":
            values = Exact.of(np.array([float(node.options["value"])]))
        else:
            return arb(0)
        return norm(values) * arb(size // values.integers.size).sqrt()

    def _slope(self, certificate: Certificate, values: dict[str, Exact], reaches: dict[str, arb], j: int) -> arb:
        """Return how fast the margin to class j can fall."""
        slope, i = arb(2).sqrt() * reaches[self.model.output], certificate.label
        end = self.model.nodes[-1]
        if end.operation == "concatenate" and all(values[name].integers.size == 1 for name in end.inputs):
            slope = slope.min(reaches[end.inputs[i]] + reaches[end.inputs[j]])
        head, factor = self._head(certificate)
        if head is None:
            return slope
        W = self.tensors[head.tensors["weight"]]
        return slope.min(reaches[head.inputs[0]] * factor * norm(W.map(lambda rows: rows[i] - rows[j])))

    def _head(self, certificate: Certificate) -> tuple[Node | None, arb]:
        """Return the dense layer of the logits, and the factor that multiplies its output afterwards."""
        nodes, factor = {node.name: node for node in self.model.nodes}, arb(1)
        node = nodes[self.model.output]
        while node.operation in UNIFORM and "constant" not in node.tensors:
            factor *= arb(certificate.layers[node.name].upper)
            node = nodes[node.inputs[0]]
        return (node if node.operation == "Linear" else None), factor

    def _error(self, certificate: Certificate, stored: dict[str, Stored], j: int) -> arb:
        """Return how much rounding can change the margin to class j."""
        end, i = self.model.nodes[-1], certificate.label
        if end.operation != "Linear" or certificate.level == "analytic":
            return arb(2).sqrt() * stored[end.name].error
        W, body = self.tensors[end.tensors["weight"]], stored[end.inputs[0]]
        products = self.model.tensors[end.tensors["weight"]][0].size
        sums = norm(W.map(lambda rows: abs(rows[i]) + abs(rows[j]))) * body.norm
        if "bias" in end.tensors:
            bias = self.tensors[end.tensors["bias"]]
            sums += ball(abs(bias.integers[i]) + abs(bias.integers[j]), bias.exponent)
        rounding = self.arithmetic.relative(products + 1) * sums + 2 * self.arithmetic.underflow(products)
        return norm(W.map(lambda rows: rows[i] - rows[j])) * body.error + rounding

    @cached_property
    def dtype(self) -> str:
        """The dtype of the weights."""
        dtypes = {values.dtype.str for values in self.model.tensors.values() if values.dtype.kind == "f"}
        prove(len(dtypes) == 1, "the model has weights of several dtypes, or of none")
        return dtypes.pop()

    @cached_property
    def arithmetic(self) -> Arithmetic:
        """The arithmetic of that dtype."""
        unit, tiny, limit = (arb(2) ** exponent for exponent in ARITHMETIC[self.dtype])
        return Arithmetic(unit, tiny, limit)


def joined(node: Node, parts: list[arb]) -> arb:
    """Return the norm of several tensors together: norms add up in a sum, their squares add up side by side."""
    if node.operation != "concatenate":
        return sum(parts, arb(0))
    return sum((part**2 for part in parts), arb(0)).sqrt()


def ball(integer: int, exponent: int) -> arb:
    """``integer 2^exponent``."""
    return arb(fmpz(integer)) * arb(2) ** exponent


def norm(values: Exact) -> arb:
    """The l2 norm."""
    return ball(sum(int(value) ** 2 for value in values.integers.ravel()), 2 * values.exponent).sqrt()
