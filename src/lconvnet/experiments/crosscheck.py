"""*Certified and attacked can never both hold*: every attack is held against the certificates as it runs.

An image whose label is changed by a perturbation shorter than its certified radius stops the evaluation, after the
evidence has been written.
"""

from __future__ import annotations

import json
import logging
from copy import deepcopy
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor, nn

from lconvnet import atomic
from lconvnet.attacks import AttackResult, norms
from lconvnet.bounds import Bound

logger = logging.getLogger("lconvnet")


class ContradictionError(RuntimeError):
    """An attack succeeded inside a certified radius: an incident, never to be explained away."""


@dataclass(frozen=True)
class Certified:
    """The images of a batch that are answered rightly, with their places in the test set, margins and radii."""

    index: Tensor
    images: Tensor
    labels: Tensor
    margin: Tensor
    radius: Tensor


def check(
    network: nn.Module, bound: Bound, level: str, batch: Certified, result: AttackResult, *, name: str, evidence: Path
) -> Tensor:
    """Return which attacks succeeded; raise ContradictionError, with the evidence on disk, if an image was
    fooled inside its certified radius, whether or not that is within the attack's eps.

    Certificates are about the network in float64, so there the float64 copy decides: an answer that float32
    alone gives away is no success.
    """
    length = norms(result.adversarial.double() - batch.images.double())
    inside = (length < batch.radius) & fooled(network, result.adversarial, batch.labels)
    if not inside.any():
        return result.success
    broken = inside & fooled(deepcopy(network).double(), result.adversarial.double(), batch.labels)
    if not broken.any():
        logger.warning(
            "%s changes the answer to %d certified images inside their radius in float32, by rounding alone: level "
            "%r is about exact arithmetic, so these count as no success",
            name,
            int(inside.sum()),
            level,
        )
        return result.success & ~inside
    place = int(broken.nonzero()[0])
    facts = {
        "attack": name,
        "index": int(batch.index[place]),
        "label": int(batch.labels[place]),
        "margin": float(batch.margin[place]),
        "radius": float(batch.radius[place]),
        "norm": float(length[place]),
        "bound": bound.upper,
        "level": level,
    }
    tensors = {"image": batch.images[place], "adversarial": result.adversarial[place]}
    data = atomic.encode_safetensors(tensors, metadata=json.dumps(facts))
    path = evidence / f"{name}-image-{facts['index']}-{sha256(data).hexdigest()[:12]}.safetensors"
    atomic.write_bytes(path, data)
    raise ContradictionError(
        f"a certificate is contradicted: {name} changed the label of test image {facts['index']} with a perturbation "
        f"of norm {facts['norm']!r} inside its certified radius {facts['radius']!r} (margin "
        f"{facts['margin']!r}, Lipschitz bound {facts['bound']!r}, level {level}); evidence: {path}"
    )


@torch.no_grad()
def fooled(network: nn.Module, adversarial: Tensor, labels: Tensor) -> Tensor:
    """Return which images the network answers otherwise than by their labels."""
    return network.eval()(adversarial).argmax(dim=1) != labels
