"""Baking: every kernel is evaluated once, and plain PyTorch is what remains.

The baked network is what is bounded, certified, attacked, saved and deployed.
"""

from __future__ import annotations

from collections import OrderedDict
from copy import deepcopy

from torch import nn

from lconvnet.layers import ConstrainedLayer


def bake(model: nn.Module) -> nn.Module:
    """A fresh network of plain layers with fixed weights, equal to the model in eval mode.

    Weights are evaluated in float64 and rounded once to the dtype of the model. A convolution whose padding is
    asymmetric (even kernels) becomes a padding layer and an ``nn.Conv2d``; inside an ``nn.Sequential`` both stand in
    the sequence. Modules without a kernel are copied.

    Args:
        model: any module; it is left as it is.

    Returns:
        The network in eval mode, no parameter requiring a gradient.

    >>> from lconvnet.models import mlp
    >>> bake(mlp(4, 2, widths=(4,)))
    Sequential(
      (flatten): Flatten(start_dim=1, end_dim=-1)
      (linear1): Linear(in_features=4, out_features=4, bias=True)
      (linear1_activation): MaxMin(dim=1)
      (linear2): Linear(in_features=4, out_features=2, bias=True)
    )
    """
    return _baked(model).eval().requires_grad_(False)


def _baked(module: nn.Module) -> nn.Module:
    if isinstance(module, ConstrainedLayer):
        return module.bake()
    if type(module) is nn.Sequential:
        return _baked_sequence(module)
    children = {name: _baked(child) for name, child in module.named_children()}
    copy = deepcopy(module)
    for name, child in children.items():
        setattr(copy, name, child)
    return copy


def _baked_sequence(sequence: nn.Sequential) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name, child in sequence._modules.items():  # unlike named_children(), a module used twice comes twice
        if child is None:
            continue
        baked = _baked(child)
        if isinstance(child, ConstrainedLayer) and isinstance(baked, nn.Sequential):
            padding, layer = baked
            layers[f"{name}_pad"] = padding
            baked = layer
        layers[name] = baked
    return nn.Sequential(layers)
