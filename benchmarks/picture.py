"""The scaling curves as a picture."""

from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, NullLocator

from benchmarks.scaling import DEPTHS_WIDTH, Curve
from lconvnet.atomic import write_bytes

TITLES = {
    "width": ("channels of one convolution", "width"),
    "depth": (f"convolutions of {DEPTHS_WIDTH} channels", "depth"),
}
MARKERS = "osD^"


def legend(curve: Curve) -> str:
    """Name and fitted exponent."""
    return curve.method if curve.exponent is None else f"{curve.method}, exponent {curve.exponent:.2f}"


def draw_axis(axes: Axes, axis: str, curves: list[Curve]) -> None:
    """One panel, logarithmic along both axes, a tick at every measured size."""
    for curve, marker in zip(curves, MARKERS, strict=True):
        axes.loglog(curve.sizes, curve.seconds, marker=marker, markersize=5, label=legend(curve))
    sizes = sorted({size for curve in curves for size in curve.sizes})
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    label, title = TITLES[axis]
    axes.set(xlabel=label, ylabel="seconds per training step", title=f"cost against {title}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)


def draw(path: Path, scaling: dict[str, list[Curve]]) -> None:
    """Both panels side by side."""
    plt.switch_backend("agg")
    figure, panels = plt.subplots(1, len(scaling), figsize=(12, 5), layout="constrained", squeeze=False)
    for axes, (axis, curves) in zip(panels.flat, scaling.items(), strict=True):
        draw_axis(axes, axis, curves)
    content = BytesIO()
    figure.savefig(content, dpi=150, format="png")
    plt.close(figure)
    write_bytes(path, content.getvalue())
