"""Read certificates and models, and check that they describe the same network; nothing in the files is trusted.

One table, :data:`RULES`, states how many inputs, which options and which tensors every operation may have. Anything
else is refused while a model is read. Options of :data:`NOTES` repeat what tensors state, and are not used.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = "lconvnet-certificate-1"
KEYS = {"format", "level", "network", "graph", "layers", "versions", "input", "label", "radius", "source"}
DTYPES = {"F32": "<f4", "F64": "<f8", "I64": "<i8"}
MAXIMAL_MODEL, MAXIMAL_JSON = 2**30, 2**23
HEXADECIMAL = re.compile(r"0x[01]\.[0-9a-f]{1,13}p[+-][0-9]{1,4}")
NAME = re.compile(r"[A-Za-z0-9_]+")
MALFORMED = (TypeError, KeyError, AttributeError, ValueError, OverflowError, RecursionError)
"""Errors of reading if a part is missing or of another kind."""

OPERATIONS = {
    "abs": "Abs", "conv2d": "Conv2d", "downsampling": "InvertibleDownsampling", "flatten": "Flatten",
    "fullsort": "FullSort", "groupsort": "GroupSort", "identity": "Identity", "linear": "Linear", "maxmin": "MaxMin",
    "nearest-upsampling": "NearestUpsampling", "relu": "ReLU", "scale": "Scale", "two-sided-relu": "TwoSidedReLU",
    "upsampling": "InvertibleUpsampling", "zero-pad": "ZeroPad2d",
}  # fmt: skip
"""Name of an operation in the architecture of a model -> in a graph."""
WEIGHTED = ("Conv2d", "Linear")
"""Operations with a weight; they have its norm."""

JOINS = ("add", "concatenate", "subtract")
"""Operations on several tensors; a rule gives their norm, not a number."""


class InvalidFile(Exception):  # noqa: N818 (what is wrong is the file)
    """A file cannot be read as a certificate or a model."""


class NotProved(Exception):  # noqa: N818 (the outcome of a check, not a failure of the checker)
    """A certificate claims something that the checker cannot prove."""


@dataclass(frozen=True)
class Node:
    """One operation of a graph; see the certifier's documentation of graphs."""

    name: str
    operation: str
    inputs: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Layer:
    """Claimed upper bounds on the norm of a layer, and of its absolute weights if it has any."""

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
    """Tensors of a model by name, their hash, and the graph that computes with them."""

    tensors: dict[str, np.ndarray]
    sha256: str
    nodes: tuple[Node, ...]
    output: str


Check = Callable[[Any], bool]


def whole(least: int, most: int) -> Check:
    """Return the check for integers of a range; truth values fail it."""
    return lambda value: type(value) is int and least <= value <= most


def real(value: Any) -> bool:
    """Return whether a value is a number that a float holds exactly."""
    return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) <= 2**53)


def one_of(*choices: Any) -> Check:
    """Return the check for these values, each of its own type."""
    return lambda value: any(type(value) is type(choice) and value == choice for choice in choices)


def several(check: Check, count: int | None = None) -> Check:
    """Return the check for a list of so many values, or of any number."""
    return lambda value: type(value) is list and count in (None, len(value)) and all(map(check, value))


@dataclass(frozen=True)
class Rule:
    """One form of an operation."""

    arity: range = range(1, 2)
    options: Mapping[str, Check] = field(default_factory=dict)
    more: Mapping[str, Check] = field(default_factory=dict)
    tensors: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    def fits(self, inputs: int, options: Mapping[str, Any], tensors: Mapping[str, Any]) -> bool:
        """Return whether a node with these is of this form."""
        known = {**self.options, **self.more}
        return (
            inputs in self.arity
            and set(self.options) <= set(options) <= set(known)
            and all(known[key](value) for key, value in options.items())
            and set(self.tensors) <= set(tensors) <= {*self.tensors, *self.also}
        )


NATURAL, SIDE, AXIS, SIZE = whole(0, 2**10), whole(1, 2**10), whole(-8, 8), whole(1, 2**30)
PAIR, PADDING = several(SIDE, 2), several(NATURAL, 4)
SLICE = several(whole(0, 2**30), 4)
NOTES = {"in_channels": SIZE, "out_channels": SIZE, "kernel_size": PAIR, "in_features": SIZE, "out_features": SIZE}
CONVOLVED = {"stride": PAIR, "padding": several(NATURAL, 2), "dilation": PAIR, "groups": SIZE,
             "padding_mode": one_of("zeros", "circular")}  # fmt: skip
FIXED = {"circular_padding": PADDING, "transposed": one_of(False), "output_padding": one_of([0, 0])}
ONE, ANY = Rule(), range(1, 2**10)

