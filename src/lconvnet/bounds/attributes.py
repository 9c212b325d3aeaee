"""What a module computes with, whether its constructor gives it the same, and what ties a bound to its network."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from inspect import signature
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from lconvnet.bounds.types import Trace

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
    """The same of attributes whose names begin with an underscore, without those that every module has.

    >>> private_attributes(nn.ReLU())
    {}
    """
    held = {name: _plain(value) for name, value in vars(module).items() if name.startswith("_")}
    common = vars(nn.Module())
    return {name: value for name, value in held.items() if value is not UNREADABLE and name not in common}


def fault(module: nn.Module) -> str:
    """How a module of torch's or ours differs from a new one whose arguments are its attributes; empty if it does not.
    A rule that knows the constructor then knows the module.

    >>> pad = nn.ZeroPad2d(1)
    >>> pad.value = 0.5
    >>> fault(pad)
    'has value=0.5, where a new one with its arguments has 0.0'
    """
    try:
        with torch.device("meta"):  # neither memory nor random numbers
            new = type(module)(**arguments(module, _parameters(type(module))))
    except (ValueError, TypeError, RuntimeError, OverflowError, AttributeError) as error:
        return f"has attributes that its constructor refuses ({_line(error)})"
    if found := difference(module, new):
        name, value, wanted = found
        return f"has {name}={value}, where a new one with its arguments has {wanted}"
    return ""


def arguments(module: nn.Module, names: Iterable[str]) -> dict[str, Any]:
    """Arguments of the constructor, each kept under its name; of a bias that is a tensor, whether there is one."""
    held = {name: getattr(module, name) for name in names}
    asked = isinstance(held.get("bias", True), bool)
    return {name: value is not None if name == "bias" and not asked else value for name, value in held.items()}


def _parameters(kind: type[nn.Module]) -> list[str]:
    named = [name for name, p in signature(kind).parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    return [name for name in named if name not in ("device", "dtype")]


def difference(module: nn.Module, other: nn.Module) -> tuple[str, str, str] | None:
    """The first attribute or tensor that two modules of one class do not share, the bytes of tensors aside: its name
    and what it is in each. An attribute that only the first has counts if it hides one of the class.

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


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by their names, as modules hold them: hooks may write others into a ``state_dict``."""
    return dict(chain(network.named_parameters(remove_duplicate=False), network.named_buffers(remove_duplicate=False)))


def version(tensor: Tensor) -> int | None:
    """Counts the changes of a tensor in place; None if torch does not (inference mode)."""
    return None if tensor.is_inference() else tensor._version


def fingerprint(network: nn.Module) -> str:
    """SHA-256 of all that a network computes with: its modules as printed, the class and the plain attributes of each,
    and the name, dtype, shape and bytes of each parameter and buffer. The code of a forward pass is not part of it.

    The same for a copy, on any device and in any mode; another one after a change in place or of dtype.

    >>> from lconvnet.layers import Scale
    >>> fingerprint(Scale(2.0)) == fingerprint(Scale(2.0)), fingerprint(Scale(2.0)) == fingerprint(Scale(3.0))
    (True, False)
    """
    digest = sha256(repr(network).encode())
    for name, module in network.named_modules(remove_duplicate=False):
        kind = type(module)
        digest.update(repr((name, kind.__module__, kind.__qualname__, plain_attributes(module))).encode())
    for name, tensor in tensors_of(network).items():
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def program(traced: Trace) -> str:
    """SHA-256 of what was read of a forward pass: the graph with its numbers, wherever these are kept, and the private
    plain attributes of the modules. The bytes of tensors are no part of it.

    >>> from lconvnet.bounds import trace
    >>> program(trace(nn.ReLU())) == program(trace(nn.ReLU())) != program(trace(nn.Flatten()))
    True
    """
    held = {name: private_attributes(call.module) for name, call in traced.calls.items()}
    return sha256(repr((traced.graph.to_json(), held)).encode()).hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    """The values as they lie in memory, of whatever dtype: numpy has no bfloat16."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
