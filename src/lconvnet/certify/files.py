"""Certificates as files: JSON with all that somebody needs to prove the radius again from the weights.

Besides the claim a file holds its witnesses: for every layer a bound on its norm, and where it sums products, on the
norm of its absolute weights. Bounds that were computed are loosened by 2^-30, so that a checker with other algorithms
can confirm each of them in float64; radii follow from the loosened ones. Floats are hexadecimal strings, hence exact.
"""

from __future__ import annotations

import base64
import hashlib
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from lconvnet.bounds import Bound, LayerBound, trace
from lconvnet.bounds.error_rules import absolute_bound
from lconvnet.bounds.graph import Graph
from lconvnet.certify.certificates import Certificates, certify
from lconvnet.certify.claim import Level
from lconvnet.ops.rounding import up

FORMAT = "lconvnet-certificate-1"
SLACK = 2.0**-30
"""By which computed bounds are loosened, relatively."""

DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}
"""Names of the safetensors format."""


def loosened(bound: Bound) -> Bound:
    """The bound with every computed layer larger by :data:`SLACK`, and the whole by as much for every layer.

    >>> layers = LayerBound("a", 1.0, 1.0, "exact"), LayerBound("b", 1.0, None, "gram")
    >>> [layer.upper > 1 for layer in loosened(Bound(1.0, None, layers)).layers]
    [False, True]
    """
    layers = tuple(_looser(layer, i + 1) for i, layer in enumerate(bound.layers))
    return replace(bound, upper=bound.upper * (1 + 2 * SLACK) ** len(layers), layers=layers)


def _looser(layer: LayerBound, depth: int) -> LayerBound:
    """A reach grows at most by the product over a path to it."""
    reach = None if layer.reach is None else layer.reach * (1 + 2 * SLACK) ** depth
    return replace(layer, upper=layer.upper if layer.method == "exact" else up(layer.upper * (1 + SLACK)), reach=reach)


def documents(
    network: nn.Module, images: Tensor, *, bound: Bound, level: Level, sources: Sequence[Mapping[str, Any]]
) -> tuple[Certificates, Iterator[dict[str, Any]]]:
    """Certify images, and say so in one JSON-able document for each.

    Args:
        network, images, level: as for :func:`lconvnet.certify`; images are float32 or float64.
        bound: of this network at this size.
        sources: for each image where it comes from, for people to read.

    Raises:
        ValueError: level "estimate", which certifies nothing, and whatever :func:`lconvnet.certify` refuses.
    """
    if level == "estimate":
        raise ValueError("level='estimate' certifies nothing, so there is no certificate to write: use 'sound'")
    wide = loosened(bound)
    found = certify(network, images, level=level, bound=wide)
    graph, tensors = trace(network, tuple(images.shape[1:])).graph, network.state_dict()
    common = {
        "format": FORMAT,
        "level": level,
        "network": {"sha256": weights_hash(tensors)},
        "graph": {"nodes": [asdict(node) for node in graph.nodes], "output": graph.output},
        "layers": layer_claims(graph, wide, tensors),
        "versions": versions(),
    }
    return found, (
        {
            **common,
            "input": encoded(images[i]),
            "label": int(found.label[i]),
            "radius": float(found.radius[i]).hex(),
            "source": dict(sources[i]),
        }
        for i in range(len(found))
    )


def layer_claims(graph: Graph, bound: Bound, tensors: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """For every operation its bound, the method, and the norm of its absolute weights where it has weights."""
    shapes = {node.name: node.shape or () for node in graph.nodes}
    claims = []
    for layer in bound.layers:
        node = graph[layer.name]
        absolute = absolute_bound(node, shapes, tensors).hex() if "weight" in node.tensors else None
        claims.append({"name": node.name, "upper": layer.upper.hex(), "absolute": absolute, "method": layer.method})
    return claims


def weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, dtype, shape and little-endian bytes of every tensor, in the order of their names.

    >>> weights_hash({"a": torch.zeros(2)}) == weights_hash({"a": torch.zeros(2, dtype=torch.float64)})
    False
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        shape = ",".join(map(str, tensor.shape))
        digest.update(f"{name}\n{DTYPES[tensor.dtype]}\n{shape}\n".encode() + _little_endian(tensor))
    return digest.hexdigest()


def encoded(image: Tensor) -> dict[str, Any]:
    """The pixels to the last bit.

    >>> encoded(torch.zeros(1, dtype=torch.float32))
    {'dtype': 'F32', 'shape': [1], 'data': 'AAAAAA=='}
    """
    data = base64.b64encode(_little_endian(image)).decode()
    return {"dtype": DTYPES[image.dtype], "shape": list(image.shape), "data": data}


def versions() -> dict[str, str]:
    """What made a certificate, for people to read."""
    packages = {name: metadata.version(name) for name in ("lconvnet", "torch", "numpy")}
    return {**packages, "python": platform.python_version()}


def _little_endian(tensor: Tensor) -> bytes:
    array = tensor.detach().cpu().contiguous().numpy()
    return (array if sys.byteorder == "little" else array.byteswap()).tobytes()
