"""What a module computes with besides the values of its tensors, and whether that is what its constructor gives it."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

UNREADABLE = object()


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """All public attributes that are numbers, strings, or lists of them, as JSON has them; not the mode.

    >>> from lconvnet.layers import GroupSort
    >>> plain_attributes(GroupSort(2))
    {'group_size': 2, 'dim': 1}
    """
    held = {name: _plain(value) for name, value in vars(module).items() if not name.startswith("_")}
    return {name: value for name, value in held.items() if value is not UNREADABLE and name != "training"}


def private_attributes(module: nn.Module) -> dict[str, Any]:
    """The like attributes whose names begin with an underscore, without those that every module has.

    >>> private_attributes(nn.ReLU())
    {}
    """
    held = {name: _plain(value) for name, value in vars(module).items() if name.startswith("_")}
    common = vars(nn.Module())
    return {name: value for name, value in held.items() if value is not UNREADABLE and name not in common}


def fault(module: nn.Module) -> str:
    """What a module of torch's or ours has otherwise than a new one whose arguments are its attributes; empty where
    nothing. A rule that knows the constructor then knows the module.

    >>> pad = nn.ZeroPad2d(1)
    >>> pad.value = 0.5
    >>> fault(pad)
    'has value=0.5, where a new one with its arguments has 0.0'
    """
    try:
        with torch.device("meta"):  # neither memory nor random numbers
            new = type(module)(**_arguments(module))
    except (ValueError, TypeError, RuntimeError, OverflowError, AttributeError) as error:
        return f"has attributes that its constructor refuses ({_line(error)})"
    if found := difference(module, new):
        name, value, wanted = found
        return f"has {name}={value}, where a new one with its arguments has {wanted}"
    return ""


def _arguments(module: nn.Module) -> dict[str, Any]:
    """The arguments of the constructor, each kept under its name; of a bias, whether there is one."""
    named = [name for name, p in signature(type(module)).parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    held = {name: getattr(module, name) for name in named if name not in ("device", "dtype")}
    return {name: value is not None if name == "bias" else value for name, value in held.items()}


def difference(module: nn.Module, other: nn.Module) -> tuple[str, str, str] | None:
    """The first attribute or tensor that two modules of one class do not share, the bytes of tensors aside: its name
    and what it is in each. An attribute that only the first has counts where it hides one of the class.

    >>> difference(nn.Linear(2, 3), nn.Linear(2, 4))
    ('bias', 'a tensor of shape (3,)', 'a tensor of shape (4,)')
    """
    held, wanted = _held(module), _held(other)
    hiding = {name for name in held if hasattr(type(module), name)}
    for name in sorted(wanted.keys() | hiding):
        first, second = (side.get(name, "nothing") for side in (held, wanted))
        if first is UNREADABLE or second is UNREADABLE or first != second:
            return name, _said(module, name), _said(other, name)
    return None


def _held(module: nn.Module) -> dict[str, Any]:
    """Attributes as JSON has them, and of each tensor what it is."""
    common, tensors = vars(nn.Module()), {**module._parameters, **module._buffers}
    held = {name: _plain(value) for name, value in vars(module).items() if name not in common}
    return held | {name: tensor if tensor is None else _form(tensor) for name, tensor in tensors.items()}


def _form(tensor: Tensor) -> str:
    """Its shape, and its dtype if that is not a float."""
    return f"a tensor of shape {tuple(tensor.shape)}" + ("" if tensor.is_floating_point() else f", {tensor.dtype}")


def _said(module: nn.Module, name: str) -> str:
    return _line(getattr(module, name)) if hasattr(module, name) else "nothing"


def _line(value: Any) -> str:
    """What is said of a value or an error, in one short line."""
    text = _form(value) if isinstance(value, Tensor) else str(value) if isinstance(value, Exception) else repr(value)
    return " ".join(text.split())[:80]


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        entries = [_plain(entry) for entry in value]
        return UNREADABLE if any(entry is UNREADABLE for entry in entries) else entries
    return UNREADABLE


def version(tensor: Tensor) -> int | None:
    """Counts the changes of a tensor in place; None where torch does not (inference mode)."""
    return None if tensor.is_inference() else tensor._version
