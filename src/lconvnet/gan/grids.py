"""Pictures of many images in one: rows and columns on a PNG."""

from __future__ import annotations

import io
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lconvnet.extras import require

GAP = 2  # pixels between two images


def grid(images: Tensor, columns: int | None = None) -> Tensor:
    """Images ``(N, C, H, W)`` in [0, 1] as one uint8 picture ``(height, width, C)``, row by row, nearly square.

    Black gaps of 2 pixels lie between them; places without an image are black. Raises `ValueError` for another shape.

    >>> grid(torch.ones(3, 1, 4, 4)).shape
    torch.Size([10, 10, 1])
    """
    if images.ndim != 4 or not len(images) or images.shape[1] not in (1, 3):
        raise ValueError(f"images of shape {tuple(images.shape)}: expected (N, 1 or 3, H, W) with at least one image")
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = -(-len(images) // columns)
    pixels = images.detach().cpu().float().clamp(0, 1).mul(255).round().to(torch.uint8)
    cells = F.pad(pixels, (0, GAP, 0, GAP, 0, 0, 0, rows * columns - len(images)))
    whole = cells.unflatten(0, (rows, columns)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    return whole[:-GAP, :-GAP]


def png(picture: Tensor) -> bytes:
    """A uint8 picture ``(height, width, C)`` as the bytes of a PNG (extra `data`), a function of the picture."""
    array = picture.numpy()
    image = require("PIL.Image", "data").fromarray(array if array.shape[2] == 3 else array[..., 0])
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
