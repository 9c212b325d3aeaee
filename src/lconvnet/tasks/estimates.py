r"""From a trained critic and held-out samples to a certified estimate of the Wasserstein-1 distance.

    W1(P, Q) = sup_{Lip(f) <= 1} E_P f - E_Q f                    (Kantorovich & Rubinstein 1958; Villani 2009, 5.16)

Distances are l2. Every f with Lipschitz constant at most L gives the lower bound $(E_P f - E_Q f) / L$.

The pictures of an estimate are matplotlib figures (extra `plots`): the training curve, and the images that the critic
ranks most real and most fake.
"""

from __future__ import annotations

import io
import math
from collections import OrderedDict
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lconvnet import atomic
from lconvnet.baking import bake
from lconvnet.bounds import Bound, lipschitz_bound, tensors_of, trace
from lconvnet.bounds.forward_error import INFLATION, Arithmetic
from lconvnet.bounds.network import forward_error
from lconvnet.extras import require
from lconvnet.layers import Scale
from lconvnet.ops.rounding import decimal, decimals, down, rounded_down, up
from lconvnet.tasks.samples import Distribution, box, diameter, first_of_each, floats, units
from lconvnet.training.settings import describe

SHOWN = 8  # images per row


def draw(estimate: Estimate, folder: Path) -> list[Path]:
    """Write training.png and, for images, ranking.png into `folder`; return the paths."""
    figures = {"training.png": training_curve(estimate)}
    if is_images(estimate):
        figures["ranking.png"] = ranking(estimate)
    for name, figure in figures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        atomic.write_bytes(folder / name, buffer.getvalue())
    return [folder / name for name in figures]


def is_images(estimate: Estimate) -> bool:
    """Whether the samples are grey or colour images `(N, 1 or 3, H, W)`."""
    shape = estimate.samples[0].shape
    return len(shape) == 4 and shape[1] in (1, 3)


def training_curve(estimate: Estimate) -> Any:
    """The critic's difference on training batches by step, and the certified result on held-out samples."""
    figure = require("matplotlib.figure", "plots").Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    steps, values = zip(*estimate.history, strict=True)
    axes.plot(steps, values, label="training batches (not certified)")
    low, high = estimate.interval
    found = rounded_down(estimate.lower_bound, decimals(estimate.lower_bound, 4))
    axes.axhspan(low, high, alpha=0.25, color="C1", label=f"interval at {decimal(estimate.confidence)}")
    axes.axhline(estimate.lower_bound, color="C1", label=f"held out, over L: {found}")
    axes.set(xlabel="step", ylabel="mean difference of the critic", xlim=(0, steps[-1]))
    axes.set_title(estimate.units, fontsize="small", loc="left")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def ranking(estimate: Estimate) -> Any:
    """The held-out images of each side with the largest and the smallest values of the critic (over L)."""
    count = min(SHOWN, *estimate.held_out)
    figure = require("matplotlib.figure", "plots").Figure(figsize=(1.1 * count + 0.2, 7.2), layout="constrained")
    parts = figure.subfigures(4)
    for place, (number, side) in enumerate((number, side) for number in (0, 1) for side in ("real", "fake")):
        order = estimate.values[number].argsort(descending=side == "real")[:count]
        parts[place].suptitle(f"{('real', 'fake')[number]}, ranked most {side}", fontsize="medium")
        _row(parts[place], estimate.samples[number][order], estimate.values[number][order])
    return figure


def _row(figure: Any, images: Tensor, values: Tensor) -> None:
    low, high = (float(end) for end in images.aminmax())
    low, high = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)  # other ranges are stretched
    for axes, image, value in zip(figure.subplots(1, len(images), squeeze=False)[0], images, values, strict=True):
        picture = ((image.float().cpu() - low) / (high - low)).permute(1, 2, 0).numpy()
        axes.imshow(picture if picture.shape[2] == 3 else picture[..., 0], cmap="gray", vmin=0, vmax=1)
        axes.set_title(f"{float(value):.4g}", fontsize="small")
        axes.set_axis_off()


CHUNK = 500  # samples evaluated at a time
POINTS = 200  # in a history
LAST = 0.1  # fraction of the steps, the last ones, whose mean is `Estimate.training`