RULES: dict[str, tuple[Rule, ...]] = {
    "Abs": (ONE,),
    "Conv2d": (Rule(options=CONVOLVED, more={**NOTES, **FIXED}, tensors=("weight",), also=("bias",)),),
    "Flatten": (Rule(options={"start_dim": AXIS, "end_dim": AXIS}),),
    "FullSort": (Rule(options={"dim": AXIS}),),
    "GroupSort": (Rule(options={"dim": AXIS, "group_size": SIZE}),),
    "Identity": (ONE,),
    "InvertibleDownsampling": (Rule(options={"factor": SIDE}),),
    "InvertibleUpsampling": (Rule(options={"factor": SIDE}),),
    "Linear": (Rule(more=NOTES, tensors=("weight",), also=("bias",)),),
    "MaxMin": (Rule(options={"dim": AXIS}),),
    "NearestUpsampling": (Rule(options={"factor": SIDE}),),
    "ReLU": (Rule(more={"inplace": one_of(False, True)}),),
    "Scale": (Rule(options={"factor": real}),),
    "TwoSidedReLU": (ONE,),
    "ZeroPad2d": (Rule(options={"padding": PADDING}, more={"value": one_of(0.0, 0)}),),
    "add": (Rule(range(2, 3)),),
    "concatenate": (Rule(ANY, {"dim": whole(1, 8)}),),
    "input": (Rule(range(1)),),
    "multiply": (Rule(options={"value": real}), Rule(tensors=("constant",))),
    "negate": (ONE,),
    "permute": (Rule(options={"dims": several(whole(0, 8))}),),
    "reshape": (ONE,),
    "shift": (
        Rule(options={"value": real, "sign": one_of(1, -1)}),
        Rule(options={"sign": one_of(1, -1)}, tensors=("constant",)),
    ),
    "slice": (Rule(options={"slices": several(SLICE)}),),
    "subtract": (Rule(range(2, 3)),),
}  # fmt: skip


def read_certificate(path: Path) -> Certificate:
    """Return a certificate; raise InvalidFile if the file does not hold one."""
    data = parse(_bytes(path, MAXIMAL_JSON).decode("utf-8", "replace"))
    try:
        require(set(data) == KEYS and data["format"] == FORMAT, f"is not a certificate of format {FORMAT}")
        nodes = tuple(_node(**entry) for entry in data["graph"]["nodes"])
        layers = {entry["name"]: _layer(**entry) for entry in data["layers"]}
        require(nodes, "has a graph without nodes")
        require(len(layers) == len(data["layers"]), "has two layers of one name")
        require(type(data["label"]) is int, "has a label that is not an integer")
        image, radius = array(**data["input"]), number(data["radius"])
        about = data["level"], data["network"]["sha256"], nodes, data["graph"]["output"]
        return Certificate(*about, layers, image, data["label"], radius)
    except MALFORMED as error:
        raise InvalidFile(f"is not a certificate of format {FORMAT} ({error})") from None


def read_model(path: Path) -> Model:
    """Return a model from a safetensors file: eight bytes of length, a JSON header, the tensors."""
    data = _bytes(path, MAXIMAL_MODEL)
    length = int.from_bytes(data[:8], "little")
    require(len(data) > 8 and length <= len(data) - 8, "is not a safetensors file")
    require(length <= MAXIMAL_JSON, f"has a header that is larger than {MAXIMAL_JSON} bytes")
    header = parse(data[8 : 8 + length].decode("utf-8", "replace"))
    body = memoryview(data)[8 + length :]
    try:
        about = parse(header.pop("__metadata__")["lconvnet"])
        _require_tiled(header, body)
        tensors = {name: _tensor(body, **entry) for name, entry in header.items()}
        require(("graph" in about) != ("architecture" in about), "has not just one graph or one architecture")
        if "graph" in about:
            nodes = _graph(about)
        else:  # layers in order, after the image
            image = Node("input", "input", (), shape=sizes(about.get("input_shape") or []))
            nodes = (image, *_sequence(about["architecture"], image.name, "")[0])
            require(len({node.name for node in nodes}) == len(nodes), "two layers of the model share a name")
        for node in nodes:
            _require_known(node, tensors)
        return Model(tensors, _hash(header, body), nodes, nodes[-1].name)
    except MALFORMED as error:
        raise InvalidFile(f"is not a model with an architecture ({error})") from None


def require_same(certificate: Certificate, model: Model) -> None:
    """Raise NotProved unless the certificate is about the model: the same weights, the same graph."""
    prove(certificate.network == model.sha256, "it is about other weights than those of the model")
    found, nodes = len(certificate.nodes), model.nodes
    prove(found == len(nodes), f"its graph has {found} nodes, the model {len(nodes)}")
    for claimed, node in zip(certificate.nodes, nodes, strict=True):
        prove(_agree(claimed, node), f"node {claimed.name!r} is not {node.name!r} of the model")
    prove(certificate.output == model.output, "its graph returns another node than the model")
    prove(set(certificate.layers) == {node.name for node in nodes[1:]}, "its layers are not its nodes")


