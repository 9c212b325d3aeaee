"""Hand-written gradients as shortcuts for plain calls.

A function of PyTorch's own operations can be differentiated twice, in forward mode and in batches, and can be traced. A
hand-written gradient is faster but gives only one plain gradient. So each has such a function beside it, which takes
over if the caller may need more: no transform sees the shortcut.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def plain_call(*tensors: Tensor | None) -> bool:
    """Whether the tensors are free of ``torch.func`` transforms, forward-mode derivatives, traces and exports.

    A compiler keeps hand-written gradients, so it may use them; an exported program would lose them.

    >>> x = torch.ones(2)
    >>> plain_call(x), torch.func.vmap(lambda row: row + plain_call(row))(x).tolist()
    (True, [1.0, 1.0])
    """
    if torch.compiler.is_compiling():
        return not torch.compiler.is_exporting()
    recording = torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack() > 0  # make_fx does the latter
    if recording or torch._C._are_functorch_transforms_active():
        return False
    return not any(t is not None and _watched(t) for t in tensors)


def _watched(tensor: Tensor) -> bool:
    """Whether a tensor carries a tangent, or is a batch of ``torch.autograd.grad(is_grads_batched=True)``."""
    batch = torch._C._functorch.is_legacy_batchedtensor(tensor)  # pyright: ignore[reportAttributeAccessIssue]
    return batch or forward_ad.unpack_dual(tensor).tangent is not None


def gradient_of(function: Callable[..., Tensor]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a hand-written ``backward`` of ``function``; ``function`` takes over if the gradient is not a plain one.

    The saved tensors must begin with the tensor inputs; other inputs come last, as ``ctx.constants``. Autocast is off:
    `backward` may run inside an autocast region, and a compiler runs it in the region of the forward pass.
    (`torch.amp.custom_bwd` serves one device type only.)
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
