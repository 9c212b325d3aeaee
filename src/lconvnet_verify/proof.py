"""The inequality that a certificate comes down to, in ball arithmetic.

With i the label, m_j = f_i - f_j at the image in real arithmetic (exact), t the norm of the image and r the radius,

    m_j > r Lambda_ij + E_ij        for every j != i,

where Lambda_ij = min(sqrt(2) prod_l U_l, |w_i - w_j| prod_{l != head} U_l) bounds how fast f_i - f_j falls (the head is
a dense layer with rows w, with nothing behind it but multiplication by a constant), and E_ij what rounding can change
in it at any image of norm t + r; at level "analytic" that is zero. A sum of n products and a bias, rounded in any
order, is off by at most g (sum |w| |x| + |b|) + underflow, with g = (n + 1) u / (1 - (n + 1) u). So layer by layer, R
the norm of what is stored and D its distance from real arithmetic,

    D <- U D + g (P R + |b|) + sqrt(outputs) underflow,        R <- U R + |b| + the same rounding,

with U and P the claimed bounds on W and on its absolute values. Nothing may come near the largest number.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

from flint import arb, ctx, fmpz

from lconvnet_verify.exact import Exact, forward
from lconvnet_verify.norms import require_norm
from lconvnet_verify.reading import Certificate, Model, Node, prove, require_same

PRECISION = 256
ARITHMETIC = {"<f4": (-24, -126, 127), "<f8": (-53, -1022, 1023)}
"""Exponents of the round-off, of the least normal number, and of half of what no number reaches."""

ROUNDED = ("Conv2d", "Linear", "Scale")
"""Operations that round; all others move, choose, repeat or negate entries."""


@dataclass(frozen=True)
class Stored:
    """Norm of what a float network stores after a node, and its distance from real arithmetic."""

    norm: arb
    error: arb


@dataclass(frozen=True)
class Arithmetic:
    """Round-off, least normal number, and half of what no number reaches."""

    unit: arb
    tiny: arb
    limit: arb

    def relative(self, roundings: int) -> arb:
        """What so many roundings can add up to."""
        return roundings * self.unit / (1 - roundings * self.unit)

    def underflow(self, products: int) -> arb:
        """What underflow can change in a sum of so many products."""
        return (2 * products + 2) * self.tiny * (1 + self.relative(products + 1))


class Prover:
    """Proves certificates about one model; what does not depend on the image is done once."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.tensors = {name: Exact.of(values) for name, values in model.tensors.items()}
        self.confirmed: set[object] = set()

    def prove(self, certificate: Certificate) -> None:
        """Raise NotProved unless the certificate holds."""
        ctx.prec = PRECISION
        prove(certificate.level in ("analytic", "sound"), f"level {certificate.level!r} certifies nothing")
        require_same(certificate, self.model)
        image = certificate.image
        prove(bool(((image >= 0) & (image <= 1)).all()), "its input is outside [0, 1]")
        values = forward(certificate.nodes, self.tensors, image)
        self._require_norms(certificate, values)
        logits, label = values[certificate.output], certificate.label
        prove(logits.integers.ndim == 1 and 0 <= label < len(logits.integers) > 1, f"label {label} is no logit")
        stored = self._stored(certificate, values)
        for j in range(len(logits.integers)):
            if j != label:
                margin = ball(logits.integers[label] - logits.integers[j], logits.exponent)
                slope, error = self._pair(certificate, stored, j)
                needed = arb(certificate.radius) * slope + error
                prove(margin > needed, f"the margin to class {j} is {margin.str(5)}, and {needed.str(5)} is needed")

    def _require_norms(self, certificate: Certificate, values: dict[str, Exact]) -> None:
        for node in certificate.nodes[1:]:
            shape, claim = values[node.inputs[0]].integers.shape, certificate.layers[node.name]
            known = (node.name, shape, claim)  # the node itself is the model's
            if known not in self.confirmed:
                require_norm(node, claim, self.model.tensors, shape)
                self.confirmed.add(known)

    def _stored(self, certificate: Certificate, values: dict[str, Exact]) -> dict[str, Stored]:
        """What the float network stores at any image within the radius; no error at level "analytic"."""
        first, *nodes = certificate.nodes
        stored = {first.name: Stored(norm(values[first.name]) + arb(certificate.radius), arb(0))}
        if certificate.level == "analytic":
            return {node.name: Stored(arb(0), arb(0)) for node in certificate.nodes}
        arithmetic = self._arithmetic()
        for node in nodes:
            x, layer = stored[node.inputs[0]], certificate.layers[node.name]
            sums, rounding, bias = arb(0), arb(0), arb(0)
            if node.operation == "Scale":
                factor = arb(abs(node.options["factor"]))
                prove(
                    factor.is_zero() or arithmetic.tiny <= factor <= arithmetic.limit, f"{node.name!r} loses its factor"
                )
            if node.operation in ROUNDED:
                products = self._products(node)
                bias = self._bias(node, values[node.name])
                sums = x.norm * arb(layer.upper if layer.absolute is None else layer.absolute) + bias
                outputs = arb(values[node.name].integers.size).sqrt()
                rounding = arithmetic.relative(products + 1) * sums + outputs * arithmetic.underflow(products)
            size = x.norm * arb(layer.upper) + bias + rounding
            prove(size.max(sums + rounding) < arithmetic.limit, f"node {node.name!r} may overflow")
            stored[node.name] = Stored(size, x.error * arb(layer.upper) + rounding)
        return stored

    def _pair(self, certificate: Certificate, stored: dict[str, Stored], j: int) -> tuple[arb, arb]:
        """How fast the margin to class j can fall, and what rounding can change in it."""
        uppers = {node.name: arb(certificate.layers[node.name].upper) for node in certificate.nodes[1:]}
        end, i, root = certificate.nodes[-1], certificate.label, arb(2).sqrt()
        slope, error = root * product(list(uppers.values())), root * stored[end.name].error
        head = next((node for node in reversed(certificate.nodes) if node.operation not in ("Identity", "Scale")), end)
        if head.operation != "Linear":
            return slope, error
        W, body = self.tensors[head.tensors["weight"]], stored[head.inputs[0]]
        apart = norm(W.map(lambda rows: rows[i] - rows[j]))
        slope = slope.min(product([upper for name, upper in uppers.items() if name != head.name]) * apart)
        if certificate.level == "analytic" or head is not end:
            return slope, error
        arithmetic, products = self._arithmetic(), self._products(end)
        sums = norm(W.map(lambda rows: abs(rows[i]) + abs(rows[j]))) * body.norm + self._two_biases(end, i, j)
        rounding = arithmetic.relative(products + 1) * sums + 2 * arithmetic.underflow(products)
        return slope, apart * body.error + rounding

    def _arithmetic(self) -> Arithmetic:
        dtypes = {values.dtype.str for values in self.model.tensors.values() if values.dtype.kind == "f"}
        prove(len(dtypes) == 1, "the model has weights of several dtypes")
        unit, tiny, limit = (arb(2) ** exponent for exponent in ARITHMETIC[dtypes.pop()])
        return Arithmetic(unit, tiny, limit)

    def _products(self, node: Node) -> int:
        """In one sum; a factor is a product that is itself rounded, as a bias would be."""
        return 1 if "weight" not in node.tensors else self.model.tensors[node.tensors["weight"]][0].size

    def _bias(self, node: Node, output: Exact) -> arb:
        """Norm of the bias as it is added to every pixel."""
        if "bias" not in node.tensors:
            return arb(0)
        bias = self.tensors[node.tensors["bias"]]
        return norm(bias) * arb(output.integers.size // bias.integers.size).sqrt()

    def _two_biases(self, node: Node, i: int, j: int) -> arb:
        if "bias" not in node.tensors:
            return arb(0)
        bias = self.tensors[node.tensors["bias"]]
        return ball(abs(bias.integers[i]) + abs(bias.integers[j]), bias.exponent)


def ball(integer: int, exponent: int) -> arb:
    """``integer 2^exponent``."""
    return arb(fmpz(integer)) * arb(2) ** exponent


def norm(values: Exact) -> arb:
    """The l2 norm."""
    return ball(sum(int(value) ** 2 for value in values.integers.ravel()), 2 * values.exponent).sqrt()


def product(factors: list[arb]) -> arb:
    """The product of balls."""
    return reduce(lambda a, b: a * b, factors, arb(1))