@dataclass(frozen=True)
class Estimate:
    r"""A certified estimate of the Wasserstein-1 distance from held-out samples.

    Let f be the trained, baked critic, oriented so that training made it larger on the first distribution P. Let L be a
    rigorous upper bound of its Lipschitz constant. Then

        theta = max(0, E_P f - E_Q f) / L  <=  W1(P, Q)

    holds with certainty (as far as `level` says). Only theta is uncertain: its expectations are estimated by means over
    samples.

    Attributes:
        lower_bound: max(0, mean of f over held-out samples of P - mean over those of Q) / L, the estimate of theta.
        interval: two-sided confidence interval for theta (not for W1, which may lie above it). It is `central_interval`
            of f / L, widened by the possible rounding error, and cut at 0. **Asymptotic**: see `assumes`. Its lower end
            alone is below W1 with confidence (1 + `confidence`) / 2.
        guaranteed: the same for every number of samples (`bernstein_interval`), if the support is known to be bounded;
            otherwise None.
        assumes: the assumptions of `interval`.
        confidence: probability with which such an interval covers theta.
        units: the meaning of a distance of 1.
        lipschitz: L, `bound.upper`.
        level: the errors that L accounts for, as in `Bound.level`.
        held_out: numbers of held-out samples of P and Q.
        training: the mean difference over the last tenth of the training batches, over L. If it is far above
            `interval`, the critic has learned its samples by heart and needs more of them.
        history: (step, mean difference of the training batches since the previous entry), not divided by L.
        settings: the JSON-able settings that the estimate follows from.
        critic: f, an `nn.Sequential` of plain layers.
        bound: L layer by layer.
        samples: the held-out samples of P and Q.
        values: f / L of those, in float64.
    """

    lower_bound: float
    interval: tuple[float, float]
    guaranteed: tuple[float, float] | None
    assumes: str
    confidence: float
    units: str
    lipschitz: float
    level: str
    held_out: tuple[int, int]
    training: float
    history: tuple[tuple[int, float], ...] = field(repr=False)
    settings: dict[str, Any] = field(repr=False)
    critic: nn.Module = field(repr=False)
    bound: Bound = field(repr=False)
    samples: tuple[Tensor, Tensor] = field(repr=False)
    values: tuple[Tensor, Tensor] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the content of record.json."""
        names = ("lower_bound", "interval", "guaranteed", "assumes", "confidence", "units", "lipschitz", "level")
        return {name: describe(getattr(self, name)) for name in (*names, "held_out", "training", "history", "settings")}


def judge(
    critic: nn.Module,
    real: Distribution,
    fake: Distribution,
    *,
    sign: int,
    confidence: float,
    support: tuple[float, float] | None,
    history: list[float],
    settings: dict[str, Any],
) -> Estimate:
    """The estimate of a trained critic that was trained to be larger on the real side (`sign` 1) or the fake (-1).

    Raises `ValueError` for a module without a Lipschitz rule or a rounding rule, and for samples that give no estimate.
    """
    network = oriented(bake(critic), sign)
    bound = lipschitz_bound(network, input_shape=real.shape, diagnose=False)
    values = certified_values(network, bound, real.held_out), certified_values(network, bound, fake.held_out)
    error = sum(rounding(network, bound, *side) for side in zip((real.held_out, fake.held_out), values, strict=True))
    interval, guaranteed = intervals(values, real, fake, confidence=confidence, support=support)
    last = history[-max(1, round(LAST * len(history))) :]
    return Estimate(
        lower_bound=max(0.0, float(difference(*values))),
        interval=_widened(interval, error),
        guaranteed=guaranteed and _widened(guaranteed, error),
        assumes=assumption(real, fake),
        confidence=confidence,
        units=units(real),
        lipschitz=bound.upper,
        level=bound.level,
        held_out=(len(values[0]), len(values[1])),
        training=sum(last) / len(last) / bound.upper if bound.upper else 0.0,
        history=thinned(history),
        settings=settings,
        critic=network,
        bound=bound,
        samples=(real.held_out, fake.held_out),
        values=values,
    )


def intervals(
    values: tuple[Tensor, Tensor],
    real: Distribution,
    fake: Distribution,
    *,
    confidence: float,
    support: tuple[float, float] | None,
) -> tuple[tuple[float, float], tuple[float, float] | None]:
    """The asymptotic interval of f / L and, if there is one, the interval for every number of samples."""
    known = diameter(support, real, fake)
    low, high = torch.cat(values).aminmax()
    spread = float(high - low) or float(torch.sub(*reversed(box(real, fake))).norm()) or known
    if not spread:
        raise ValueError(
            f"{real.name} and {fake.name} are one sample again and again, so how far others may lie is unknown: "
            "give support=(low, high), between which every value is known to lie"
        )
    means = Mean.of(values[0], real.groups), Mean.of(values[1], fake.groups)
    guaranteed = _guaranteed(values, (real, fake), confidence, known) if known else None
    return central_interval(*means, confidence, spread), guaranteed


def _guaranteed(
    values: tuple[Tensor, Tensor], sides: tuple[Distribution, Distribution], confidence: float, diameter: float
) -> tuple[float, float] | None:
    """The interval that holds whether equal samples are copies or draws: it covers that of all and that of one of
    each."""
    single = [part[first_of_each(side.groups)] for part, side in zip(values, sides, strict=True)]
    if min(map(len, single)) < 2:
        return None
    every = bernstein_interval(*values, confidence, diameter)
    each = bernstein_interval(single[0], single[1], confidence, diameter)
    return min(every[0], each[0]), max(every[1], each[1])


def assumption(real: Distribution, fake: Distribution) -> str:
    """The assumptions of the asymptotic interval about these samples."""
    equal = [f"{_repeats(side)} of {side.name}" for side in (real, fake) if _repeats(side)]
    drawn = f"; samples that equal others ({' and '.join(equal)} held out) were drawn, not copied" if equal else ""
    return f"independent samples, enough for the central limit theorem, and no rare values beyond those seen{drawn}"


def _repeats(side: Distribution) -> int:
    return len(side.groups) - len(side.groups.unique())


def rounding(network: nn.Module, bound: Bound, samples: Tensor, values: Tensor) -> float:
    """A bound on the rounding error of the mean of `certified_values`."""
    if bound.upper == 0:
        return 0.0
    traced, uppers = trace(network, tuple(samples.shape[1:])), {layer.name: layer.upper for layer in bound.layers}
    arithmetic = Arithmetic.of(torch.float64)
    stored = forward_error(traced.graph, uppers, tensors_of(network), arithmetic)
    end = traced.graph[traced.graph.output]
    negated = end.operation == "Scale" and abs(end.options["factor"]) == 1  # added by `oriented`; rounds nothing
    line = stored[end.inputs[0] if negated else end.name].error
    norms = samples.flatten(1).double().norm(dim=1)
    summed = arithmetic.gamma(len(values) + 4) * float(values.abs().mean())
    return (line.slope * float(norms.mean()) + line.offset) / bound.upper * INFLATION + summed


def _widened(interval: tuple[float, float], error: float) -> tuple[float, float]:
    """Widen an interval by the rounding error and cut it at 0, because distances are not negative."""
    return max(0.0, down(interval[0] - error)), max(0.0, up(interval[1] + error))


def oriented(network: nn.Module, sign: int) -> nn.Module:
    """The baked network; if `sign` is -1, a last layer changes the sign of its output."""
    if sign > 0:
        return network
    parts = dict(network.named_children()) if type(network) is nn.Sequential else {"critic": network}
    return nn.Sequential(OrderedDict(parts, sign=Scale(-1.0))).eval()


@torch.no_grad()
def certified_values(network: nn.Module, bound: Bound, samples: Tensor) -> Tensor:
    """f / L of samples `(N, ...)`, `(N,)`: a function with Lipschitz constant at most 1, evaluated in float64.

    The difference of its means over any two sets of samples is at most their exact transport (`transport.transport`).

    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(1, 1)).requires_grad_(False)
    >>> values = certified_values(network, lipschitz_bound(network), torch.tensor([[1.0], [3.0]]))
    >>> round(abs((values[1] - values[0]).item()), 9)
    2.0
    """
    if bound.upper == 0:  # a constant critic
        return torch.zeros(len(samples), dtype=torch.float64)
    exact = deepcopy(network).double()
    device = next(network.parameters(), samples).device
    chunks = [critic_values(exact, floats(chunk).to(device).double()) for chunk in samples.split(CHUNK)]
    return torch.cat(chunks).cpu() / bound.upper


def thinned(values: list[float]) -> tuple[tuple[int, float], ...]:
    """At most `POINTS` means of consecutive values, each with the number of values up to its last.

    >>> thinned([1.0, 3.0])
    ((1, 1.0), (2, 3.0))
    """
    width = math.ceil(len(values) / POINTS)
    parts = [(start, values[start : start + width]) for start in range(0, len(values), width)]
    return tuple((start + len(part), sum(part) / len(part)) for start, part in parts)


def critic_values(critic: nn.Module, samples: Tensor) -> Tensor:
    """f of every sample, `(B,)`. Raises `ValueError` unless the critic gives one number per sample.

    >>> critic_values(nn.Flatten(), torch.ones(3, 1)).tolist()
    [1.0, 1.0, 1.0]
    """
    values = critic(samples)
    if tuple(values.shape) not in ((len(samples),), (len(samples), 1)):
        raise ValueError(
            f"critic gives outputs of shape {tuple(values.shape)} for {len(samples)} samples: "
            "build it with one output, such as classes=1"
        )
    return values.reshape(len(samples))


def difference(real: Tensor, fake: Tensor) -> Tensor:
    """mean f(real) - mean f(fake), the objective that a critic maximises, of values `(n,)` and `(m,)`.

    >>> difference(torch.tensor([1.0, 3.0]), torch.tensor([0.5])).item()
    1.5
    """
    return real.mean() - fake.mean()


@dataclass(frozen=True)
class Mean:
    """A mean over samples, some of which are copies of others.

    Attributes:
        value: the mean over all samples.
        variance: variance of the mean, from sums over copies: all copies of a sample together are one observation.
        size: the equivalent number of different samples, n^2 / sum_g c_g^2 for c_g copies (Kish 1965).
    """

    value: float
    variance: float
    size: float

    @classmethod
    def of(cls, values: Tensor, groups: Tensor | None = None) -> Mean:
        """The mean of values `(n,)`; equal `groups` `(n,)` mark copies, by default there are none.

        >>> Mean.of(torch.tensor([1.0, 1.0, 3.0, 3.0]), torch.tensor([0, 0, 1, 1]))
        Mean(value=2.0, variance=1.0, size=2.0)
        """
        values = values.double()
        groups = torch.arange(len(values)) if groups is None else groups
        _, place, counts = groups.unique(return_inverse=True, return_counts=True)
        mean, distinct = values.mean(), len(counts)
        sums = torch.zeros(distinct, dtype=torch.float64).index_add(0, place, values - mean)
        variance = float(sums.square().sum()) / len(values) ** 2 * distinct / max(distinct - 1, 1)
        return cls(float(mean), variance, len(values) ** 2 / float(counts.double().square().sum()))


def central_interval(real: Mean, fake: Mean, confidence: float, spread: float) -> tuple[float, float]:
    r"""Two-sided confidence interval for $E_P f - E_Q f$ from independent samples of P and of Q.

        mean(x) - mean(y) -+ (t_v sqrt(s_x^2 / n + s_y^2 / m) + spread (p_n + p_m)),       p_n = 1 - (a / 4)^{1 / n}

    with t the Student quantile for the degrees of freedom v of Welch (1947) and Satterthwaite, a = 1 - `confidence`.
    A value that none of n samples takes has at most the probability p_n, with confidence 1 - a / 4. The second part is
    the largest effect of such values if they lie within `spread`; it is never 0. **Asymptotic**: the coverage tends to
    `confidence` as n and m grow, by the central limit theorem. Values further away that no sample shows are not
    covered.

    >>> low, high = central_interval(Mean.of(torch.full((99,), 2.0)), Mean.of(torch.zeros(99)), 0.95, 2.0)
    >>> round(low, 2), round(high, 2)
    (1.83, 2.17)
    """
    middle, variance = real.value - fake.value, real.variance + fake.variance
    half = 0.0
    if variance > 0:
        parts = sum(side.variance**2 / max(side.size - 1, 1.0) for side in (real, fake))
        half = student_quantile((1 + confidence) / 2, variance**2 / parts) * math.sqrt(variance)
    unseen = sum(-math.expm1(math.log((1 - confidence) / 4) / side.size) for side in (real, fake))
    return middle - half - spread * unseen, middle + half + spread * unseen


def bernstein_interval(real: Tensor, fake: Tensor, confidence: float, diameter: float) -> tuple[float, float]:
    r"""Two-sided confidence interval for $E_P f - E_Q f$ that holds **for every number of samples**.

        | mean(x) - E x | <= sqrt(2 s^2 log(2 / d) / n) + 7 D log(2 / d) / (3 (n - 1))       with probability 1 - 2 d

    (Maurer & Pontil 2009, theorem 4, on either side) for independent values `(n,)` and `(m,)` that lie within an
    interval of length D; d = (1 - `confidence`) / 4. The values of a 1-Lipschitz f on a support of this `diameter` are
    such values.

    >>> low, high = bernstein_interval(torch.full((101,), 2.0), torch.zeros(101), 0.95, 1.0)
    >>> round(low, 2), round(high, 2)
    (1.76, 2.24)
    """
    middle, log = float(difference(real, fake)), math.log(8 / (1 - confidence))
    half = sum(
        math.sqrt(2 * float(values.var()) * log / len(values)) + 7 * diameter * log / (3 * (len(values) - 1))
        for values in (real, fake)
    )
    return middle - half, middle + half


def student_quantile(probability: float, freedom: float) -> float:
    """Quantile of Student's distribution above the median, from the integral of its density in the angle
    arctan(t / sqrt(freedom)), to 1e-6 relatively.

    >>> round(student_quantile(0.975, 30), 4)
    2.0423
    """
    angles = np.linspace(0, min(math.pi / 2, 40 / math.sqrt(freedom)), 20_001)
    with np.errstate(divide="ignore"):
        density = np.cos(angles) ** (freedom - 1)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    angle = float(np.interp((2 * probability - 1) * mass[-1], mass, angles))
    return math.sqrt(freedom) * math.tan(angle)
