"""What is refused before anything is claimed about it."""

import math

import numpy as np
import pytest
import torch

from lconvnet.baking import bake
from lconvnet.certify import certify
from lconvnet.models import mlp
from lconvnet.ops.images import check_eps, check_images, check_labels


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((2, 1, 2, 2), math.nan), "NaN in 2 of 2 images"),
        (torch.full((2, 1, 2, 2), math.inf), "values from inf"),
        (torch.full((2, 1, 2, 2), 1.5), r"from 1.5 to 1.5.*\[0, 1\]"),
        (torch.full((2, 1, 2, 2), -0.1), "from -0.1"),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), "uint8.*255"),
        (torch.zeros(2), r"shape \(2,\)"),
        (np.zeros((2, 1, 2, 2)), "ndarray"),
    ],
)
def test_images(images, message):
    with pytest.raises(ValueError, match=message):
        check_images(images)


@pytest.mark.parametrize("labels", [torch.zeros(3).long(), torch.zeros(2), torch.zeros(2, 1).long()])
def test_labels(labels):
    with pytest.raises(ValueError, match=r"expected \(2,\) integers"):
        check_labels(labels, 2)


@pytest.mark.parametrize("eps", [-0.1, math.nan, math.inf, "0.1", None, b"1", 1j, [0.1], torch.ones(2)])
def test_eps(eps):
    with pytest.raises(ValueError, match="eps="):
        check_eps(eps)


def test_good_ones_pass():
    assert check_images(torch.rand(2, 3)).shape == (2, 3)
    assert check_images(torch.zeros(0, 1, 2, 2)).shape == (0, 1, 2, 2)
    assert check_labels(torch.tensor([1, 2], dtype=torch.int32), 2).dtype == torch.int64


def test_channels_last_are_other_pixels():
    """A network of dense layers would take them, and answer about another image."""
    network = mlp(3 * 8 * 8, 4, widths=(8,))
    images = torch.rand(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"images has shape \(2, 8, 8, 3\), channels last: .*images.permute"):
        certify(bake(network), images.permute(0, 2, 3, 1))
    assert len(certify(bake(network), images)) == 2
    assert check_images(torch.rand(2, 8, 64, 1)).shape == (2, 8, 64, 1)  # eight signals, or grey pixels in their order
    with pytest.raises(ValueError, match=r"one image \(C, H, W\) is images\[None\]"):
        certify(bake(network), images[0])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], r"labels is a list: pass a torch tensor of integers"),
        (torch.eye(4)[:2], r"of one-hot rows, labels.argmax\(1\)"),
        (torch.tensor([0, -1]), "labels has the class -1: classes count from 0"),
    ],
)
def test_labels_say_what_to_type(labels, message):
    with pytest.raises(ValueError, match=message):
        check_labels(labels, 2)
