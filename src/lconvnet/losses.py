r"""Losses that ask for a margin, because certificates are made of margins.

A network with Lipschitz constant $L$ is certified at radius eps for a label $y$ if
$f_y - f_j > \sqrt2\,L\,\varepsilon$ for every other class $j$. A loss that stops rewarding an image at margin 0 wastes
the guarantee of the architecture. Both losses are frozen dataclasses: they hold no parameters, compare by value, print
as the call that makes them, and are called as `loss(logits, labels)`.
"""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from lconvnet.ops.images import is_finite_number
from lconvnet.ops.numbers import NonNegativeFloat, PositiveFloat


@dataclass(frozen=True)
class Hinge:
    r"""The multi-class hinge loss of the paper, with the margin that certifies at `eps`.

    $$\frac1B\sum_b \frac1C \sum_{j\ne y_b} \max(0,\ \kappa - (f_{y_b} - f_j)),\qquad
      \kappa = \varepsilon\,2^{(p-1)/p} L$$

    `eps` is the radius over pixels in [0, 1] (the paper trains with 1.5 on MNIST, 0.5 on CIFAR-10), `lipschitz` the
    constant $L$ of the network, `p` the norm of the perturbation: 2 gives $\kappa=\sqrt2\,\varepsilon L$, infinity
    $2\,\varepsilon L$. Logits are `(B, C)`, labels `(B,)` integers; the value is a scalar.

    Source: Li et al., NeurIPS 2019, section 5; Anil et al., ICML 2019. Raises `ValueError` if `eps` or `lipschitz` is
    not positive, and if `p < 1`.

    >>> import torch
    >>> loss = Hinge(eps=1.0)
    >>> round(loss.margin, 4)
    1.4142
    >>> loss(torch.tensor([[3.0, 0.0]]), torch.tensor([0])).item()
    0.0
    """

    eps: PositiveFloat
    lipschitz: float = 1.0
    p: float = 2

    def __post_init__(self) -> None:
        _positive(self.eps, "eps", "the l2 radius to train for, e.g. 1.5 for MNIST")
        _positive(
            self.lipschitz,
            "lipschitz",
            "an upper bound on the network's constant, 1 for this package's layers",
        )
        if not (self.p == math.inf or (is_finite_number(self.p) and self.p >= 1)):
            raise ValueError(f"p={self.p!r}: a norm needs p >= 1; use 2, or math.inf")

    @property
    def margin(self) -> float:
        """The margin kappa. 2^{(p-1)/p} is written as 2^{1-1/p} so that p may be infinite."""
        return self.eps * 2 ** (1 - 1 / self.p) * self.lipschitz

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        _check(logits, labels)
        margins = logits.gather(1, labels[:, None]) - logits
        # The j = y column is always exactly kappa. It is masked out, not subtracted, to lose no digits.
        wrong = F.one_hot(labels, logits.shape[1]) == 0
        return ((self.margin - margins).clamp(min=0) * wrong).sum(dim=1).mean() / logits.shape[1]


@dataclass(frozen=True)
class OffsetCrossEntropy:
    r"""Cross-entropy at a temperature, after subtracting `offset` from the label's logit.

    $$T\cdot\mathrm{CE}\big((f - u\,e_y)/T,\ y\big)$$

    At a low temperature it is a smooth hinge at margin $u$: an image counts as solved once $f_y - \max_j f_j$ exceeds
    $u$ by a few $T$. The default $u=\sqrt2\,\varepsilon$ is exactly the margin that certifies at `eps` if the network
    is 1-Lipschitz. Published choices are larger: $2\sqrt2\,\varepsilon$ in Prach et al. (CVPR 2024), and $\sqrt2$ (AOL)
    or $3\sqrt2/2$ (SLL) for any eps; pass `offset` for those. A larger offset trades clean for certified accuracy.

    Units and shapes are as in `Hinge`. Source: Prach & Lampert, ECCV 2022 (AOL). Raises `ValueError` if `eps` or
    `temperature` is not positive, and if `offset` is negative.

    >>> import torch
    >>> loss = OffsetCrossEntropy(eps=1.58)
    >>> round(loss.margin, 4)
    2.2345
    >>> round(OffsetCrossEntropy(eps=1.0, temperature=1.0, offset=0.0)(torch.zeros(1, 2), torch.tensor([0])).item(), 4)
    0.6931
    """

    eps: PositiveFloat
    temperature: PositiveFloat = 0.25
    offset: NonNegativeFloat | None = None

    def __post_init__(self) -> None:
        _positive(self.eps, "eps", "the l2 radius to train for, e.g. 1.58 for MNIST")
        _positive(self.temperature, "temperature", "0.25 is the usual choice")
        if self.offset is not None and not (is_finite_number(self.offset) and self.offset >= 0):
            raise ValueError(f"offset={self.offset!r}: must be finite and not negative; None means sqrt(2) * eps")

    @property
    def margin(self) -> float:
        """The offset u in use."""
        return math.sqrt(2) * self.eps if self.offset is None else self.offset

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        _check(logits, labels)
        shifted = logits - self.margin * F.one_hot(labels, logits.shape[1]).to(logits.dtype)
        return self.temperature * F.cross_entropy(shifted / self.temperature, labels)


def _positive(value: float, name: str, way_out: str) -> None:
    if not is_finite_number(value) or value <= 0:
        raise ValueError(f"{name}={value!r}: must be positive and finite; {way_out}")


def _check(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} with labels of shape {tuple(labels.shape)}: "
            "pass logits (B, C) and integer labels (B,)"
        )
