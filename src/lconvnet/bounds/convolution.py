"""Upper bounds for ``nn.Conv2d``, alone or behind its circular padding, and ``nn.ConvTranspose2d``.

- Zero padding of any amount is a restriction of the unbounded convolution: norm <= sup_w |K_hat(w)|. Where the size is
  known it is one of the convolution on any torus that holds the image with its zeros: norm <= the maximum over the
  frequencies of that.
- Circular padding of at most k - 1 pixels an axis in total keeps a subset of the outputs of the convolution
  on the torus.
- A stride keeps a subset of the outputs; the polyphase kernel is exact where the stride divides the image
  (always, under zero padding).
- Groups make the operator block diagonal: the maximum over the groups. Dilation only repeats the spectrum.
- A transposed convolution is the adjoint of the one with the same kernel; its padding crops the output.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from lconvnet import allowance
from lconvnet.bounds.types import Method, Operation
from lconvnet.ops import norm_bounds
from lconvnet.ops.circular import to_unshuffled
from lconvnet.ops.float64 import to_float64
from lconvnet.ops.norm_bounds import residual_bound

NEARLY_ORTHOGONAL = 1 + 1e-3
"""The residual certificate is taken as it is up to here; beyond, Gram iteration is tighter."""

EXACT_SIZE_LIMIT = 64 * 64
"""Up to this many frequencies each is visited; larger images use the grid, whose correction is small then."""

LONGEST = 64
"""Taps an axis up to which a kernel's own powers, and a grid fine enough for it, are affordable."""

SPREAD = 64
"""Bytes that an entry of a kernel with its zeros takes while it is bounded."""

WIDE = 64
"""From this many channels on, a coarser frequency grid keeps the bound affordable."""


def check_pairs(operation: Operation) -> None:
    """Raise ``ValueError`` unless stride, dilation and padding have a number for each axis."""
    conv = cast(nn.Conv2d | nn.ConvTranspose2d, operation.module)
    for name in ("stride", "dilation", "padding"):
        value = getattr(conv, name)
        if value not in ("same", "valid") and len(value) != 2:
            raise operation.refuse(f"has {name}={value!r}, which are not two numbers: build a new one")


def check_convolution(operation: Operation) -> None:
    """Raise ``ValueError`` unless a rule above covers the convolution and its padding."""
    check_pairs(operation)
    conv = cast(nn.Conv2d, operation.module)
    if conv.padding_mode not in ("zeros", "circular"):
        raise operation.refuse(
            f"has padding_mode={conv.padding_mode!r}, which repeats pixels and so increases the norm: use "
            "'zeros' or 'circular'"
        )
    if operation.padding is not None and any(own_padding(conv)):
        raise operation.refuse(
            f"has padding={conv.padding!r} behind a CircularPad2d: the border would be padded twice; use padding=0"
        )
    if not is_circular(operation):
        return
    for axis, total in zip(("height", "width"), circular_padding(operation), strict=True):
        reach = spread(conv)[0 if axis == "height" else 1]
        if total > reach:
            raise operation.refuse(
                f"has {total} pixels of circular padding along the {axis}: beyond dilation * (kernel_size - "
                f"1) = {reach} outputs are "
                "repeated and the norm grows; pad less"
            )


def own_padding(conv: nn.Conv2d) -> tuple[int, int]:
    """Pixels that the convolution itself adds, before and after together, along height and width."""
    if conv.padding == "same":
        return spread(conv)
    if conv.padding == "valid":
        return (0, 0)
    height, width = cast(tuple[int, int], conv.padding)
    return 2 * height, 2 * width


def spread(conv: nn.Conv2d) -> tuple[int, int]:
    """``dilation * (kernel_size - 1)`` along height and width, from the weight that is applied."""
    height, width = conv.weight.shape[2:]
    return conv.dilation[0] * (height - 1), conv.dilation[1] * (width - 1)


def is_circular(operation: Operation) -> bool:
    """Whether the convolution wraps around the border."""
    conv = cast(nn.Conv2d, operation.module)
    return operation.padding is not None or (conv.padding_mode == "circular" and any(own_padding(conv)))


