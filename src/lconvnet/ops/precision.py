"""Gradients of factorisations stay in the precision of their forward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor


def without_autocast(backward: Callable[..., Any]) -> Callable[..., Any]:
    """The ``backward`` of an autograd function with autocast off: it may be called inside a region of autocast, and a
    compiler calls it in that of the forward pass. `torch.amp.custom_bwd` would be for one type of device."""

    @wraps(backward)
    def in_full_precision(ctx: Any, grad: Tensor) -> Any:
        with torch.autocast(grad.device.type, enabled=False):
            return backward(ctx, grad)

    return in_full_precision
