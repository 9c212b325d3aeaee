"""Baking: every kernel is evaluated once, and plain PyTorch is what remains.

The baked network is what is bounded, certified, attacked, saved and deployed.
"""

from __future__ import annotations

from collections import OrderedDict
from copy import deepcopy

from torch import nn
from torch.optim.swa_utils import AveragedModel

from lconvnet.layers import ConstrainedLayer
from lconvnet.ops.altered import altered, refuse_global_hooks, require_module


def bake(model: nn.Module) -> nn.Module:
    """A fresh network of plain layers with fixed weights, equal to the model in eval mode.

    Weights are evaluated in float64 and rounded once to the dtype of the model. A convolution whose padding is
    asymmetric (even kernels) becomes a padding layer and an ``nn.Conv2d``. Sequences inside a sequence are flattened.
    Modules without a kernel are copied. Of an ``AveragedModel`` the averaged network is taken.

    Args:
        model: any module; it is left as it is.

    Returns:
        The network in eval mode, no parameter requiring a gradient.

    Raises:
        ValueError: for forward hooks, replaced methods, and a layer whose ``forward`` and ``bake`` come from different
            classes.

    >>> from lconvnet.models import mlp
    >>> bake(mlp(4, 2, widths=(4,)))
    Sequential(
      (flatten): Flatten(start_dim=1, end_dim=-1)
      (linear1): Linear(in_features=4, out_features=4, bias=True)
      (linear1_activation): MaxMin(dim=1)
      (linear2): Linear(in_features=4, out_features=2, bias=True)
    )
    """
    require_module(model, "model")
    _refuse_altered(model)
    return _baked(model).eval().requires_grad_(False)


def _refuse_altered(model: nn.Module) -> None:
    refuse_global_hooks()
    for name, module in model.named_modules():
        if method := altered(module):
            raise ValueError(
                f"module {name or 'model'!r} ({type(module).__name__}) has forward hooks or a replaced {method}, which "
                "a baked network cannot keep: remove them first, or make what they do a module"
            )


def _baked(module: nn.Module) -> nn.Module:
    if isinstance(module, ConstrainedLayer):
        return _baked_layer(module)
    if type(module) is AveragedModel:
        return _baked(module.module)
    if type(module) is nn.Sequential:
        return _baked_sequence(module)
    copy = deepcopy(module)
    for name, child in module._modules.items():  # unlike named_children(), a module used twice comes twice
        if child is not None:
            setattr(copy, name, _baked(child))
    return copy


def _baked_layer(layer: ConstrainedLayer) -> nn.Module:
    if _definer(layer, "forward") is not _definer(layer, "bake"):
        raise ValueError(
            f"{type(layer).__name__} overrides forward or bake alone, so they need not agree: override both, or neither"
        )
    return layer.bake()


def _definer(layer: ConstrainedLayer, method: str) -> type:
    return next(cls for cls in type(layer).__mro__ if method in vars(cls))


def _baked_sequence(sequence: nn.Sequential) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    taken = set(sequence._modules)
    for name, child in sequence._modules.items():
        if child is None:
            continue
        for suffix, layer in _parts(child):
            key = f"{name}_{suffix}" if suffix else name
            while suffix and key in taken:
                key += "_"
            taken.add(key)
            layers[key] = layer
    return nn.Sequential(layers)


def _parts(child: nn.Module) -> list[tuple[str, nn.Module]]:
    """A child of a sequence as the layers that take its place there, each with a suffix to its name."""
    baked = _baked(child)
    if type(baked) is not nn.Sequential:
        return [("", baked)]
    if isinstance(child, ConstrainedLayer):
        padding, layer = baked
        return [("pad", padding), ("", layer)]
    return list(baked._modules.items())  # pyright: ignore[reportReturnType]
