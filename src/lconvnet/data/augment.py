"""Random crops and mirrors of a whole batch at once."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from lconvnet.data.errors import DataError
from lconvnet.ops.images import channels_last


def crop_and_flip(x: Tensor, *, padding: int = 4, generator: torch.Generator) -> Tensor:
    """Pad every image with zeros, crop it back at a random place, mirror it left-right with probability 1/2.

    `x` is `(B, C, H, W)`, float or uint8, on any device; so is the result. Each image draws its own offset
    from the `(2 padding + 1)^2` places, uniformly, and its own mirror. The draws, in this order, all from
    `generator`: rows `(B,)` and columns `(B,)` as one `(2, B)` draw, then mirrors `(B,)`. Raises `DataError`
    (a `ValueError`) for another number of dimensions or a negative padding.

    >>> x = torch.arange(4.0).reshape(1, 1, 2, 2)
    >>> crop_and_flip(x, padding=1, generator=torch.Generator().manual_seed(0)).tolist()
    [[[[2.0, 0.0], [0.0, 0.0]]]]
    """
    if not isinstance(x, Tensor):
        raise DataError(f"x is a {type(x).__name__}: pass a tensor (B, C, H, W), torch.as_tensor(x)")
    if channels_last(x.shape):
        raise DataError(f"x has shape {tuple(x.shape)}, channels last: expected (B, C, H, W), x.permute(0, 3, 1, 2)")
    if x.ndim != 4:
        raise DataError(f"x must be a batch (B, C, H, W), got shape {tuple(x.shape)}: add a batch dimension")
    if isinstance(padding, bool) or not isinstance(padding, int) or padding < 0:
        raise DataError(f"padding must be an integer of at least 0, got {padding!r}")
    count, channels, height, width = x.shape
    offsets = torch.randint(0, 2 * padding + 1, (2, count), generator=generator, device=generator.device)
    mirrored = torch.randint(0, 2, (count, 1), generator=generator, device=generator.device).to(x.device)
    stride = width + 2 * padding
    start = (offsets[0] * stride + offsets[1]).to(x.device)
    places = _pixels(height, width, stride, x.device).index_select(0, mirrored.flatten()).add_(start[:, None])
    flat = places[:, None].expand(-1, channels, -1)
    return F.pad(x, (padding,) * 4).flatten(2).gather(2, flat).reshape(x.shape)


@lru_cache(maxsize=8)
def _pixels(height: int, width: int, stride: int, device: torch.device) -> Tensor:
    """Where the pixels of a crop lie in rows of length `stride`, and those of a mirrored one: `(2, height width)`."""
    rows = torch.arange(height, device=device)[:, None] * stride
    straight = rows + torch.arange(width, device=device)
    return torch.stack([straight, straight.flip(1)]).flatten(1)
