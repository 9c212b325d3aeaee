"""Checks of images, labels and radii before anything is claimed about them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from operator import index

import torch
from torch import Tensor

LEAST_SIDE = 8  # of an image; smaller ones may be features


def check_images(images: Tensor) -> Tensor:
    """Return the images: floats in [0, 1], shape ``(B, ...)``, no NaN. ValueError says what is wrong.

    >>> check_images(torch.zeros(2, 1, 4, 4)).shape
    torch.Size([2, 1, 4, 4])
    >>> check_images(torch.tensor([[0.5, float("nan")]]))
    Traceback (most recent call last):
    ValueError: images holds NaN in 1 of 1 images: remove them, or repair the pixels
    """
    if not isinstance(images, Tensor):
        raise ValueError(f"images is a {type(images).__name__}: pass a torch tensor (B, C, H, W) with values in [0, 1]")
    if images.is_meta or images.layout != torch.strided:
        what = "on the meta device" if images.is_meta else f"a tensor of layout {images.layout}"
        raise ValueError(f"images is {what}: pass a dense tensor with numbers")
    if not images.is_floating_point():
        raise ValueError(
            f"images has dtype {images.dtype}: pass floats in [0, 1]; for uint8 pixels, images.float() / 255"
        )
    if images.ndim < 2:
        raise ValueError(
            f"images has shape {tuple(images.shape)}: expected a batch (B, C, H, W); for one image, images[None]"
        )
    if channels_last(images.shape) and images.shape[3] > 1:  # one grey channel has the same pixels in the same order
        raise ValueError(
            f"images has shape {tuple(images.shape)}, channels last: expected (B, C, H, W), images.permute(0, 3, 1, 2)"
        )
    if images.numel():
        _check_range(images.flatten(1))
    return images


def channels_last(shape: Sequence[int]) -> bool:
    """Whether a shape can only mean `(B, H, W, C)`; dense layers would read its pixels in the wrong order.

    >>> channels_last((8, 32, 32, 3)), channels_last((8, 3, 32, 32)), channels_last((8, 64, 3, 3))
    (True, False, False)
    """
    return len(shape) == 4 and shape[3] in (1, 3) and shape[1] not in (1, 3) and min(shape[1:3]) >= LEAST_SIDE


def check_labels(labels: Tensor, images: int) -> Tensor:
    """Return the labels: one integer class per image. ValueError says what is wrong.

    >>> check_labels(torch.tensor([3, 1]), 2).tolist()
    [3, 1]
    """
    if not isinstance(labels, Tensor):
        raise ValueError(
            f"labels is a {type(labels).__name__}: pass a torch tensor of integers, torch.as_tensor(labels)"
        )
    if labels.dtype == torch.bool or labels.is_floating_point() or labels.shape != (images,):
        raise ValueError(
            f"labels has shape {tuple(labels.shape)} and dtype {labels.dtype}: expected ({images},) "
            "integers, one class for each image (of one-hot rows, labels.argmax(1))"
        )
    if bool((labels < 0).any()):
        raise ValueError(f"labels has the class {int(labels.min())}: classes count from 0")
    return labels.long()


def check_eps(eps: float) -> float:
    """Return the l2 radius as a float. Refuses NaN, infinity, negative numbers and anything but one number.

    >>> check_eps(1)
    1.0
    >>> check_eps("0.1")
    Traceback (most recent call last):
    ValueError: eps='0.1' must be a finite l2 radius, a number of at least 0, over pixels in [0, 1]
    """
    if not is_finite_number(eps) or eps < 0:
        raise ValueError(f"eps={eps!r} must be a finite l2 radius, a number of at least 0, over pixels in [0, 1]")
    return float(eps)


def is_finite_number(value: object) -> bool:
    """Whether this is one finite real number: a Python or NumPy number or a one-element tensor, but not text.

    >>> [is_finite_number(value) for value in (1, torch.tensor(0.5), "0.5", None, True, math.inf)]
    [True, True, False, False, False, False]
    """
    if not isinstance(value, Real | Tensor) or isinstance(value, bool):
        return False
    try:
        return (not isinstance(value, Tensor) or value.numel() == 1) and math.isfinite(value)
    except OverflowError:  # an integer beyond the range of floats
        return False


def checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of one input as a tuple of positive integers; ValueError for anything else.

    >>> checked_shape([3, 8, 8])
    (3, 8, 8)
    """
    try:
        sizes = tuple(shape)
        positive = all(not isinstance(n, bool) and index(n) > 0 for n in sizes)
    except TypeError:
        sizes, positive = (), False
    if not sizes or not positive:
        raise ValueError(
            f"input_shape={shape!r} must hold positive integers, such as (channels, height, width), without the batch"
        )
    return tuple(map(index, sizes))


def _check_range(flat: Tensor) -> None:
    low, high = (float(end) for end in flat.detach().aminmax())
    if math.isnan(low):
        bad = int(flat.isnan().any(dim=1).sum())
        raise ValueError(f"images holds NaN in {bad} of {len(flat)} images: remove them, or repair the pixels")
    if low < 0 or high > 1:
        raise ValueError(
            f"images has values from {low:g} to {high:g}: radii are measured over pixels in [0, 1], so put any "
            "normalisation inside the network"
        )
