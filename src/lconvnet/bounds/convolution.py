"""Upper bounds for ``nn.Conv2d``, alone or after its circular padding, and ``nn.ConvTranspose2d``.

- With zero padding of any amount, the convolution is a restriction of the unbounded one: norm <= sup_w |K_hat(w)|. If
  the size is known, it is also a restriction of the convolution on any torus that holds the image with its zeros:
  norm <= the maximum over the frequencies of that torus.
- Circular padding of at most k - 1 pixels per axis in total keeps a subset of the outputs of the convolution on the
  torus.
- A stride keeps a subset of the outputs. The polyphase kernel is exact if the stride divides the image (always, under
  zero padding).
- Groups make the operator block diagonal: take the maximum over the groups. Dilation only repeats the spectrum.
- A transposed convolution is the adjoint of the convolution with the same kernel; its padding crops the output.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from lconvnet import allowance
from lconvnet.bounds.types import LayerBound, Method, ModuleCall
from lconvnet.ops import norm_bounds
from lconvnet.ops.circular import to_unshuffled
from lconvnet.ops.float64 import to_float64
from lconvnet.ops.norm_bounds import residual_bound

NEARLY_ORTHOGONAL = 1 + 1e-3
"""Residual bounds up to here are used directly; above, Gram iteration is tighter."""

EXACT_SIZE_LIMIT = 64 * 64
"""Up to this many frequencies, each is visited. Larger images use the grid, whose correction is then small."""

LONGEST = 64
"""Taps per axis up to which self-correlations of a kernel, and a fine enough grid, are affordable."""

SPREAD = 64
"""Bytes that the bound takes per entry of a kernel with its zeros."""

WIDE = 64
"""Channels from which a coarser frequency grid keeps the bound affordable."""


def check_pairs(call: ModuleCall) -> None:
    """Raise ``ValueError`` unless stride, dilation and padding are pairs."""
    conv = cast(nn.Conv2d | nn.ConvTranspose2d, call.module)
    for name in ("stride", "dilation", "padding"):
        value = getattr(conv, name)
        if value not in ("same", "valid") and len(value) != 2:
            raise call.refuse(f"has {name}={value!r}, expected a pair of numbers: build a new one")


def check_convolution(call: ModuleCall) -> None:
    """Raise ``ValueError`` unless a rule above covers the convolution and its padding."""
    check_pairs(call)
    conv = cast(nn.Conv2d, call.module)
    if conv.padding_mode not in ("zeros", "circular"):
        raise call.refuse(
            f"has padding_mode={conv.padding_mode!r}, which repeats pixels and so increases the norm: use "
            "'zeros' or 'circular'"
        )
    if call.padding is not None and any(own_padding(conv)):
        raise call.refuse(
            f"has padding={conv.padding!r} behind a CircularPad2d: the border would be padded twice; use padding=0"
        )
    if not is_circular(call):
        return
    for axis, total, reach in zip(("height", "width"), _circular_padding(call), spread(conv), strict=True):
        if total > reach:
            raise call.refuse(
                f"has {total} pixels of circular padding along the {axis}: beyond dilation * (kernel_size - 1) = "
                f"{reach} outputs are repeated and the norm grows; pad less"
            )


def own_padding(conv: nn.Conv2d) -> tuple[int, int]:
    """Pixels that the convolution itself adds along height and width, before and after together."""
    if conv.padding == "same":
        return spread(conv)
    if conv.padding == "valid":
        return (0, 0)
    height, width = cast(tuple[int, int], conv.padding)
    return 2 * height, 2 * width


def spread(conv: nn.Conv2d) -> tuple[int, int]:
    """``dilation * (kernel_size - 1)`` along height and width, with the size of the actual weight."""
    height, width = conv.weight.shape[2:]
    return conv.dilation[0] * (height - 1), conv.dilation[1] * (width - 1)


def is_circular(call: ModuleCall) -> bool:
    """Whether the convolution wraps around the border."""
    conv = cast(nn.Conv2d, call.module)
    return call.padding is not None or (conv.padding_mode == "circular" and any(own_padding(conv)))


def _circular_padding(call: ModuleCall) -> tuple[int, int]:
    """Total circular padding along height and width."""
    if call.padding is None:
        return own_padding(cast(nn.Conv2d, call.module))
    left, right, top, bottom = call.padding.padding
    return top + bottom, left + right


def stride_divides(call: ModuleCall) -> bool:
    """Whether the strided outputs sit regularly on the torus: False for a circular convolution whose stride does not
    divide a known image."""
    conv = cast(nn.Conv2d, call.module)
    if not is_circular(call) or call.input_shape is None:
        return True
    return all(n % s == 0 for n, s in zip(call.input_shape[-2:], conv.stride, strict=True))


def convolution(call: ModuleCall, method: Method) -> LayerBound:
    """The maximum over the groups."""
    conv = cast(nn.Conv2d, call.module)
    stride = conv.stride if stride_divides(call) else (1, 1)
    weight = to_float64(conv.weight, f"network module {call.name!r}: weight")
    room = allowance.allowed(conv.weight.nbytes) if method == "auto" else math.inf
    blocks = (_block(group, conv, stride, _torus(call), room) for group in weight.chunk(conv.groups))
    if method == "spectrum":
        return LayerBound(call.name, max(_spectrum(block, call) for block in blocks), None, "spectrum")
    return _largest(call, blocks)


def _largest(call: ModuleCall, blocks: Iterable[_Block]) -> LayerBound:
    upper, name = max(map(_smallest_bound, blocks))
    return LayerBound(call.name, upper, None, name)


def _spectrum(block: _Block, call: ModuleCall) -> float:
    if (block.size is None or not is_circular(call)) and max(block.spread.shape[2:]) > 1:
        raise call.refuse(
            "has no exact spectrum: method='spectrum' needs circular padding and input_shape; else use 'auto'"
        )
    return norm_bounds.spectrum_bound(block.spread, block.size or (1, 1))


def transposed(call: ModuleCall, method: Method) -> LayerBound:
    """The maximum over the groups of the adjoint of a convolution."""
    conv = cast(nn.ConvTranspose2d, call.module)
    if method == "spectrum":
        raise call.refuse("has no exact spectrum: a transposed convolution pads with zeros; use method='auto'")
    weight = to_float64(conv.weight, f"network module {call.name!r}: weight")
    torus = None
    if call.input_shape is not None:
        sides = zip(call.input_shape[-2:], conv.stride, conv.dilation, weight.shape[2:], strict=True)
        torus = _multiple(((n - 1) * s + d * (k - 1) + 1 for n, s, d, k in sides), conv.stride)
    room = allowance.allowed(conv.weight.nbytes)
    return _largest(call, (_block(group, conv, conv.stride, torus, room) for group in weight.chunk(conv.groups)))


def _torus(call: ModuleCall) -> tuple[int, int] | None:
    """Sides of a torus on which the convolution has at least its norm at the known size: those of the image if it wraps
    around, else those of the image with its zeros."""
    if call.input_shape is None:
        return None
    height, width = call.input_shape[-2:]
    if is_circular(call):
        return height, width
    conv = cast(nn.Conv2d, call.module)
    above_below, left_right = own_padding(conv)
    return _multiple((height + above_below, width + left_right), conv.stride)


def _multiple(sides: Iterable[int], stride: tuple[int, ...]) -> tuple[int, int]:
    height, width = (-(-n // s) * s for n, s in zip(sides, stride, strict=True))
    return height, width


@dataclass(frozen=True)
class _Block:
    """A stride-1 convolution with at least the norm of the original: by ``kernel`` at any size, by ``spread`` on the
    torus of ``size``."""

    kernel: Tensor
    spread: Tensor
    size: tuple[int, int] | None


def _block(
    K: Tensor,
    conv: nn.Conv2d | nn.ConvTranspose2d,
    stride: tuple[int, ...],
    size: tuple[int, int] | None,
    room: float,
) -> _Block:
    """The convolution with its stride and dilation. If their zeros between the taps would take more than `room` bytes,
    the convolution without them, whose norm is at least as large."""
    blocks = None if size is None else (size[0] // stride[0], size[1] // stride[1])
    reach = [d * (k - 1) + 1 for d, k in zip(conv.dilation, K.shape[2:], strict=True)]
    stride = tuple(map(min, stride, reach))  # a larger stride only moves the patches further apart
    sides = [-(-r // s) * s for r, s in zip(reach, stride, strict=True)]
    if SPREAD * K.shape[0] * K.shape[1] * math.prod(sides) > room:
        return _Block(K, K, None)
    dilated = dilate(K, cast(tuple[int, int], conv.dilation))
    if max(stride) > 1:
        K = dilated = to_unshuffled(dilated, (stride[0], stride[1]))
    return _Block(K, dilated, blocks)


def dilate(K: Tensor, dilation: tuple[int, int]) -> Tensor:
    """Put dilation - 1 zeros between the taps."""
    height, width = ((k - 1) * d + 1 for k, d in zip(K.shape[-2:], dilation, strict=True))
    dilated = K.new_zeros(*K.shape[:2], height, width)
    dilated[:, :, :: dilation[0], :: dilation[1]] = K
    return dilated


def kernel_bound(K: Tensor, torus: tuple[int, int] | None) -> float:
    """An upper bound on the norm of a stride-1 convolution, on the given torus or for every size and border."""
    return _smallest_bound(_Block(K, K, torus))[0]


def _smallest_bound(block: _Block) -> tuple[float, str]:
    residual = residual_bound(block.kernel)
    if residual <= NEARLY_ORTHOGONAL:
        return residual, "residual"
    candidates = [(residual, "residual"), (norm_bounds.unfolding_bound(block.kernel), "unfolding")]
    if block.size is not None and block.size[0] * block.size[1] <= EXACT_SIZE_LIMIT:
        candidates.append((norm_bounds.circular_bound(block.spread, block.size), "gram"))
    elif max(block.kernel.shape[2:]) <= LONGEST:
        candidates.append((norm_bounds.grid_bound(block.kernel, grid=_grid(block.kernel)), "gram-grid"))
    if max(block.kernel.shape[2:]) <= LONGEST:
        candidates.append((norm_bounds.kernel_space_bound(block.kernel), "gram-kernel"))
    return min(candidates)


def _grid(K: Tensor) -> int:
    """Frequencies per axis: the correction stays below 1 % for 3 x 3, below 0.3 % for narrow kernels."""
    return max(32 if min(K.shape[:2]) >= WIDE else 64, 16 * max(K.shape[-2:]))
