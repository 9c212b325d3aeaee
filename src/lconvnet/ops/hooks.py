"""What makes a module compute something else than its class says."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as every


def altered(module: nn.Module) -> str:
    """The method of this one module that was replaced, "forward" where it has a forward hook; empty where nothing was.

    >>> relu = nn.ReLU()
    >>> altered(relu)
    ''
    >>> relu.forward = lambda x: 2 * x
    >>> altered(relu)
    'forward'
    """
    if module._forward_hooks or module._forward_pre_hooks:
        return "forward"
    return next(
        (name for name, value in vars(module).items() if callable(value) and _replaces(value, module, name)), ""
    )


def _replaces(value: Any, module: nn.Module, name: str) -> bool:
    """Whether an attribute hides a method of the class, other than by that method itself, as Fabric leaves it."""
    method = getattr(type(module), name, None)
    own = getattr(value, "__func__", None) is method and getattr(value, "__self__", None) is module
    return callable(method) and not own


def require_module(network: Any, name: str = "network") -> None:
    """Raise ``ValueError`` for what is not a module, or holds one under a name by which it cannot be found.

    >>> require_module([nn.ReLU()])
    Traceback (most recent call last):
    ValueError: network is a list: pass an nn.Module, such as nn.Sequential(...)
    """
    if not isinstance(network, nn.Module):
        what = f"the class {network.__name__}" if isinstance(network, type) else f"a {type(network).__name__}"
        held = isinstance(getattr(network, "model", None), nn.Module)
        way = "its .model" if held else "an nn.Module, such as nn.Sequential(...)"
        raise ValueError(f"{name} is {what}: pass {way}")
    for module in network.modules():
        for child, held in module._modules.items():
            if held is not None and (not child or "." in child or getattr(module, child, None) is not held):
                raise ValueError(
                    f"{name} ({type(module).__name__}) holds a module as {child!r}, which is not a name: rename it"
                )


def require_numbers(module: nn.Module, name: str = "network") -> None:
    """Raise ``ValueError`` where a tensor of a module is on the meta device."""
    if any(tensor.is_meta for tensor in chain(module.parameters(), module.buffers())):
        raise ValueError(f"{name} is on the meta device, where weights have no numbers: load them first")


def refuse_global_hooks() -> None:
    """Raise ``ValueError`` where a hook on all modules changes what each of them computes."""
    if every._global_forward_hooks or every._global_forward_pre_hooks:
        raise ValueError(
            "torch.nn.modules.module has a global forward hook, so no module's type says what it computes: remove it"
        )


def refuse_foreign(network: nn.Module) -> None:
    """Raise ``ValueError`` where a call need not be what a module's class and numbers say: global hooks, modules that
    were compiled, tensors of a class or a layout of their own, which bring their own functions."""
    refuse_global_hooks()
    for name, module in network.named_modules():
        if module._compiled_call_impl is not None:
            raise ValueError(
                f"network module {name!r} ({type(module).__name__}) is compiled: bound it before, or compile a copy"
            )
    for name, tensor in chain(network.named_parameters(), network.named_buffers()):
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
            raise ValueError(
                f"network tensor {name!r} is a {type(tensor).__name__} of layout {tensor.layout}: make it a plain one"
            )
