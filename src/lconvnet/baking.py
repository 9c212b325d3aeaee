"""Baking: evaluate every kernel once and return plain PyTorch."""

from __future__ import annotations

from collections import OrderedDict
from copy import deepcopy

from torch import nn
from torch.optim.swa_utils import AveragedModel

from lconvnet.layers import ConstrainedLayer
from lconvnet.ops.hooks import altered, refuse_global_hooks, require_module, require_numbers

FREE = {"extra_repr", "reset_parameters", "_abc_impl"}  # a subclass may replace these, because no call reads them
CALLS = {"__call__", "__getattr__", "__getattribute__"}  # the names with double underscores that a call reads


def bake(model: nn.Module) -> nn.Module:
    """Return a new network of plain layers with fixed weights, equal to the model in eval mode.

    Weights are evaluated in float64 and rounded once to the dtype of the model. A convolution whose padding is
    asymmetric (even kernels) becomes a padding layer and an ``nn.Conv2d``. Nested sequences are flattened. Modules
    without a kernel are copied. An ``AveragedModel`` gives its averaged network.

    Args:
        model: any module; it is not changed.

    Returns:
        The network in eval mode; no parameter requires a gradient. Training steps on it would not keep the norms at 1:
        train the model and bake it again.

    Raises:
        ValueError: if the model has forward hooks, replaced methods or a compiled module; if the weight of a kernel
            does not have its declared shape; if a layer takes ``forward`` and ``bake`` from different classes; and if a
            class overrides something that both of them use.

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
    require_numbers(model, "model")
    return _baked(deepcopy(model).eval(), "").eval().requires_grad_(False)


def _refuse_altered(model: nn.Module) -> None:
    refuse_global_hooks()
    for name, module in model.named_modules():
        if "_orig_mod" in module._modules:
            raise ValueError(
                f"module {name or 'model'!r} is what torch.compile made: bake the module that was compiled "
                "(its ._orig_mod), and compile what bake returns"
            )
        if method := altered(module):
            raise ValueError(
                f"module {name or 'model'!r} ({type(module).__name__}) has forward hooks or a replaced {method}, which "
                "a baked network cannot keep: remove them first, or make what they do a module"
            )


def _baked(module: nn.Module, name: str) -> nn.Module:
    """Return the replacement of a module. Containers other than sequences are changed in place."""
    if isinstance(module, ConstrainedLayer):
        return _baked_layer(module, name)
    if type(module) is AveragedModel:
        return _baked(module.module, _join(name, "module"))
    if type(module) is nn.Sequential:
        return _baked_sequence(module, name)
    for key, child in module._modules.items():  # unlike named_children(), this repeats a module that is used twice
        if child is not None:
            module._modules[key] = _baked(child, _join(name, key))
    return module


def _baked_layer(layer: ConstrainedLayer, name: str) -> nn.Module:
    cls = type(layer)
    definer = _definer(cls, "bake")
    if _definer(cls, "forward") is not definer:
        raise ValueError(
            f"{cls.__name__} overrides forward or bake alone, so they need not agree: override both, or neither"
        )
    if method := _overridden(cls, definer):
        raise ValueError(
            f"{cls.__name__} overrides {method}, on which forward and bake of {definer.__name__} may rely differently: "
            "override forward and bake in the same class, or change the kernel instead"
        )
    try:
        baked = layer.bake()
    except ValueError as error:
        raise ValueError(f"layer {name or 'model'!r} ({cls.__name__}): {error}") from error
    if not isinstance(baked, nn.Module):
        raise ValueError(f"layer {name or 'model'!r} ({cls.__name__}) was baked to {baked!r}, which is not a module")
    return baked


def _definer(cls: type, method: str) -> type:
    return next(base for base in cls.__mro__ if method in vars(base))


def _overridden(cls: type, definer: type) -> str:
    """Return an attribute of the defining class that a derived class replaces, or an empty text."""
    derived = cls.__mro__[: cls.__mro__.index(definer)]
    names = (name for base in derived for name in vars(base) if name not in FREE and hasattr(definer, name))
    return next((name for name in names if name in CALLS or not name.startswith("__")), "")


def _baked_sequence(sequence: nn.Sequential, place: str) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    taken = set(sequence._modules)
    for name, child in sequence._modules.items():
        if child is None:
            continue
        for suffix, layer in _parts(child, _join(place, name)):
            key = f"{name}_{suffix}" if suffix else name
            while suffix and key in taken:
                key += "_"
            taken.add(key)
            layers[key] = layer
    return nn.Sequential(layers)


def _parts(child: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    """Return the layers that replace a child of a sequence, each with a suffix for its name."""
    baked = _baked(child, name)
    if type(baked) is not nn.Sequential:
        return [("", baked)]
    if (
        isinstance(child, ConstrainedLayer)
        and len(baked) == 2
        and isinstance(baked[0], nn.CircularPad2d | nn.ZeroPad2d)
    ):
        return [("pad", baked[0]), ("", baked[1])]
    return list(baked._modules.items())  # pyright: ignore[reportReturnType]


def _join(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name
