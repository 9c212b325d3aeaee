"""Certificates as files: JSON with everything needed to prove the radius again from the weights.

Besides the claim, a file holds its witnesses: for every layer a bound on its norm, and for a layer that sums products
also a bound on the norm of its absolute weights. Computed bounds are loosened by 2^-30, so that a checker with other
algorithms can confirm each of them in float64. Radii follow from the loosened bounds. Floats are hexadecimal strings,
which are exact.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from lconvnet import atomic
from lconvnet.bounds import Bound, Graph, Trace, tensors_of, trace
from lconvnet.bounds.forward_error import absolute_bound, linear
from lconvnet.bounds.operations import operation_named
from lconvnet.certify.certificates import Certificates, certify, check_bound
from lconvnet.certify.certifier import Level
from lconvnet.ops.images import check_images
from lconvnet.ops.rounding import up

FORMAT = "lconvnet-certificate-1"
SLACK = 2.0**-30
"""The relative amount by which computed bounds are loosened."""

DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}
"""Names in the safetensors format."""


def loosened(bound: Bound, graph: Graph) -> Bound:
    """The bound with every computed layer larger by :data:`SLACK`, carried through the graph as a checker does.

    Sums add the reaches of their terms; every other operation takes the root of the sum of squares. So each part of a
    split tensor counts like the whole, and the result can exceed that of :func:`lconvnet.lipschitz_bound`.

    >>> from lconvnet.bounds import LayerBound, Node
    >>> layers = LayerBound("a", 1.0, 1.0, "exact"), LayerBound("b", 1.0, None, "gram")
    >>> graph = Graph((Node("input", "input"), Node("a", "ReLU", ("input",)), Node("b", "Linear", ("a",))), "b")
    >>> wide = loosened(Bound(1.0, None, layers), graph)
    >>> [layer.upper > 1 for layer in wide.layers], wide.upper < 1 + 1e-8
    ([False, True], True)
    """
    reaches, layers = {graph.nodes[0].name: 1.0}, []
    for node, layer in zip(graph.nodes[1:], bound.layers, strict=True):
        upper = layer.upper if layer.method == "exact" else up(layer.upper * (1 + SLACK))
        parts = [reaches[name] for name in node.inputs]
        adds = node.operation in ("add", "subtract") and all(graph[name].shape == node.shape for name in node.inputs)
        reaches[node.name] = (sum(parts) if adds else upper * math.hypot(*parts)) * (1 + 2.0**-48)
        layers.append(replace(layer, upper=upper, reach=reaches[node.name]))
    return replace(bound, upper=reaches[graph.output], layers=tuple(layers))


def finite(radius: float, pixels: int) -> float:
    """The radius, or twice the diagonal of the cube of all images if the radius is infinite (a constant network).

    >>> finite(0.5, 16), finite(math.inf, 16)
    (0.5, 8.0)
    """
    return 2 * math.sqrt(pixels) if math.isinf(radius) else radius


def encoded_model(network: nn.Module, input_shape: tuple[int, ...]) -> bytes:
    """A network with branches as a safetensors file for the checker: its tensors and its graph.

    The checker also reads the sequences of layers that :func:`lconvnet.save` writes. This file describes any other
    network, and cannot be loaded as a module.
    """
    traced = trace(network, input_shape)
    description = {"format": "lconvnet-graph-1", "graph": _graph(traced.graph)}
    return atomic.encode_safetensors(_tensors(network, traced), metadata=json.dumps(description))


def certificate_documents(
    network: nn.Module, images: Tensor, *, bound: Bound, level: Level, sources: Sequence[Mapping[str, Any]]
) -> tuple[Certificates, Iterator[dict[str, Any]]]:
    """Certify images and return one JSON-able document per image.

    Args:
        network, images, level: as for :func:`lconvnet.certify`; images are float32 or float64.
        bound: of this network at this size.
        sources: the source of each image, for people to read.

    An infinite radius (of a constant network) is written as twice the diagonal of [0, 1]^n, which holds all images.

    Raises:
        ValueError: for level "estimate", which certifies nothing, and as :func:`lconvnet.certify`.
    """
    if level == "estimate":
        raise ValueError("level='estimate' certifies nothing, so there is no certificate to write: use 'sound'")
    traced = trace(network, tuple(check_images(images).shape[1:]))
    check_bound(bound, network, traced)
    if len(sources) != len(images):
        raise ValueError(f"sources has {len(sources)} entries for {len(images)} images: give one for each")
    graph, tensors = traced.graph, _tensors(network, traced)
    wide = loosened(bound, graph)
    found = certify(network, images, level=level, bound=wide)
    common = {
        "format": FORMAT,
        "level": level,
        "network": {"sha256": weights_hash(tensors)},
        "graph": _graph(graph),
        "layers": layer_claims(graph, wide, tensors),
        "versions": versions(),
    }
    return found, (
        {
            **common,
            "input": encoded(images[i]),
            "label": int(found.label[i]),
            "radius": finite(float(found.radius[i]), images[i].numel()).hex(),
            "source": dict(sources[i]),
        }
        for i in range(len(found))
    )


def _graph(graph: Graph) -> dict[str, Any]:
    return json.loads(graph.to_json())


def _tensors(network: nn.Module, traced: Trace) -> dict[str, Tensor]:
    return {**tensors_of(network), **traced.constants}


def layer_claims(graph: Graph, bound: Bound, tensors: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """For every operation its bound, the method and, if it sums products, the norm of its absolute weights."""
    shapes = {node.name: node.shape or () for node in graph.nodes}
    claims = []
    for layer in bound.layers:
        node = graph[layer.name]
        operation = operation_named(node.operation)
        sums = operation is not None and operation.rounding is linear
        absolute = absolute_bound(node, shapes, tensors).hex() if sums else None
        claims.append({"name": node.name, "upper": layer.upper.hex(), "absolute": absolute, "method": layer.method})
    return claims


def weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over a JSON line ``[name, dtype, shape]`` and the little-endian bytes of every tensor, sorted by name.

    >>> weights_hash({"a": torch.zeros(2)}) == weights_hash({"a": torch.zeros(2, dtype=torch.float64)})
    False
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        if tensor.dtype not in DTYPES:
            raise ValueError(
                f"network tensor {name!r} is {tensor.dtype}: a certificate is about tensors of "
                f"{', '.join(map(str, DTYPES))}; convert it"
            )
        about = json.dumps([name, DTYPES[tensor.dtype], list(tensor.shape)])  # one line for any name
        digest.update(f"{about}\n".encode() + _little_endian(tensor))
    return digest.hexdigest()


def encoded(image: Tensor) -> dict[str, Any]:
    """The exact pixels.

    >>> encoded(torch.zeros(1, dtype=torch.float32))
    {'dtype': 'F32', 'shape': [1], 'data': 'AAAAAA=='}
    """
    data = base64.b64encode(_little_endian(image)).decode()
    return {"dtype": DTYPES[image.dtype], "shape": list(image.shape), "data": data}


def versions() -> dict[str, str]:
    """The versions of the software that made a certificate, for people to read."""
    packages = {name: metadata.version(name) for name in ("lconvnet", "torch", "numpy")}
    return {**packages, "python": platform.python_version()}


def _little_endian(tensor: Tensor) -> bytes:
    array = tensor.detach().cpu().contiguous().numpy()
    return (array if sys.byteorder == "little" else array.byteswap()).tobytes()
