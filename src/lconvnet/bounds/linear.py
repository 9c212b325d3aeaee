r"""Linear bounds of ReLU networks over l2 balls, propagated backwards.

For the pre-activation $z \in [l, u]$ of a ReLU whose sign is open ($l < 0 < u$)

    a z <= relu(z) <= a z + b,        a = u / (u - l),   b = -a l           (Weng et al. 2018, Fast-Lin)

so a linear functional of the network's output is bounded below by $A x + d$, found layer by layer from the output to
the input, where a coefficient meets the upper line if it is negative, and over the ball by
$A x_0 + d - \epsilon\lVert A\rVert_2$. The bounds $l, u$ come from the same computation on the layers before, once
for each image. It is the dual of the linear relaxation at the point that Wong & Kolter 2018 and Wong et al. 2018 (KW)
choose; theirs estimates the norms by random projections, here they are computed.

Level "analytic": the bounds hold for the network in real arithmetic. They are computed in float64 on the CPU, and an
upper bound on what rounding can have changed is taken off: with N roundings on the way, a value computed here differs
from the exact one by at most $2 \gamma_N R$, where R is the same functional of the network of absolute values,
$|W| r + |b|$ with $r = |x_0| + \epsilon$ at the input (Higham 2002, section 3.1), and by what underflows: at most
$2^{-1022}$ in each of the N results behind a coefficient, which meets values up to r, and in each square of a norm. The
lines are laid through the widened interval, so they enclose the ReLU of the exact values too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lconvnet.bounds.attributes import fault
from lconvnet.bounds.backward import (
    TINY,
    Branches,
    Convolution,
    Dense,
    Flattening,
    Functionals,
    Line,
    Normalization,
    Shape,
    Step,
    by_position,
    from_positions,
    identity,
    over_ball,
    through,
)
from lconvnet.layers import Normalize, Sum
from lconvnet.ops.altered import altered, refuse_foreign
from lconvnet.ops.float64 import refuse_flushing, to_float64
from lconvnet.ops.images import check_eps, check_images, check_labels
from lconvnet.ops.rounding import gamma

STEPS: Mapping[type[nn.Module], Callable[..., Step]] = {
    nn.Conv2d: Convolution,
    nn.Linear: Dense,
    nn.Flatten: Flattening,
    Normalize: Normalization,
}


@dataclass(frozen=True)
class Relaxation:
    """A network up to some layer, every ReLU replaced by two lines that enclose it for the images of a ball.

    Attributes:
        centre, eps: the ball of each example, ``(B, ...)`` in float64.
        steps: in the order of the network.
        shape: of the layer's output, without the batch.
        magnitude: R above for every entry of that output, ``(B, *shape)``.
        underflow: what results that underflow can have changed in one of its values, ``(B,)``.
    """

    centre: Tensor
    eps: float
    steps: tuple[Step, ...]
    shape: Shape
    magnitude: Tensor
    underflow: Tensor

    def bounds(self, functionals: Functionals, magnitude: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds of functionals of the output, ``(B, P, n)`` each; `magnitude` is R of theirs."""
        lower, upper = (
            bound.reshape(magnitude.shape)
            for bound in over_ball(through(self.steps, functionals), self.centre, self.eps)
        )
        size = self.centre.shape[1:].numel()
        roundings = sum(step.roundings for step in self.steps) + 2 * size + 16
        at_input = 2 * TINY * (size + 1) + self.eps * 2 * (size * TINY) ** 0.5  # of A x0, and of the squares in |A|
        error = 2 * gamma(roundings) * magnitude + self.underflow[:, None, None] + at_input
        return lower - error, upper + error

    def extended(self, module: nn.Module, name: str) -> Relaxation:
        """The network with one more module. Raises ValueError for one that has no linear bounds."""
        if method := altered(module):
            raise ValueError(f"network module {name!r} has a hook or a replaced {method}: remove it, or bake the model")
        if type(module) is nn.Sequential:
            return self._through_all(module, name)
        if type(module) in (nn.ReLU, *STEPS) and (problem := fault(module)):
            raise ValueError(f"network module {name!r} ({type(module).__name__}) {problem}: build a new one")
        if type(module) is nn.ReLU:
            return self._then(Line(*self.output_bounds()))
        if type(module) is Sum:
            return self._then(self._sum(module, name))
        if type(module) in STEPS:
            return self._then(STEPS[type(module)](module, self.shape, name))
        known = ", ".join(sorted(kind.__name__ for kind in (nn.ReLU, Sum, *STEPS)))
        raise ValueError(f"network module {name!r} ({type(module).__name__}) has no linear bounds: build of {known}")

    def _through_all(self, sequence: nn.Sequential, name: str) -> Relaxation:
        found = self
        for child_name, child in sequence._modules.items():
            if child is not None:
                found = found.extended(child, f"{name}.{child_name}" if name else child_name)
        return found

    def output_bounds(self) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds of every entry of the output, ``(B, *shape)`` each."""
        lower, upper = self.bounds(identity(self.shape), by_position(self.magnitude))
        return from_positions(lower, self.shape), from_positions(upper, self.shape)

    def _sum(self, module: Sum, name: str) -> Branches:
        branches = [(f"{name}.{index}", branch) for index, branch in enumerate(module.branches)]
        for branch_name, branch in branches:
            _refuse_in_place(branch, branch_name)
        ends = [self.extended(branch, branch_name) for branch_name, branch in branches]
        shapes = {end.shape for end in ends}
        if len(shapes) > 1:
            raise ValueError(f"network module {name!r} adds up outputs of shapes {sorted(shapes)}")
        return Branches([end.steps[len(self.steps) :] for end in ends], shapes.pop())

    def _then(self, step: Step) -> Relaxation:
        magnitude = step.magnitude(self.magnitude)
        underflow = self.underflow + step.underflow(self.magnitude)
        return Relaxation(self.centre, self.eps, (*self.steps, step), step.output_shape, magnitude, underflow)


def _refuse_in_place(branch: nn.Module, name: str) -> None:
    for child_name, child in branch.named_modules():
        if getattr(child, "inplace", False):
            path = f"{name}.{child_name}" if child_name else name
            raise ValueError(
                f"network module {path!r} works in place where its input may be read again: use inplace=False"
            )


def relaxation(network: nn.Module, images: Tensor, eps: float) -> Relaxation:
    """The relaxed network over the balls of radius `eps` around images ``(B, ...)``; see `margin_bounds`."""
    centre = to_float64(check_images(images), "images")
    if centre.ndim not in (2, 4):
        raise ValueError(f"images has shape {tuple(centre.shape)}: linear bounds take (B, C, H, W) or (B, features)")
    refuse_foreign(network)
    refuse_flushing()
    nothing = torch.zeros(len(centre), dtype=torch.float64)
    start = Relaxation(centre, check_eps(eps), (), tuple(centre.shape[1:]), centre.abs() + eps, nothing)
    with torch.no_grad():
        return start.extended(network, "")


def margin_bounds(network: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """Lower bounds on every margin ``f_y - f_j`` over the l2 ball of radius `eps` around each image.

    Args:
        network: a baked network of convolutions with zero padding, dense layers, ReLU, `Normalize`, `Sum`, in
            (nested) ``nn.Sequential``.
        images: ``(B, C, H, W)``, floats in [0, 1]; all at once, for a few hundred MB where the network is large.
        labels: class y of each image, ``(B,)``.
        eps: l2 over pixels in [0, 1].

    Returns:
        ``(B, classes)`` in float64, infinity at j = y; positive for all j: no image of the ball has another answer.

    Raises:
        ValueError: for a module that has no linear bounds here, images, labels or an eps that are none.

    >>> network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    >>> margin_bounds(network, torch.rand(3, 2), torch.tensor([0, 1, 0]), 0.1).shape
    torch.Size([3, 2])
    """
    labels = check_labels(labels, len(images)).cpu()
    logits = relaxation(network, images, eps)
    if len(logits.shape) != 1 or logits.shape[0] < 2:
        raise ValueError(f"network has outputs of shape {logits.shape}: a margin needs (classes,), two or more")
    last = logits.shape[0] - 1
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) <= last:
        raise ValueError(
            f"labels has values from {labels.min()} to {labels.max()}: the network has classes 0 to {last}"
        )
    with torch.no_grad():
        classes = torch.eye(logits.shape[0], dtype=torch.float64)
        differences = classes[labels][:, None] - classes
        magnitude = (differences.abs() @ logits.magnitude[..., None]).mT
        lower, _ = logits.bounds(Functionals(differences[:, None]), magnitude)
    return lower[:, 0].scatter(1, labels[:, None], torch.inf)
