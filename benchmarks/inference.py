"""Rows about evaluation: baked and un-baked networks, and certification."""

import torch

from benchmarks.images import mnist_images
from benchmarks.networks import LARGE, OURS, PLAIN, SMALL
from benchmarks.report import Measured
from benchmarks.timing import Effort, compare
from lconvnet import bake, certify

BATCH = 128
CERTIFY_BATCH = 512
CERTIFIED = 10_000
EPS = 1.58


def baked_inference(effort: Effort, device: str = "cpu") -> Measured:
    """The baked Large network against plain layers of the same shapes and paddings with random weights."""
    baked = bake(LARGE.network(OURS, device))
    plain = LARGE.network(PLAIN, device).eval().requires_grad_(False)
    images, _ = LARGE.batch(BATCH, device)
    with torch.inference_mode():
        ours, other = compare([lambda: baked(images), lambda: plain(images)], effort)
    return Measured(ours, other, "s per batch", f"batch {BATCH}, inference mode, beside a plain nn.Sequential")


def unbaked_eval(effort: Effort, device: str = "cpu") -> Measured:
    """The un-baked Large network, which evaluates its kernels for every batch, against the baked one."""
    model = LARGE.network(OURS, device).eval()
    baked = bake(model)
    images, _ = LARGE.batch(BATCH, device)
    with torch.no_grad():
        ours, other = compare([lambda: model(images), lambda: baked(images)], effort)
    return Measured(ours, other, "s per batch", f"batch {BATCH}, no_grad, beside the baked network")


def certify_over_forward(effort: Effort, device: str = "cpu") -> Measured:
    """Baking, bounding and certifying at one radius against the float32 forward pass of the baked network.

    `certify` computes the upper bound itself; lower bounds by power iteration certify nothing and are not asked for.
    """
    model = SMALL.network(OURS, device)
    baked = bake(model)
    images, note = mnist_images(CERTIFIED)
    images = images.to(device)

    def certified() -> None:
        certify(bake(model), images, eps=(EPS,), batch_size=CERTIFY_BATCH)

    def forward() -> None:
        with torch.no_grad():
            for chunk in images.split(CERTIFY_BATCH):
                baked(chunk)

    ours, other = compare([certified, forward], effort)
    return Measured(ours, other, "s", f"{len(images):,} {note}, beside the baked network's forward pass")
