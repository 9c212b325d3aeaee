"""Certificates and models from their files, and whether they speak of the same network; nothing in them is trusted."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = "lconvnet-certificate-1"
KEYS = {"format", "level", "network", "graph", "layers", "versions", "input", "label", "radius", "source"}
DTYPES = {"F32": "<f4", "F64": "<f8", "I64": "<i8"}
MAXIMAL_BYTES = 2**30
HEXADECIMAL = re.compile(r"0x[01]\.[0-9a-f]{1,13}p[+-][0-9]{1,4}")

OPERATIONS = {
    "abs": "Abs", "conv2d": "Conv2d", "downsampling": "InvertibleDownsampling", "flatten": "Flatten",
    "fullsort": "FullSort", "groupsort": "GroupSort", "identity": "Identity", "linear": "Linear", "maxmin": "MaxMin",
    "nearest-upsampling": "NearestUpsampling", "relu": "ReLU", "scale": "Scale", "upsampling": "InvertibleUpsampling",
    "zero-pad": "ZeroPad2d",
}  # fmt: skip
"""Operations as the architecture of a model calls them, and as a graph does."""


class InvalidFile(Exception):  # noqa: N818 (what is wrong is the file)
    """A file that cannot be read as what it should be."""


class NotProved(Exception):  # noqa: N818 (the outcome of a check, not a failure of the checker)
    """A certificate that says something the checker cannot prove."""


@dataclass(frozen=True)
class Node:
    """One operation of a graph, see the certifier's documentation of graphs."""

    name: str
    operation: str
    inputs: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Layer:
    """Claimed upper bounds on the norm of a layer, and of its absolute weights where it has any."""

    upper: float
    absolute: float | None


@dataclass(frozen=True)
class Certificate:
    """What a certificate claims, and its witnesses."""

    level: str
    network: str
    nodes: tuple[Node, ...]
    output: str
    layers: dict[str, Layer]
    image: np.ndarray
    label: int
    radius: float


@dataclass(frozen=True)
class Model:
    """Tensors of a model by name, their hash, and its architecture."""

    tensors: dict[str, np.ndarray]
    sha256: str
    architecture: tuple[dict[str, Any], ...]


def read_certificate(path: Path) -> Certificate:
    """Return a certificate; raise InvalidFile where it is none."""
    data = parse(_bytes(path).decode("utf-8", "replace"))
    try:
        require(set(data) == KEYS and data["format"] == FORMAT, f"is no certificate of format {FORMAT}")
        nodes = tuple(_node(**entry) for entry in data["graph"]["nodes"])
        layers = {entry["name"]: _layer(**entry) for entry in data["layers"]}
        require(nodes, "has a graph without nodes")
        require(len(layers) == len(data["layers"]), "has two layers of one name")
        require(type(data["label"]) is int, "has a label that is no integer")
        image, radius = array(**data["input"]), number(data["radius"])
        return Certificate(
            data["level"],
            data["network"]["sha256"],
            nodes,
            data["graph"]["output"],
            layers,
            image,
            data["label"],
            radius,
        )
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise InvalidFile(f"is no certificate of format {FORMAT} ({error})") from None


def read_model(path: Path) -> Model:
    """Return a model from a safetensors file: eight bytes of length, a JSON header, the tensors."""
    data = _bytes(path)
    length = int.from_bytes(data[:8], "little")
    require(len(data) > 8 and length <= len(data) - 8, f"{path} is no safetensors file")
    header = parse(data[8 : 8 + length].decode("utf-8", "replace"))
    body = memoryview(data)[8 + length :]
    try:
        about = parse(header.pop("__metadata__")["lconvnet"])
        tensors = {name: _tensor(body, **entry) for name, entry in header.items()}
        architecture = tuple(dict(entry) for entry in about["architecture"])
        require(
            all(isinstance(entry[key], str) for entry in architecture for key in ("op", "name")), "has nameless layers"
        )
        return Model(tensors, _hash(header, body), architecture)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise InvalidFile(f"{path} is no model with an architecture ({error})") from None


def require_same(certificate: Certificate, model: Model) -> None:
    """Raise NotProved unless the certificate's graph, a chain, is the model's architecture with the same weights."""
    prove(certificate.network == model.sha256, "it is about other weights than those of the model")
    first, *nodes = certificate.nodes
    prove(len({node.name for node in certificate.nodes}) == len(certificate.nodes), "its nodes share a name")
    prove(first.operation == "input" and not first.inputs, "its graph does not begin with the input")
    entries, paddings = _fused(model.architecture)
    prove(len(nodes) == len(entries), f"its graph has {len(nodes)} layers, the model {len(entries)}")
    for before, node, entry, padding in zip(certificate.nodes, nodes, entries, paddings, strict=False):
        prove(_agree(node, before, entry, padding), f"node {node.name!r} is not layer {entry['name']!r} of the model")
    prove(certificate.output == certificate.nodes[-1].name, "its graph returns another node than the last")
    prove(set(certificate.layers) == {node.name for node in certificate.nodes[1:]}, "its layers are not its nodes")


