"""Published baselines: a run folder with a cfg.yaml of ours and the weights that the authors published.

A file of KW holds `state_dict`, `epoch` and more that is not needed. `state_dict` is one network, or a list of networks
that pass on what they cannot prove; the first of the list is evaluated. Layers are numbered with their activations. A
residual block keeps its two convolutions and the shortcut under `Ws`.

QW trained with TensorFlow. The names of their variables are not published, so the reader relies on TensorFlow's
conventions. The variables of a layer share a scope (`conv1/weights`, `conv1/biases`). Kernels are ``(height, width, in,
out)`` and ``(in, out)``; channels come last. Layers of one shape come in the order of their names, with numbers
compared as numbers, and fill our layers of that shape in order. Variables of an optimiser and of the loss are left out.
A weight is divided by the bound on its norm (kernels/rkl2ne.py), as in every step of the paper.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isqrt, prod
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from lconvnet import atomic
from lconvnet.data.tables import varint
from lconvnet.experiments.config import Experiment, settings
from lconvnet.experiments.loading import AnyExperiment, parse
from lconvnet.experiments.run_folder import RunFolder
from lconvnet.experiments.trained_on import require_open
from lconvnet.importing import pickles
from lconvnet.importing.plain_networks import natural
from lconvnet.layers import ConstrainedLayer, LipschitzConv2d, LipschitzLinear
from lconvnet.training import Record
from lconvnet.training.checkpoint import save_best
from lconvnet.training.settings import versions
from lconvnet.visible import is_visible

MAGIC = 0xDB4775248B80FB57
FOOTER = 48  # bytes: two places of blocks, padding, the magic number
TRAILER = 5  # bytes behind a block: compression and checksum
MAXIMAL_INDEX = 16_000_000
FLOATS = {1: np.dtype("<f4"), 2: np.dtype("<f8")}
"""TensorFlow's number of a type -> the type; variables of other types, such as step counters, are left out."""


class _Entry(NamedTuple):
    """The entry of one variable in the index."""

    kind: int
    shape: list[int]
    shard: int
    offset: int
    size: int


def read_tensorflow(index: Path) -> dict[str, Tensor]:
    """Return the floating-point variables of a checkpoint of TensorFlow's `Saver` by name, without TensorFlow.

    `NAME.index` is a table of sorted keys in blocks (LevelDB's format). Its values give the type, shape and place of
    each variable. `NAME.data-0000I-of-0000N` holds the numbers, little-endian, one after another. Every length is
    checked against the file before it is used, and nothing in either file can run.

    Raises ValueError for a file that is missing, damaged, compressed, or not such an index.
    """
    if not index.is_file():
        raise ValueError(f"{index} does not exist; name the .index file of a TensorFlow checkpoint")
    if index.stat().st_size > MAXIMAL_INDEX:
        raise ValueError(f"{index} has {index.stat().st_size} bytes; it is not an index of a TensorFlow checkpoint")
    try:
        values = dict(_values(index.read_bytes()))
        header = dict(_fields(values.pop("")))
        if header.get(2, 0) != 0:
            raise ValueError("big-endian data")
        entries = {name: _entry(value) for name, value in values.items()}
        suffix = f"-of-{_number(header.get(1, 1)):05d}"
        return {name: _tensor(index, entry, suffix) for name, entry in entries.items() if entry.kind in FLOATS}
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename} does not exist; copy all files of the checkpoint into one folder") from None
    except (IndexError, KeyError, struct.error, ValueError, OverflowError) as error:
        raise ValueError(
            f"{index} is damaged, or no index of a TensorFlow checkpoint ({type(error).__name__}); other files, "
            "pickles above all, are never loaded"
        ) from None


