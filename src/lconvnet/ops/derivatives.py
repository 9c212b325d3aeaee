"""Hand-written gradients as shortcuts, which only plain calls take.

A function made of PyTorch's own operations can be differentiated again, forwards and in batches, and can be traced. A
hand-written gradient is faster, but serves one plain gradient only. So each one has such a function beside it, which
takes over if more may be asked for: no transform sees the shortcut.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def plain_call(*tensors: Tensor | None) -> bool:
    """Whether no transform of ``torch.func``, no derivative in forward mode, no trace and no export sees these.

    A compiler follows hand-written gradients, so it gets them; an exported program would lose them.

    >>> x = torch.ones(2)
    >>> plain_call(x), torch.func.vmap(lambda row: row + plain_call(row))(x).tolist()
    (True, [1.0, 1.0])
    """
    if torch.compiler.is_compiling():
        return not torch.compiler.is_exporting()
    recording = torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack() > 0  # the latter as by make_fx
    if recording or torch._C._are_functorch_transforms_active():
        return False
    return not any(t is not None and _watched(t) for t in tensors)


def _watched(tensor: Tensor) -> bool:
    """Whether a tensor carries a tangent, or is a batch of ``torch.autograd.grad(is_grads_batched=True)``."""
    batch = torch._C._functorch.is_legacy_batchedtensor(tensor)  # pyright: ignore[reportAttributeAccessIssue]
    return batch or forward_ad.unpack_dual(tensor).tangent is not None


def gradient_of(function: Callable[..., Tensor]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a hand-written ``backward`` that of ``function``, which takes over if the gradient is not a plain one.

    The saved tensors must begin with the inputs that are tensors; other inputs come last, as ``ctx.constants``.
    Autocast is off: `backward` may be called inside a region of it, and a compiler calls it in that of the forward pass
    (`torch.amp.custom_bwd` is for one device type).
    """

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(backward)
        def gradient(ctx: Any, grad: Tensor) -> Any:
            with torch.autocast(grad.device.type, enabled=False):
                if torch.compiler.is_compiling() or (plain_call(grad) and not torch.is_grad_enabled()):
                    return backward(ctx, grad)
                constants = getattr(ctx, "constants", ())
                inputs = ctx.saved_tensors[: len(ctx.needs_input_grad) - len(constants)]
                gradients = torch.func.vjp(lambda *tensors: function(*tensors, *constants), *inputs)[1](grad)
                return *gradients, *(None for _ in constants)

        return gradient

    return decorate