def _fused(architecture: tuple[dict[str, Any], ...]) -> tuple[list[dict[str, Any]], list[list[int] | None]]:
    """The layers without circular paddings, and the padding before each of them."""
    entries: list[dict[str, Any]] = []
    paddings: list[list[int] | None] = [None]
    for entry in architecture:
        if entry["op"] == "circular-pad":
            prove(paddings[-1] is None, "the model pads twice")
            paddings[-1] = entry["padding"]
        else:
            entries.append(entry)
            paddings.append(None)
    prove(paddings.pop() is None, "the model ends with a padding")
    return entries, paddings


def _agree(node: Node, before: Node, entry: dict[str, Any], padding: list[int] | None) -> bool:
    """Whether a node is this layer of the architecture, with this circular padding before it."""
    tensors = {} if "bias" not in entry else {"weight": f"{node.name}.weight"}
    if entry.get("bias"):
        tensors["bias"] = f"{node.name}.bias"
    return (
        (node.name, node.operation) == (entry["name"], OPERATIONS.get(entry["op"]))
        and node.inputs == (before.name,)
        and node.tensors == tensors
        and node.options.get("circular_padding") == padding
        and all(node.options.get(key) == entry[key] for key in entry if key not in ("name", "op", "bias"))
    )


def parse(text: str) -> Any:
    """JSON without NaN, infinity and repeated keys."""
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_refuse)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InvalidFile(f"is no JSON ({error})") from None


def number(text: Any) -> float:
    """A float at least 0 from its hexadecimal form, which is exact."""
    require(isinstance(text, str) and HEXADECIMAL.fullmatch(text), f"has {text!r}, which is no hexadecimal float")
    try:
        return float.fromhex(text)
    except OverflowError:
        raise InvalidFile(f"has {text!r}, which no float holds") from None


def array(dtype: str, shape: list[int], data: str) -> np.ndarray:
    """An array from base64."""
    try:
        values = np.frombuffer(base64.b64decode(data, validate=True), DTYPES[dtype]).reshape(shape)
    except (binascii.Error, ValueError) as error:
        raise InvalidFile(f"has an input that cannot be read ({error})") from None
    require(values.size > 0 and bool(np.isfinite(values).all()), "has an input with NaN or infinity")
    return values


def require(condition: Any, problem: str) -> None:
    """Raise InvalidFile unless the condition holds."""
    if not condition:
        raise InvalidFile(problem)


def prove(condition: Any, problem: str) -> None:
    """Raise NotProved unless the condition holds."""
    if not condition:
        raise NotProved(problem)


def _tensor(body: memoryview, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
    start, stop = data_offsets
    require(0 <= start <= stop <= len(body), "has a tensor outside the file")
    try:
        values = np.frombuffer(body[start:stop], DTYPES[dtype]).reshape(shape)
    except ValueError as error:
        raise InvalidFile(f"has a tensor that cannot be read ({error})") from None
    require(bool(np.isfinite(values).all()), "has weights that are not finite")
    return values


def _hash(header: dict[str, Any], body: memoryview) -> str:
    digest = hashlib.sha256()
    for name in sorted(header):
        start, stop = header[name]["data_offsets"]
        shape = ",".join(map(str, header[name]["shape"]))
        digest.update(f"{name}\n{header[name]['dtype']}\n{shape}\n".encode() + body[start:stop])
    return digest.hexdigest()


def _node(name: str, operation: str, inputs: list[str], options: Any, tensors: Any, module: str, shape: Any) -> Node:
    return Node(name, operation, tuple(inputs), dict(options), dict(tensors))


def _layer(name: str, upper: str, absolute: str | None, method: str) -> Layer:
    return Layer(number(upper), None if absolute is None else number(absolute))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    require(len(dict(pairs)) == len(pairs), "repeats a key")
    return dict(pairs)


def _refuse(constant: str) -> Any:
    raise InvalidFile(f"has the number {constant}")


def _bytes(path: Path) -> bytes:
    require(path.is_file(), f"{path} is no file")
    require(path.stat().st_size <= MAXIMAL_BYTES, f"{path} is larger than {MAXIMAL_BYTES} bytes")
    return path.read_bytes()