def _values(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield all keys with their values, block by block."""
    if len(data) < FOOTER or struct.unpack_from("<Q", data, len(data) - 8)[0] != MAGIC:
        raise ValueError("magic number")
    footer = io.BytesIO(data[-FOOTER:])
    _place(footer)  # of blocks with further information, which are skipped
    for _, handle in _block(data, *_place(footer)):
        for key, value in _block(data, *_place(io.BytesIO(handle))):
            yield key.decode("utf-8"), value


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the entries of a block; a key repeats the start of the one before."""
    if offset + size + TRAILER > len(data) or data[offset + size] != 0:
        raise ValueError("block that is cut off or compressed")
    block = io.BytesIO(data[offset : offset + size])
    (restarts,) = struct.unpack_from("<I", block.getbuffer(), size - 4)
    key = b""
    while block.tell() < size - 4 - 4 * restarts:
        shared, fresh, length = varint(block), varint(block), varint(block)
        key = key[:shared] + block.read(fresh)
        yield key, block.read(length)


def _place(data: io.BytesIO) -> tuple[int, int]:
    """Return the offset and size of a block."""
    return varint(data), varint(data)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the numbers and values of a protocol buffer's fields."""
    data = io.BytesIO(message)
    while data.tell() < len(message):
        tag = varint(data)
        kind = tag & 7
        if kind not in (0, 1, 2, 5):
            raise ValueError("field of an unknown kind")
        yield tag >> 3, varint(data) if kind == 0 else data.read({1: 8, 5: 4}.get(kind) or varint(data))


def _entry(value: bytes) -> _Entry:
    fields = list(_fields(value))
    found = {key: content for key, content in fields if isinstance(content, int)}
    shapes = [content for key, content in fields if key == 2 and isinstance(content, bytes)]
    dims = [inner for shape in shapes for key, inner in _fields(shape) if key == 2 and isinstance(inner, bytes)]
    shape = [_number(dict(_fields(dim)).get(1, 0)) for dim in dims]
    return _Entry(found.get(1, 0), shape, found.get(3, 0), found.get(4, 0), found.get(5, 0))


def _number(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("bytes in place of a number")
    return value


def _tensor(index: Path, entry: _Entry, suffix: str) -> Tensor:
    path, kind, count = index.with_suffix(f".data-{entry.shard:05d}{suffix}"), FLOATS[entry.kind], prod(entry.shape)
    if entry.size != count * kind.itemsize or entry.offset + entry.size > path.stat().st_size:
        raise ValueError("variable that is longer than its file or than its shape")
    return torch.from_numpy(np.fromfile(path, kind, count, offset=entry.offset).reshape(entry.shape).copy())


IMAGES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
CLASSES = 10
BLOCKS = range(1, 5)
KW_LAYERS: Mapping[str, Mapping[str, str]] = {
    "kw-small": {"conv1": "0", "conv2": "2", "linear1": "5", "linear2": "7"},
    "kw-large": {
        **{f"conv{i + 1}": str(2 * i) for i in range(4)},
        **{f"linear{i + 1}": str(9 + 2 * i) for i in range(3)},
    },
    "kw-resnet": {
        "conv": "0",
        **{f"block{i}.branches.0.conv": f"{4 * i}.Ws.0" for i in BLOCKS},
        **{f"block{i}.branches.1.conv1": f"{4 * i - 2}.Ws.0" for i in BLOCKS},
        **{f"block{i}.branches.1.conv2": f"{4 * i}.Ws.2" for i in BLOCKS},
        "linear1": "19",
        "linear2": "21",
    },
}
"""Our path of each layer -> theirs."""
LOSS = "loss"
OPTIMIZERS = re.compile(r".*/(Adam|Adam_1|Momentum|RMSProp|RMSProp_1|ExponentialMovingAverage)")


def is_baseline(experiment: AnyExperiment) -> bool:
    """Return whether an experiment uses a network with published weights."""
    return experiment.task == Experiment.task and cast(Experiment, experiment).model.architecture in FORMATS


def adopt_baseline(folder: RunFolder, values: Mapping[str, object], overrides: Sequence[str]) -> None:
    """If the folder has a baseline's cfg.yaml and its published weights, add what an evaluation needs.

    Adds checkpoints/best.safetensors and record.json, which states the file and its SHA-256. The file is not changed.
    Raises ValueError, before anything is added, if the evaluation could not use the `overrides`.
    """
    model = values.get("model")
    architecture = str(model.get("architecture")) if isinstance(model, Mapping) else ""
    if not published(folder.path, architecture):
        return
    require_open(folder, overrides)
    parse(values, overrides)
    experiment = parse(values)
    network, origin = read_baseline(folder.path, experiment)
    facts = json.loads(json.dumps({"settings": settings(experiment), "imported": origin}))
    save_best(folder.path / "checkpoints" / "best.safetensors", network, origin["epoch"])
    record = Record(facts, versions(torch.device("cpu")), finished=True)
    atomic.write_json(folder.path / "record.json", record.to_dict())


def published(folder: Path, architecture: str) -> list[Path]:
    """Return the files with an architecture's weights in a run's folder or its checkpoints/; none for others."""
    pattern, _ = FORMATS.get(architecture, ("", None))
    places = (folder, folder / "checkpoints") if pattern else ()
    return [path for place in places for path in sorted(place.glob(pattern)) if is_visible(path.name)]


def read_baseline(folder: Path, experiment: Experiment) -> tuple[nn.Sequential, dict[str, Any]]:
    """Return the network of a baseline with the only weights in its folder, and their origin."""
    architecture = experiment.model.architecture
    pattern, load = FORMATS[architecture]
    found = published(folder, architecture)
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or f"no {pattern} file"
        raise ValueError(f"{folder} holds {names}; leave the weights to evaluate only")
    if experiment.data.name not in IMAGES:
        raise ValueError(f"data.name is {experiment.data.name!r}; baselines are published for {', '.join(IMAGES)}")
    network = experiment.model.build(IMAGES[experiment.data.name], CLASSES, seed=experiment.seed)
    epoch = load(network, architecture, found[0])
    digest = hashlib.sha256(found[0].read_bytes()).hexdigest()
    return network, {"file": found[0].name, "sha256": digest, "epoch": epoch}


def load_kw(model: nn.Sequential, architecture: str, path: Path) -> int:
    """Put the weights of a file into the network; return the epoch that the file states, or 0.

    Raises ValueError if the file is not of this kind, is of another architecture, or names anything to be run.
    """
    content = pickles.read(path)
    networks = content.get("state_dict") if isinstance(content, dict) else None
    first = networks[0] if isinstance(networks, list) and networks else networks
    found, layers = pickles.state_dict(first, path), KW_LAYERS[architecture]
    names = {f"{there}.{kind}": f"{here}.{kind}" for here, there in layers.items() for kind in ("weight", "bias")}
    if set(names) != set(found):
        other = ", ".join(sorted(set(names) ^ set(found))[:3])
        raise ValueError(f"{path} has weights of another network: {other}, … do not match; choose model.architecture")
    weights = {names[name]: value for name, value in found.items()}
    for name, value in model.state_dict().items():
        if weights[name].shape != value.shape:
            shapes = f"{tuple(weights[name].shape)}, {architecture} needs {tuple(value.shape)}"
            raise ValueError(f"{path}: {name} has shape {shapes}")
    model.load_state_dict(weights)
    epoch = content.get("epoch", 0)
    return epoch if type(epoch) is int and epoch >= 0 else 0


def load_qw(model: nn.Sequential, architecture: str, path: Path) -> int:
    """Put the weights of a checkpoint into the network; return 0, because the checkpoint states no epoch.

    Raises ValueError if the file is not a checkpoint, and if its layers are not those of the network.
    """
    layers = list(_qw_layers(read_tensorflow(path), path))
    channels = 0
    for name, part in model.named_modules():
        if not isinstance(part, LipschitzConv2d | LipschitzLinear):
            continue
        kernel, bias = _taken(layers, part, name, path)
        if isinstance(part, LipschitzConv2d):
            channels = 2 * part.out_channels
        elif name.endswith("linear1"):  # our columns are in the order (C, H, W), theirs in (H, W, C)
            side = isqrt(kernel.shape[1] // channels)
            kernel = kernel.unflatten(1, (side, side, channels)).permute(0, 3, 1, 2).flatten(1)
        part.load_state_dict({"kernel.W": kernel, "bias": bias})
    if layers:
        shapes = ", ".join(str(tuple(kernel.shape)) for kernel, _ in layers[:3])
        raise ValueError(f"{path} has layers that {architecture} has not: {shapes}; state model.channels and hidden")
    return 0


FORMATS: Mapping[str, tuple[str, Callable[[nn.Sequential, str, Path], int]]] = {
    **dict.fromkeys(KW_LAYERS, ("*.pth", load_kw)),
    "qw": ("*.index", load_qw),
}
"""Architecture -> pattern of its published files, and their reader."""


def _qw_layers(variables: Mapping[str, Tensor], path: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield kernel ``(out, in, height, width)`` or ``(out, in)`` and bias of every layer, in natural order."""
    scopes: dict[str, list[Tensor]] = {}
    for name in sorted(variables, key=natural):
        if not OPTIMIZERS.fullmatch(name) and variables[name].ndim:
            if not bool(variables[name].isfinite().all()):
                raise ValueError(f"{path}: {name} holds NaN or infinite values")
            scopes.setdefault(name.rpartition("/")[0], []).append(variables[name])
    for scope, found in scopes.items():
        bias, kernel = min(found, key=Tensor.dim), max(found, key=Tensor.dim)
        if kernel.ndim == 1 and scope.split("/")[0] == LOSS:
            continue
        if len(found) != 2 or bias.ndim != 1 or kernel.ndim not in (2, 4):
            shapes = ", ".join(str(tuple(value.shape)) for value in found)
            raise ValueError(f"{path}: {scope!r} holds variables of shapes {shapes}; a layer has a kernel and a bias")
        yield (kernel.permute(3, 2, 0, 1) if kernel.ndim == 4 else kernel.mT), bias


def _taken(layers: list[tuple[Tensor, Tensor]], part: ConstrainedLayer, name: str, path: Path) -> tuple[Tensor, Tensor]:
    """Remove and return the first layer with the shape of a part of the network."""
    shape = part.kernel.get_parameter("W").shape
    for place, (kernel, bias) in enumerate(layers):
        if kernel.shape == shape and bias.shape == shape[:1]:
            return layers.pop(place)
    raise ValueError(f"{path} has no layer of shape {tuple(shape)} left for {name}; state model.channels and hidden")
