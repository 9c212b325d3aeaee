"""The networks of the original: what each of its types becomes here.

>>> from lconvnet.experiments.original.node import Node
>>> maxmin = {"<type>": "GroupSort", "<init>": True, "group_size": 2, "axis": 1, "new_impl": True}
>>> Node(maxmin, "net.activation").choose(ACTIVATIONS)
{'activation': 'maxmin'}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from lconvnet.experiments.explain import choice, short
from lconvnet.experiments.original.node import Node
from lconvnet.models import baselines

Values = dict[str, Any]
Shape = tuple[int, int, int]

IMAGES: Mapping[str, Shape] = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "stl10": (3, 96, 96)}
CLASSES = 10
MAXIMAL_WEIGHTS = 2**28  # of a dense network; the paper's has 2^22
MAXIMAL_IMAGE = 2**20  # numbers of a critic's image; the paper's has 12,288
STEPS = 20  # of Björck's iteration, order 1, in every layer


def _convnet(node: Node, shape: Shape) -> Values:
    node.only(scaling=1.0)
    found = (node.number("in_channels"), *node.numbers("input_spatial_shape")), node.number("out_channels")
    if found != (shape, CLASSES):
        raise ValueError(f"{node.place} is for {found[0]} and {found[1]} classes; the images are {shape} of {CLASSES}")
    return {"architecture": CONVNETS[node.type], **_parts(node)}


CONVNETS = {"SmallConvNet": "small", "LargeConvNet": "large", "DCGANDiscriminator": "dcgan"}


def _parts(node: Node) -> Values:
    conv = node.node("conv_module").choose({"LipschitzConv2d": lambda inner: inner.node("conv_module").choose(CONVS)})
    return {"conv": conv, **_dense(node)}


def _dense(node: Node) -> Values:
    return {"linear": node.node("linear_module").choose(LINEARS), **node.node("activation").choose(ACTIVATIONS)}


def _group_sort(node: Node) -> Values:
    """GroupSort: pairs in the fast implementation are MaxMin, the larger one first."""
    node.only(axis=1)
    size, fast = node.number("group_size"), node.flag("new_impl", False)
    return {"activation": "maxmin"} if fast and size == 2 else {"activation": "groupsort", "group_size": size}


ACTIVATIONS = {"GroupSort": _group_sort, "ReLU": lambda node: {"activation": "relu"}}


def _limit(node: Node) -> None:
    """Björck's iteration stands for its limit, the polar factor; an import cuts it off after as many steps."""
    node.only(bjorck_iters=STEPS)


def _orthogonal(node: Node) -> str:
    _limit(node)
    return "orthogonal"


LINEARS = {"BjorckLinear": _orthogonal}


def _bcop(node: Node) -> str:
    _limit(node)
    node.only(ortho_mode="bjorck", mask_half=True, projection=False)
    return "bcop-fixed" if node.flag("frozen", False) else "bcop"


def _rko(node: Node) -> str:
    _limit(node)
    return "rko"


def _ossn(node: Node) -> str:
    node.only(n_iters=10)
    return "ossn"


def _svcm(node: Node) -> str:
    node.only(num_projections=50, orthogonal=False)
    return "svcm"


CONVS: Mapping[str, Callable[[Node], str]] = {
    "BCOP": _bcop,
    "RKO": _rko,
    "OSSN": _ossn,
    "SVCM": _svcm,
    "NonexpansiveConv2d": lambda node: "rkl2ne",
}


def _sequential(node: Node, shape: Shape) -> Values:
    flatten, *rest = node.nodes("<list>") or [node]
    flatten.choose({"Rearrange": lambda inner: inner.only(pattern="b c h w -> b (c h w)")})
    if len(rest) != 1:
        raise ValueError(f"{node.at('<list>')} has {len(rest) + 1} entries; Rearrange and MLP can be read")
    return rest[0].choose({"MLP": lambda inner: _mlp(inner, shape)})


def _mlp(node: Node, shape: Shape) -> Values:
    node.only(dropout_rate=0, dist_scaling=1.0)
    first, *widths, last = node.numbers("units")
    if (first, last) != (shape[0] * shape[1] * shape[2], CLASSES) or not widths:
        raise ValueError(f"{node.at('units')} goes from {first} to {last}; images of {shape} have other numbers")
    if sum(before * after for before, after in pairwise([first, *widths, last])) > MAXIMAL_WEIGHTS:
        raise ValueError(f"{node.at('units')} asks for more than {MAXIMAL_WEIGHTS} weights; no run has so many")
    return {"architecture": "mlp", "widths": widths, **_dense(node)}


def critic(node: Node) -> tuple[Values, Shape]:
    """Return a critic and the shape of the images that it takes."""
    node.only(scaling=1.0, out_channels=1)
    channels, sides = node.number("in_channels"), node.numbers("input_spatial_shape")
    if len(sides) != 2 or sides[0] != sides[1]:
        raise ValueError(f"{node.at('input_spatial_shape')} is {sides}; critics take square images")
    if channels * sides[0] ** 2 > MAXIMAL_IMAGE:
        raise ValueError(f"{node.place} takes images of more than {MAXIMAL_IMAGE} numbers; no run has so large ones")
    return _parts(node), (channels, sides[0], sides[1])


def _kw(node: Node, shape: Shape) -> Values:
    """Wong et al. 2018; on CIFAR-10 their networks normalise the images."""
    _require_images(node, shape)
    size, known = node.take("model_name"), ("small", "large")
    if size not in known:
        raise ValueError(choice(node.at("model_name"), size, known))
    normalised = {"mean": baselines.CIFAR10_MEAN, "std": baselines.CIFAR10_STD} if shape == IMAGES["cifar10"] else {}
    return {"architecture": f"kw-{size}", **normalised}


def _qian(node: Node, shape: Shape) -> Values:
    """Qian & Wegman 2019, by the number of their model; its widths are not in the file, but as in runs/baselines."""
    _require_images(node, shape)
    channels = (32, 64, 128) if shape == IMAGES["cifar10"] else (32, 64)
    return {"architecture": "qw", "channels": channels, "published": node.number("model_index")}


def _require_images(node: Node, shape: Shape) -> None:
    name = node.take("dataset_name")
    if IMAGES.get(name) != shape:
        raise ValueError(f"{node.at('dataset_name')} is {short(name)}, but the images of dataloaders are {shape}")


NETWORKS: Mapping[str, Callable[[Node, Shape], Values]] = {
    "Sequential": _sequential,
    "SmallConvNet": _convnet,
    "LargeConvNet": _convnet,
    "DCGANDiscriminator": _convnet,
    "kw": _kw,
    "qian": _qian,
}
