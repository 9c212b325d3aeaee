"""What a module computes with besides its tensors, and whether those have changed."""

from __future__ import annotations

from typing import Any

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
