"""The attributes of a module, whether its constructor restores them, and the hashes that tie a bound to its network."""

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
    """All public attributes that are numbers, strings or lists of them, in JSON form, without the training mode.

    >>> from lconvnet.layers import GroupSort
    >>> plain_attributes(GroupSort(2))
    {'group_size': 2, 'dim': 1}
    """
    held = {name: _plain(value) for name, value in vars(module).items() if not name.startswith("_")}
    return {name: value for name, value in held.items() if value is not UNREADABLE and name != "training"}


def private_attributes(module: nn.Module) -> dict[str, Any]:
    """As `plain_attributes`, for names with a leading underscore, without those that every module has.

    >>> private_attributes(nn.ReLU())
    {}
    """
    held = {name: _plain(value) for name, value in vars(module).items() if name.startswith("_")}
    common = vars(nn.Module())
    return {name: value for name, value in held.items() if value is not UNREADABLE and name not in common}


def fault(module: nn.Module) -> str:
    """How a module of torch or lconvnet differs from a new one built from its attributes; empty if it does not.

    If it does not differ, a rule that knows the constructor knows the module.

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
    """Arguments of the constructor, from the attributes of the same names; for a bias tensor, whether there is one."""
    held = {name: getattr(module, name) for name in names}
    is_tensor = "bias" in module._parameters
    return {name: value is not None if name == "bias" and is_tensor else value for name, value in held.items()}


def _parameters(kind: type[nn.Module]) -> list[str]:
    named = [name for name, p in signature(kind).parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    return [name for name in named if name not in ("device", "dtype")]


def difference(module: nn.Module, other: nn.Module) -> tuple[str, str, str] | None:
    """The first attribute or tensor in which two modules of one class differ: its name, and what each module has.

    The bytes of tensors do not count. An attribute that only the first module has counts if it hides one of the class.

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
    """Attributes in JSON form, and a description of each tensor."""
    common, tensors = vars(nn.Module()), {**module._parameters, **module._buffers}
    held = {name: _plain(value) for name, value in vars(module).items() if name not in common}
    return held | {name: tensor if tensor is None else _form(tensor) for name, tensor in tensors.items()}


def _form(tensor: Tensor) -> str:
    """The shape of a tensor, and its dtype if that is not a float."""
    return f"a tensor of shape {tuple(tensor.shape)}" + ("" if tensor.is_floating_point() else f", {tensor.dtype}")


def _said(module: nn.Module, name: str) -> str:
    return _line(getattr(module, name)) if hasattr(module, name) else "nothing"


def _line(value: Any) -> str:
    """A value or an error as one short line."""
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
    """All parameters and buffers by name, as modules hold them; hooks may write others into a ``state_dict``."""
    return dict(chain(network.named_parameters(remove_duplicate=False), network.named_buffers(remove_duplicate=False)))


def version(tensor: Tensor) -> int | None:
    """The number of in-place changes of a tensor; None if torch does not count them (inference mode)."""
    return None if tensor.is_inference() else tensor._version


MOVED = {
    **dict.fromkeys(("Sum", "Concat"), "lconvnet.layers.branches"),
    "Normalize": "lconvnet.layers.normalization",
    **dict.fromkeys(
        ("InvertibleDownsampling", "InvertibleUpsampling", "NearestUpsampling", "NormPool", "Scale"),
        "lconvnet.layers.resampling",
    ),
}
"""A fingerprint names a class by the module that it was first in, so that a move does not change it."""


def fingerprint(network: nn.Module) -> str:
    """SHA-256 of a network: its printed modules, the class and plain attributes of each, and the name, dtype, shape and
    bytes of each parameter and buffer. The code of a forward pass is not part of it.

    A copy has the same fingerprint, on any device and in any mode. A change in place or of dtype changes it.

    >>> from lconvnet.layers import Scale
    >>> fingerprint(Scale(2.0)) == fingerprint(Scale(2.0)), fingerprint(Scale(2.0)) == fingerprint(Scale(3.0))
    (True, False)
    """
    digest = sha256(repr(network).encode())
    for name, module in network.named_modules(remove_duplicate=False):
        kind = type(module)
        place = MOVED.get(kind.__qualname__, "") if kind.__module__ == "lconvnet.layers.fixed" else kind.__module__
        digest.update(repr((name, place, kind.__qualname__, plain_attributes(module))).encode())
    for name, tensor in tensors_of(network).items():
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def program(traced: Trace) -> str:
    """SHA-256 of a traced forward pass: the graph with its numbers, and the private plain attributes of the modules.
    The bytes of tensors are not part of it.

    >>> from lconvnet.bounds import trace
    >>> program(trace(nn.ReLU())) == program(trace(nn.ReLU())) != program(trace(nn.Flatten()))
    True
    """
    held = {name: private_attributes(call.module) for name, call in traced.calls.items()}
    return sha256(repr((traced.graph.to_json(), held)).encode()).hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    """The raw bytes of a tensor of any dtype; numpy does not have bfloat16."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