def _agree(claimed: Node, node: Node) -> bool:
    """Return whether a node is this one of the model. Options that the model does not state are never used."""
    options = {"circular_padding": None, **node.options}
    return (claimed.name, claimed.operation, claimed.inputs, claimed.tensors) == (
        node.name, node.operation, node.inputs, node.tensors,
    ) and all(claimed.options.get(key) == value for key, value in options.items())  # fmt: skip


def _require_known(node: Node, tensors: Mapping[str, np.ndarray]) -> None:
    """Refuse operations that are not in the table, and tensors that would be broadcast or rounded."""
    name = f"node {node.name!r}"
    require(node.operation in RULES, f"{name} has the operation {node.operation!r}, which has no rule here")
    fits = any(rule.fits(len(node.inputs), node.options, node.tensors) for rule in RULES[node.operation])
    has = f"{len(node.inputs)} inputs, the options {node.options}, the tensors {sorted(node.tensors)}"
    require(fits, f"{name} is not a {node.operation} as this checker knows it: it has {has}")
    named = {role: tensors[key] for role, key in node.tensors.items()}
    for role, values in named.items():
        require(values.dtype.kind == "f" and values.size > 0, f"{name} has a {role} that holds no floats")
    if node.operation in WEIGHTED:
        W, rank = named["weight"], 2 if node.operation == "Linear" else 4
        require(W.ndim == rank, f"{name} has a weight of shape {W.shape}, not of {rank} dimensions")
        shape = named.get("bias", W[(slice(None), *[0] * (rank - 1))]).shape
        require(shape == W.shape[:1], f"{name} has a bias of shape {shape} for a weight of shape {W.shape}")


def _graph(about: dict[str, Any]) -> tuple[Node, ...]:
    """Return the nodes of a model that states its graph."""
    nodes = tuple(_node(**entry) for entry in about["graph"]["nodes"])
    seen: set[str] = set()
    for node in nodes:
        reads = bool(node.inputs) == bool(seen) == (node.operation != "input")
        require(node.name not in seen and seen.issuperset(node.inputs), f"node {node.name!r} is out of order")
        require(reads, f"node {node.name!r} reads nothing")
        seen.add(node.name)
    require(nodes and nodes[-1].name == about["graph"]["output"], "the last node is not the output")
    return nodes


def _sequence(layers: list[dict[str, Any]], source: str, path: str) -> tuple[list[Node], str]:
    """Return the nodes of layers that start from a node, and the name of the last one.

    A circular padding belongs to the convolution after it. The name "input" belongs to the first node of all.
    """
    nodes, before = [], {}
    for layer in layers:
        op, name = layer["op"], layer["name"]
        require(type(name) is str and NAME.fullmatch(name), f"the model has a layer {name!r}, which is not a name")
        require(not before or op == "conv2d", "the model pads before something else than a convolution")
        if op == "circular-pad":
            before = {"circular_padding": layer["padding"]}
            continue
        if op in ("sum", "concat"):
            found, source = _branches(layer, source, path + name)
        elif op == "sequence":
            found, source = _sequence(layer["layers"], source, f"{path}{name}.")
        else:
            found = [_layer_node(layer, before, source, path + name)]
            source = found[0].name
        nodes += found
        before = {}
    require(not before, "the model ends with a padding")
    return nodes, source


def _branches(layer: dict[str, Any], source: str, name: str) -> tuple[list[Node], str]:
    """Return the same for branches that meet again: one after the other in a sum, else all at once."""
    found = [_branch(branch, source, f"{name}.branches.", str(i)) for i, branch in enumerate(layer["branches"])]
    require(found, f"layer {name!r} has no branches")
    nodes, end = found[0]
    if layer["op"] == "concat":
        ends = tuple(end for _, end in found)
        joint = Node(f"{name}/concatenate", "concatenate", ends, {"dim": 1})
        return [*(node for branch, _ in found for node in branch), joint], joint.name
    for i, (branch, other) in enumerate(found[1:], start=1):
        joint = Node(f"{name}/add" if i == 1 else f"{name}/add#{i}", "add", (end, other))
        nodes, end = [*nodes, *branch, joint], joint.name
    return nodes, end


def _branch(branch: Any, source: str, path: str, place: str) -> tuple[list[Node], str]:
    """Return the same for a branch: a list of layers, or one layer whose name is its place."""
    if type(branch) is list:
        return _sequence(branch, source, f"{path}{place}.")
    require(branch["name"] == place, f"branch {place} of {path!r} has another name")
    return _sequence([branch], source, path)