def circular_padding(operation: Operation) -> tuple[int, int]:
    """Total circular padding along height and width."""
    if operation.padding is None:
        return own_padding(cast(nn.Conv2d, operation.module))
    left, right, top, bottom = operation.padding.padding
    return top + bottom, left + right


def stride_divides(operation: Operation) -> bool:
    """Whether the strided outputs sit regularly on the torus: False for a circular one whose stride does not
    divide a known image."""
    conv = cast(nn.Conv2d, operation.module)
    if not is_circular(operation) or operation.input_shape is None:
        return True
    return all(n % s == 0 for n, s in zip(operation.input_shape[-2:], conv.stride, strict=True))


def convolution_upper(operation: Operation, method: Method) -> tuple[float, str]:
    """An upper bound on the norm and the name of the method that gave it: the maximum over the groups."""
    conv = cast(nn.Conv2d, operation.module)
    stride = conv.stride if stride_divides(operation) else (1, 1)
    weight = to_float64(conv.weight, f"network module {operation.name!r}: weight")
    room = allowance.allowed(conv.weight.nbytes) if method == "auto" else math.inf
    blocks = (_block(group, conv, stride, _torus(operation), room) for group in weight.chunk(conv.groups))
    if method == "auto":
        return max(_smallest_bound(block) for block in blocks)
    return max(_spectrum(block, operation) for block in blocks), "spectrum"


def _spectrum(block: _Block, operation: Operation) -> float:
    if (block.size is None or not is_circular(operation)) and max(block.spread.shape[2:]) > 1:
        raise operation.refuse(
            "has no exact spectrum: method='spectrum' needs circular padding and input_shape; else use 'auto'"
        )
    return norm_bounds.spectrum_bound(block.spread, block.size or (1, 1))


def transposed_upper(operation: Operation, method: Method) -> tuple[float, str]:
    """An upper bound on the norm of a transposed convolution and the name of the method that gave it."""
    conv = cast(nn.ConvTranspose2d, operation.module)
    if method == "spectrum":
        raise operation.refuse("has no exact spectrum: a transposed convolution pads with zeros; use method='auto'")
    weight = to_float64(conv.weight, f"network module {operation.name!r}: weight")
    torus = None
    if operation.input_shape is not None:
        sides = zip(operation.input_shape[-2:], conv.stride, conv.dilation, weight.shape[2:], strict=True)
        torus = _multiple(((n - 1) * s + d * (k - 1) + 1 for n, s, d, k in sides), conv.stride)
    room = allowance.allowed(conv.weight.nbytes)
    return max(_smallest_bound(_block(group, conv, conv.stride, torus, room)) for group in weight.chunk(conv.groups))


def _torus(operation: Operation) -> tuple[int, int] | None:
    """Sides of a torus on which a convolution of an image of known size has at least its norm: the image where that
    wraps around, else the image with its zeros."""
    if operation.input_shape is None:
        return None
    height, width = operation.input_shape[-2:]
    if is_circular(operation):
        return height, width
    conv = cast(nn.Conv2d, operation.module)
    above_below, left_right = own_padding(conv)
    return _multiple((height + above_below, width + left_right), conv.stride)


def _multiple(sides: Iterable[int], stride: tuple[int, ...]) -> tuple[int, int]:
    """Rounded up to multiples of the stride."""
    height, width = (-(-n // s) * s for n, s in zip(sides, stride, strict=True))
    return height, width


@dataclass(frozen=True)
class _Block:
    """A stride-1 convolution with at least the norm of the original: ``kernel`` for any size, ``spread`` on
    the torus of ``size``."""

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
    """The convolution with its stride and dilation; without them, which has at least its norm, where the zeros that
    they put between the taps would take more than `room` bytes."""
    blocks = None if size is None else (size[0] // stride[0], size[1] // stride[1])
    reach = [d * (k - 1) + 1 for d, k in zip(conv.dilation, K.shape[2:], strict=True)]
    stride = tuple(map(min, stride, reach))  # beyond, the patches only lie further apart
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
    """An upper bound on the norm of a stride-1 convolution: on the torus of a size, or for every size and border."""
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
    """Frequencies an axis: the correction stays below 1 % for 3 x 3, below 0.3 % for narrow kernels."""
    return max(32 if min(K.shape[:2]) >= WIDE else 64, 16 * max(K.shape[-2:]))
