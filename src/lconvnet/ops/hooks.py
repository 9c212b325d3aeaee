"""Hooks and replaced methods, with which a module computes something other than its class says."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as every


def altered(module: nn.Module) -> str:
    """The name of a method that this module replaces, "forward" if it has a forward hook, else an empty string.

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
    """Whether an attribute hides a method of the class. Fabric leaves the method itself there, which does not count."""
    method = getattr(type(module), name, None)
    own = getattr(value, "__func__", None) is method and getattr(value, "__self__", None) is module
    return callable(method) and not own


def require_module(network: Any, name: str = "network") -> None:
    """Raise ``ValueError`` if this is not a module, or holds one under a name that cannot be looked up.

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
    """Raise ``ValueError`` if a tensor of a module is on the meta device."""
    if any(tensor.is_meta for tensor in chain(module.parameters(), module.buffers())):
        raise ValueError(f"{name} is on the meta device, where weights have no numbers: load them first")


def refuse_global_hooks() -> None:
    """Raise ``ValueError`` if a global hook changes the output of every module."""
    if every._global_forward_hooks or every._global_forward_pre_hooks:
        raise ValueError(
            "torch.nn.modules.module has a global forward hook, so no module's type says what it computes: remove it"
        )


def refuse_foreign(network: nn.Module) -> None:
    """Raise ``ValueError`` if a call may differ from what a module's class and numbers say: global hooks, compiled
    modules, and tensors of another class or layout, which bring their own functions."""
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