def _layer_node(layer: dict[str, Any], before: dict[str, Any], source: str, name: str) -> Node:
    require(
        layer["op"] in OPERATIONS, f"layer {name!r} is a {layer.get('kind', layer['op'])!r}, which has no rule here"
    )
    options = {key: value for key, value in layer.items() if key not in ("name", "op", "bias")}
    roles = () if "bias" not in layer else ("weight", "bias") if layer["bias"] else ("weight",)
    unique = "input#2" if name == "input" else name
    tensors = {role: f"{name}.{role}" for role in roles}
    return Node(unique, OPERATIONS[layer["op"]], (source,), {**options, **before}, tensors)


def sizes(shape: Any) -> tuple[int, ...]:
    """Return a shape from a list of integers, none of them negative."""
    known = type(shape) is list and all(type(n) is int and n >= 0 for n in shape)
    require(known, f"has {shape!r}, which is not a shape")
    return tuple(shape)


def parse(text: str) -> Any:
    """Return the value of a JSON text without NaN, infinity and repeated keys."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        require(len(dict(pairs)) == len(pairs), "repeats a key")
        return dict(pairs)

    def refuse(constant: str) -> None:
        raise InvalidFile(f"has the number {constant}")

    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise InvalidFile(f"is not JSON ({error})") from None


def number(text: Any) -> float:
    """Return a float of at least 0 from its hexadecimal form, which is exact and unique."""
    known = isinstance(text, str) and HEXADECIMAL.fullmatch(text)
    require(known and float.fromhex(text).hex() == text, f"has {text!r}, which is not a hexadecimal float")
    return float.fromhex(text)


def array(dtype: str, shape: list[int], data: str) -> np.ndarray:
    """Return an array from base64."""
    try:
        values = np.frombuffer(base64.b64decode(data, validate=True), DTYPES[dtype]).reshape(sizes(shape))
    except (binascii.Error, *MALFORMED) as error:
        raise InvalidFile(f"has an input that cannot be read ({error})") from None
    require(values.dtype.kind == "f" and values.size > 0, "has an input that holds no floats")
    require(bool(np.isfinite(values).all()), "has an input with NaN or infinity")
    return values


def require(condition: Any, problem: str) -> None:
    """Raise InvalidFile unless the condition holds."""
    if not condition:
        raise InvalidFile(problem)


def prove(condition: Any, problem: str) -> None:
    """Raise NotProved unless the condition holds."""
    if not condition:
        raise NotProved(problem)


def _require_tiled(header: dict[str, Any], body: memoryview) -> None:
    """Require that tensors follow each other from the first byte to the last, as the format says."""
    end = 0
    for start, stop in sorted(entry["data_offsets"] for entry in header.values()):
        tiled = type(start) is type(stop) is int and start == end <= stop
        require(tiled, "has tensors that overlap, or gaps between them")
        end = stop
    require(end == len(body), "has tensors that overlap, or gaps between them")


def _tensor(body: memoryview, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
    start, stop = data_offsets
    require(dtype in DTYPES, f"has numbers of the dtype {dtype!r}, which is none of {', '.join(DTYPES)}")
    try:
        values = np.frombuffer(body[start:stop], DTYPES[dtype]).reshape(sizes(shape))
    except ValueError as error:
        raise InvalidFile(f"has a tensor that cannot be read ({error})") from None
    require(bool(np.isfinite(values).all()), "has weights that are not finite")
    return values


def _hash(header: dict[str, Any], body: memoryview) -> str:
    digest = hashlib.sha256()
    for name in sorted(header):
        start, stop = header[name]["data_offsets"]
        about = json.dumps([name, header[name]["dtype"], header[name]["shape"]])  # one line, whatever the name
        digest.update(f"{about}\n".encode() + body[start:stop])
    return digest.hexdigest()


def _node(name: str, operation: str, inputs: list[str], options: Any, tensors: Any, module: str, shape: Any) -> Node:
    known = type(name) is type(operation) is str and type(inputs) is list and type(options) is type(tensors) is dict
    require(known, f"node {name!r} is none")
    return Node(name, operation, tuple(inputs), options, tensors, sizes(shape))


def _layer(name: str, upper: str, absolute: str | None, method: str) -> Layer:
    return Layer(number(upper), None if absolute is None else number(absolute))


def _bytes(path: Path, most: int) -> bytes:
    try:
        require(path.is_file(), "is not a file")
        require(path.stat().st_size <= most, f"is larger than {most} bytes")
        return path.read_bytes()
    except OSError as error:
        raise InvalidFile(f"cannot be read ({error.strerror})") from None
