"""Baked networks as one safetensors file: weights, architecture and bound, nothing that could run code.

The architecture is JSON in the file's metadata, a list of operations from the literal table
`lconvnet.saving.architecture.OPERATIONS`: loading never imports anything by name. Whatever is read is hostile
until validated: sizes are bounded, the operations are first built without memory and their shapes compared
with the stored tensors, weights must be finite. The stored bound is a note for people; who certifies computes
it again from the weights (`lconvnet.lipschitz_bound`), which takes milliseconds.

>>> import tempfile, torch
>>> from torch import nn
>>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
>>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
>>> save(network, path, input_shape=(1, 2, 2))
>>> x = torch.ones(1, 1, 2, 2)
>>> torch.equal(load(path)(x), network(x)), describe(path).input_shape
(True, (1, 2, 2))
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import safetensors
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from lconvnet import atomic
from lconvnet.bounds import Bound, fingerprint, lipschitz_bound
from lconvnet.saving.architecture import Operation, Size, architecture, build

FORMAT = "lconvnet-network-1"
MAXIMAL_METADATA = 1_000_000
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class RecordedBound(BaseModel):
    """The Lipschitz bound at the time of saving, for people to read."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    upper: float
    lower: float | None
    level: str


class Description(BaseModel):
    """What a saved file says of itself: architecture, shape (C, H, W) of its images, bound, notes."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal["lconvnet-network-1"] = FORMAT
    architecture: Annotated[
        tuple[Annotated[Operation, Field(discriminator="op")], ...], Field(min_length=1, max_length=10_000)
    ]
    input_shape: tuple[Size, Size, Size] | None = None
    bound: RecordedBound
    class_names: tuple[str, ...] | None = None
    notes: Mapping[str, str | int | float | None] = {}


def save(
    network: nn.Module,
    path: str | Path,
    *,
    bound: Bound | None = None,
    input_shape: tuple[int, int, int] | None = None,
    class_names: tuple[str, ...] | None = None,
    notes: Mapping[str, str | int | float | None] | None = None,
) -> None:
    """Write a baked network with its architecture and bound, atomically.

    `bound` is computed where it is not given; `input_shape` is the (C, H, W) of the images, `class_names` has
    a name for each output. Raises ValueError for a module that is none of the baked operations and for a bound
    of another network or another shape, and `atomic.WriteError` where the file cannot be written.
    """
    data = encode(network, bound=bound, input_shape=input_shape, class_names=class_names, notes=notes)
    atomic.write_bytes(path, data)


def encode(
    network: nn.Module,
    *,
    bound: Bound | None = None,
    input_shape: tuple[int, int, int] | None = None,
    class_names: tuple[str, ...] | None = None,
    notes: Mapping[str, str | int | float | None] | None = None,
) -> bytes:
    """Return the bytes that `save` writes, a function of the arguments alone."""
    operations = architecture(network)
    if bound is None:
        bound = lipschitz_bound(network, input_shape=input_shape)
    elif bound.fingerprint != fingerprint(network):
        raise ValueError("bound is of other weights or another network than this one: leave it out")
    elif input_shape is not None and bound.input_shape not in (None, input_shape):
        raise ValueError(f"bound.input_shape={bound.input_shape} is not input_shape={input_shape}: leave the bound out")
    description = Description(
        architecture=operations,
        input_shape=input_shape,
        bound=RecordedBound(upper=bound.upper, lower=bound.lower, level=bound.level),
        class_names=class_names,
        notes=notes or {},
    )
    return atomic.encode_safetensors(network.state_dict(), metadata=description.model_dump_json())


def load(path: str | Path) -> nn.Sequential:
    """Return the network saved at `path`, in eval mode, without gradients, on the CPU.

    Raises ValueError for a file that is missing, truncated, pickled, foreign, or inconsistent.
    """
    description, tensors = _read(Path(path))
    with torch.device("meta"):
        network = build(description.architecture)
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    _check_tensors(Path(path), expected, tensors)
    network.load_state_dict(tensors, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def describe(path: str | Path) -> Description:
    """Return what the file says of itself, validated but not proved: the bound is as recorded at saving."""
    return _read(Path(path))[0]


def _read(path: Path) -> tuple[Description, dict[str, Tensor]]:
    if not path.is_file():
        raise ValueError(f"{path} is no file; name a model.safetensors written by lconvnet.save")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = (file.metadata() or {}).get("lconvnet", "")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} {_what_it_is(path)} ({error})") from None
    return _parse(path, metadata), tensors


def _what_it_is(path: Path) -> str:
    """Say why a file is not safetensors; asked only then, because any first byte may start a valid header."""
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith((b"\x80", b"PK\x03\x04")):
        return "holds pickled code, which is never loaded; save the network with lconvnet.saving.save"
    return "is truncated or no safetensors file; save or copy it again"


def _parse(path: Path, metadata: str) -> Description:
    if not metadata or len(metadata) > MAXIMAL_METADATA:
        raise ValueError(f"{path} has no description of a network; name a model.safetensors written by lconvnet.save")
    try:
        description = Description.model_validate_json(metadata)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise ValueError(f"{path} has a description that is refused: {where}: {problem['msg']}") from None
    names = [entry.name for entry in description.architecture]
    if len(set(names)) != len(names):
        raise ValueError(f"{path} has a description that is refused: two layers share a name")
    return description


def _check_tensors(path: Path, expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]) -> None:
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"{path} is inconsistent: {name} has shape {found.get(name)}, "
                f"its architecture needs {expected.get(name)}; save the network again"
            )
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES or not tensor.isfinite().all():
            raise ValueError(f"{path} is refused: {name} ({tensor.dtype}) holds values that are not finite floats")
