"""What a module computes with besides its tensors."""

from __future__ import annotations

from typing import Any

from torch import nn

UNREADABLE = object()


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """All public attributes that are numbers, strings, or lists of them, as JSON has them; not the mode.

    >>> from lconvnet.layers import GroupSort
    >>> plain_attributes(GroupSort(2))
    {'group_size': 2, 'dim': 1}
    """
    held = {name: _plain(value) for name, value in vars(module).items() if not name.startswith("_")}
    return {name: value for name, value in held.items() if value is not UNREADABLE and name != "training"}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        entries = [_plain(entry) for entry in value]
        return UNREADABLE if any(entry is UNREADABLE for entry in entries) else entries
    return UNREADABLE
