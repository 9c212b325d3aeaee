"""Division by the certificate: the network that is 1-Lipschitz for certain.

A network whose bound is 1.0000003 becomes one whose bound is at most 1 by a factor behind it. Its answers and its
certified radii stay the same; a critic's value becomes a certified one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container
from itertools import count

import torch
from torch import nn

from lconvnet.bounds.network import lipschitz_bound
from lconvnet.layers import Scale
from lconvnet.ops.rounding import product_up


def rescale(network: nn.Module, *, input_shape: tuple[int, ...] | None = None) -> nn.Sequential:
    """The network divided by its certified bound, so that its bound is at most 1.

        f -> c f,        c = the largest float32 with c upper <= 1

    Args:
        network: a baked network; it is left as it is, and its layers are shared.
        input_shape: as in :func:`lconvnet.lipschitz_bound`; the quotient is 1-Lipschitz at that shape.

    Returns:
        Its layers, with a :class:`lconvnet.layers.Scale` called ``rescale`` behind them (``rescale2`` and so on where
        a layer has that name); without one where the bound is at most 1 already. The factor is a float32, so a network
        in float32 multiplies by exactly that.

    Raises:
        ValueError: where the network cannot be bounded, or its bound is infinite.
        RuntimeError: the bound of the result is above 1: an incident.

    >>> rescaled = rescale(nn.Sequential(nn.Flatten(), Scale(3.0)))
    >>> lipschitz_bound(rescaled).upper <= 1, rescaled.rescale
    (True, Scale(factor=0.3333333134651184))
    """
    upper = lipschitz_bound(network, input_shape=input_shape, diagnose=False).upper
    layers = OrderedDict(network._modules if type(network) is nn.Sequential else {"network": network})
    if upper <= 1:
        return _sequence(layers, network.training)
    factor = torch.tensor(1 / upper, dtype=torch.float32)
    while product_up((upper, float(factor))) > 1:
        factor = torch.nextafter(factor, torch.zeros((), dtype=torch.float32))
    if factor == 0:
        raise ValueError(f"network has the bound {upper}, whose inverse is no float32: train it with a constraint")
    layers[_unused(layers)] = Scale(float(factor)).train(network.training)
    rescaled = _sequence(layers, network.training)
    found = lipschitz_bound(rescaled, input_shape=input_shape, diagnose=False).upper
    if not found <= 1:
        raise RuntimeError(f"network has the bound {found!r} after it was divided by {upper!r}: please report it")
    return rescaled


def _sequence(layers: OrderedDict[str, nn.Module], training: bool) -> nn.Sequential:
    """In this mode itself; its layers, which the network shares, keep theirs."""
    sequence = nn.Sequential(layers)
    sequence.training = training
    return sequence


def _unused(names: Container[str]) -> str:
    candidates = ("rescale" if i == 1 else f"rescale{i}" for i in count(1))
    return next(name for name in candidates if name not in names)
