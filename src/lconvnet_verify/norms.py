"""Whether the norm of a layer is at most U: it is, if U^2 I - W W^* is positive definite, which Cholesky decides.

If the Cholesky factorisation of a Hermitian matrix A - c I of order n runs to its end in floating point, then A is
positive definite, given that c is at least g(4 n + 8) tr(A) and what rounding changed in A itself (Rump, BIT 46, 2006).

A convolution is taken on a torus: on that of its image if it wraps around, else on one that holds the image with its
zeros. There it is block diagonal, with the blocks K^(w) = sum_a K_a exp(i <w, a>) at the frequencies of the torus;
strides s and t that divide it become s t times as many channels first. The layer's outputs are some of those there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
from flint import arb, fmpq

from lconvnet_verify.exact import padding, require_room
from lconvnet_verify.reading import JOINS, WEIGHTED, Layer, Node, prove

UNIT = 2.0**-53
CHUNK = 2**20
"""Complex numbers of blocks that are held at once."""


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
    """The norm of what has no weights: 1 for what moves, chooses, negates or shifts entries."""
    if node.operation == "Scale":
        return abs(node.options["factor"])
    if node.operation == "multiply":
        key = node.tensors.get("constant")
        return abs(node.options["value"]) if key is None else float(np.abs(tensors[key].astype(np.float64)).max())
    return float(node.options["factor"]) if node.operation == "NearestUpsampling" else 1.0


@np.errstate(over="ignore", invalid="ignore")
def norm_is_at_most(W: np.ndarray, bound: float) -> bool:
    """Whether all matrices ``(F, m, n)``, real or complex, are shown to have at most this norm."""
    if not 1e-150 < bound < 1e150:
        return bound >= 0 and not W.any()
    W = W if W.shape[1] <= W.shape[2] else W.conj().transpose(0, 2, 1)
    exponent = math.frexp(bound)[1]  # divided by a power of two, the bound is near 1 and squares keep their digits
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
    """A stride-1 kernel and a torus on which it has at least the norm of one group of the convolution."""
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
    """The kernel that gives the same with stride 1 on an image whose s x t blocks have become channels."""
    s, t = stride
    K = np.pad(K, np.array([(0, 0), (0, 0), (0, -K.shape[2] % s), (0, -K.shape[3] % t)]))
    out, channels, height, width = K.shape
    blocks = K.reshape(out, channels, height // s, s, width // t, t).transpose(0, 1, 3, 5, 2, 4)
    return blocks.reshape(out, channels * s * t, height // s, width // t)


def transfer(K: np.ndarray, torus: tuple[int, int]) -> Iterator[np.ndarray]:
    """The blocks ``(F, co, ci)`` at all frequencies of the torus but conjugate ones."""
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
    """exp(2 pi i u / period) for u < period, each correctly rounded but for the last bit."""
    pairs = (arb.sin_cos_pi_fmpq(fmpq(2 * u, period)) for u in range(period))
    return np.array([complex(float(cosine.mid()), float(sine.mid())) for sine, cosine in pairs])
