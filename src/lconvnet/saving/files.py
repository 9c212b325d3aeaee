"""Baked networks as one safetensors file: weights, architecture and bound, and nothing that could run code.

The architecture is JSON in the file's metadata, a list of operations from the table
`lconvnet.saving.architecture.ENTRIES`: loading never imports anything by name. A file counts as hostile until it is
validated. Sizes are bounded, the operations are first built without memory and their shapes compared with the stored
tensors, and weights must be finite. The memory that one image takes in the network is counted from shapes alone, before
anything is computed. The stored bound is a note for people; to certify, compute it again from the weights
(`lconvnet.lipschitz_bound`), which takes milliseconds.

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

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain, zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors
import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticSerializationError
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lconvnet import allowance, atomic
from lconvnet.bounds import Bound, fingerprint, lipschitz_bound, program, tensors_of, trace
from lconvnet.bounds.attributes import difference
from lconvnet.bounds.operations import Size
from lconvnet.ops.images import checked_shape
from lconvnet.saving.architecture import MOST, Layer, architecture, build, known_classes, problem, unique

FORMAT = "lconvnet-network-1"
MAXIMAL_METADATA = 1_000_000
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

EACH = 32
"""Bytes per number: reading and certifying a network holds two images in float64, alone and in a batch."""

PATCH = 16
"""Bytes per number in a patch: two images in float64."""


def _distinct(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if names and len(set(names)) < len(names):
        raise ValueError("two outputs have one name; give each its own")
    return names


class RecordedBound(BaseModel):
    """The Lipschitz bound at the time of saving, for people to read."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    upper: float
    lower: float | None
    level: str


class Description(BaseModel):
    """The metadata of a saved file: architecture, shape of one input such as (C, H, W), bound and notes."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    format: Literal["lconvnet-network-1"] = FORMAT
    architecture: Annotated[tuple[Layer, ...], Field(min_length=1, max_length=MOST), AfterValidator(unique)]
    input_shape: Annotated[tuple[Size, ...], Field(min_length=1, max_length=8)] | None = None
    bound: RecordedBound
    class_names: Annotated[tuple[str, ...] | None, AfterValidator(_distinct)] = None
    notes: Mapping[str, str | int | float | None] = {}


Notes = Mapping[str, str | int | float | None]
"""Further metadata for people to read."""


def save(
    network: nn.Module,
    path: str | Path,
    *,
    bound: Bound | None = None,
    input_shape: Sequence[int] | None = None,
    class_names: tuple[str, ...] | None = None,
    notes: Notes | None = None,
    classes: Sequence[type[nn.Module]] = (),
) -> None:
    """Write a baked network with its architecture and bound, atomically, after a check that the file restores it.

    Args:
        network: a baked network.
        path: of the file.
        bound: of the network; computed if it is not given.
        input_shape: of one input without the batch, such as (C, H, W).
        class_names: one name per output.
        notes: further metadata for people to read.
        classes: classes of your own in the network. An instance is saved as its numbers, strings, lists of those,
            tensors and modules, and `load` needs the classes again. Classes that were given to
            `lconvnet.register_operation` with `save` are known already.

    Raises:
        ValueError: if a module is not a baked operation, if a file would not restore it exactly, if the bound belongs
            to another network or shape, or if there is not one name per output.
        atomic.WriteError: if the file cannot be written.
    """
    data = encode(network, bound=bound, input_shape=input_shape, class_names=class_names, notes=notes, classes=classes)
    atomic.write_bytes(atomic.as_path(path), data)


def encode(
    network: nn.Module,
    *,
    bound: Bound | None = None,
    input_shape: Sequence[int] | None = None,
    class_names: tuple[str, ...] | None = None,
    notes: Notes | None = None,
    classes: Sequence[type[nn.Module]] = (),
) -> bytes:
    """Return the bytes that `save` writes. They depend on the arguments alone."""
    try:
        operations = architecture(network, classes)
    except RecursionError:
        raise ValueError("network holds modules within modules without end: write it as one sequence") from None
    shape = None if input_shape is None else checked_shape(input_shape)
    if bound is None:
        bound = lipschitz_bound(network, input_shape=shape)
    elif not isinstance(bound, Bound):
        raise ValueError(f"bound is a {type(bound).__name__}: leave it out, or use lipschitz_bound(network)")
    else:
        _check_bound(bound, network, shape)
    if not math.isfinite(bound.upper):
        raise ValueError(
            f"bound.upper={bound.upper}: the weights overflow, so nothing holds of the network; train again"
        )
    try:
        description = Description(
            architecture=operations,
            input_shape=shape,
            bound=RecordedBound(upper=bound.upper, lower=bound.lower, level=bound.level),
            class_names=class_names,
            notes=notes or {},
        )
        metadata = description.model_dump_json()
    except ValidationError as error:
        raise ValueError(f"network cannot be saved: {problem(error)}") from None
    except PydanticSerializationError as error:
        raise ValueError(f"network cannot be saved: its class_names or notes are not text in UTF-8 ({error})") from None
    if shape is not None and outputs(network, shape) is None:
        raise ValueError(
            f"network cannot be saved: what it makes of an image of shape {shape} depends on values, so nobody could "
            "tell how much memory it takes: leave input_shape out"
        )
    _check_names("network", network, description)
    if len(metadata) > MAXIMAL_METADATA:
        raise ValueError(
            f"network cannot be saved: its description with notes has {len(metadata)} letters, at most "
            f"{MAXIMAL_METADATA} are read: shorten the notes"
        )
    tensors = {name: tensor.detach() for name, tensor in tensors_of(network).items()}
    read = _built("network", _parse("network", metadata), classes)
    if extra := tensors.keys() - read.state_dict().keys():
        raise ValueError(f"network has a tensor {min(extra)!r}, which its module does not have when built: remove it")
    _check_same(network, _filled("network", read, tensors))
    return atomic.encode_safetensors(tensors, metadata=metadata)


def _check_bound(bound: Bound, network: nn.Module, shape: tuple[int, ...] | None) -> None:
    if shape is not None and bound.input_shape not in (None, shape):
        raise ValueError(f"bound.input_shape={bound.input_shape} is not input_shape={shape}: leave the bound out")
    read = program(trace(network, bound.input_shape))
    if bound.fingerprint != fingerprint(network) or bound.program not in ("", read):
        raise ValueError("bound is of other weights or another network than this one: leave it out")


def _check_names(source: str, network: nn.Module, description: Description) -> None:
    """Refuse class names if there is not one per output. The check needs to know the input shape."""
    names, shape = description.class_names, description.input_shape
    found = None if names is None or shape is None else outputs(network, shape)
    if names is not None and found not in (None, (len(names),)):
        many = " x ".join(map(str, found or ())) or "no"
        raise ValueError(f"{source} has {len(names)} class_names for {many} outputs; give one name for each output")


def _check_same(network: nn.Module, read: nn.Module) -> None:
    """Refuse a network that differs from the one that its file restores, module by module."""
    pairs = zip_longest(*(part.named_modules(remove_duplicate=False) for part in (network, read)), fillvalue=("", None))
    for (name, module), (other_name, other) in pairs:
        if module is None or other is None or name != other_name or type(module) is not type(other):
            raise ValueError(
                f"network has a module {name!r} that would be read as {other_name!r} ({type(other).__name__})"
            )
        if found := difference(module, other):
            attribute, value, changed = found
            raise ValueError(
                f"layer {name!r} ({type(module).__name__}) cannot be saved: it has {attribute}={value}, which would be "
                f"read as {changed}; build a new one"
            )
    found = tensors_of(read)
    for name, tensor in tensors_of(network).items():
        if not torch.equal(tensor, found[name]):
            raise ValueError(
                f"network tensor {name!r} would be read as other numbers: its module changes what it loads"
            )


def load(path: str | Path, *, classes: Sequence[type[nn.Module]] = ()) -> nn.Sequential:
    """Return the network saved at `path`, in eval mode, without gradients, on the CPU.

    `classes` are classes of your own that the file may hold; it never imports one. Raises ValueError if the file is
    missing, truncated, pickled, foreign or inconsistent, if it holds a class that is not given, or if one image of its
    `input_shape` would take more memory than a file of its size may cause (`lconvnet.allowance`). If the file has no
    `input_shape`, only its weights count.
    """
    path = atomic.as_path(path)
    description, tensors = _read(path)
    network = _filled(str(path), _built(str(path), description, classes), tensors)
    if description.input_shape is not None:
        require_room(network, description.input_shape, path.stat().st_size, str(path))
    _check_names(str(path), network, description)
    return network


def _built(source: str, description: Description, classes: Sequence[type[nn.Module]]) -> nn.Sequential:
    """The network of a description on the meta device, which takes no memory."""
    try:
        with torch.device("meta"):
            return build(description.architecture, known_classes(classes)).eval()
    except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:  # no such module
        raise ValueError(
            f"{source} has an architecture that is refused: {error.args[0] if error.args else error}"
        ) from None


def _filled(source: str, network: nn.Sequential, tensors: Mapping[str, Tensor]) -> nn.Sequential:
    """The network with these tensors, shared and not copied."""
    _check_tensors(source, network.state_dict(), tensors)
    network.load_state_dict(tensors, strict=True, assign=True)
    return network.requires_grad_(False)


def describe(path: str | Path) -> Description:
    """Return the metadata of a file, validated but not proved: the bound is the one recorded at saving."""
    return _read(atomic.as_path(path))[0]


def _read(path: Path) -> tuple[Description, dict[str, Tensor]]:
    try:
        if not path.is_file():
            raise ValueError(f"{path} is not a file; name a model.safetensors written by lconvnet.save")
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = (file.metadata() or {}).get("lconvnet", "")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (safetensors.SafetensorError, AttributeError, RuntimeError, OverflowError) as error:  # or of its dtypes
        raise ValueError(f"{path} {_what_it_is(path)} ({error})") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error})") from None
    return _parse(str(path), metadata), tensors


def _what_it_is(path: Path) -> str:
    """Say why a file that failed to load is not safetensors. (Any first byte may start a valid header.)"""
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith((b"\x80", b"PK\x03\x04")):
        return "holds pickled code, which is never loaded; save the network with lconvnet.saving.save"
    return "is truncated or not a safetensors file; save or copy it again"


def _parse(source: str, metadata: str) -> Description:
    if not metadata or len(metadata) > MAXIMAL_METADATA:
        raise ValueError(f"{source} has no description of a network; name a model.safetensors written by lconvnet.save")
    try:
        return Description.model_validate_json(metadata)
    except ValidationError as error:
        raise ValueError(f"{source} has a description that is refused: {problem(error)}") from None


def _check_tensors(source: str, expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Refuse shapes that differ from the architecture, non-float dtypes for floats, and numbers that are not finite."""
    needed, found = ({name: tuple(tensor.shape) for name, tensor in named.items()} for named in (expected, tensors))
    for name in sorted(needed.keys() | found.keys()):
        if needed.get(name) != found.get(name):
            raise ValueError(
                f"{source} is inconsistent: {name} has shape {found.get(name)}, "
                f"its architecture needs {needed.get(name)}; save the network again"
            )
    for name, tensor in tensors.items():
        alike = tensor.dtype in DTYPES if expected[name].is_floating_point() else tensor.dtype == expected[name].dtype
        if not alike or not tensor.isfinite().all():
            raise ValueError(f"{source} is refused: {name} ({tensor.dtype}) holds values that are not finite floats")


def require_room(network: nn.Module, input_shape: tuple[int, ...], size: int, what: str) -> None:
    """Raise `ValueError` if one image in a network of `size` bytes takes more memory than allowed, or is not countable.

    The count covers all tensors that are alive at once, in any module, and the patches that a convolution lays out as a
    matrix.
    """
    about = f"{what}: an image of shape {tuple(input_shape)} in it"
    counting = _Counting(size, about)
    counting.need(EACH * math.prod(input_shape))
    try:
        with counting:
            _shapes(network, input_shape)
    except counting.TooLargeError as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # the same
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{about} does not fit, or takes memory that shapes do not tell: {reason}") from None


def outputs(network: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape of one output, from shapes alone; None if they do not tell.

    >>> outputs(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), (1, 2, 2))
    (3,)
    """
    with suppress(Exception):  # a foreign forward pass may raise anything for an input without values
        return tuple(_shapes(network, input_shape).shape[1:])
    return None


@torch.no_grad()
def _shapes(network: nn.Module, input_shape: tuple[int, ...]) -> Tensor:
    """The output of one image, without its numbers."""
    tensors = chain(network.named_parameters(), network.named_buffers())  # a tied tensor appears once
    held = {name: value.to("meta") for name, value in tensors}
    dtype = next((value.dtype for value in held.values() if value.is_floating_point()), None)
    return torch.func.functional_call(network, held, (torch.empty(1, *input_shape, device="meta", dtype=dtype),))


class _Counting(TorchDispatchMode):
    """Sees every operation and refuses one if the tensors alive at once would take too much memory."""

    class TooLargeError(ValueError):
        """More memory than allowed."""

    def __init__(self, size: int, what: str) -> None:
        super().__init__()
        self.size, self.what = size, what
        self.alive: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.alive = {storage: held for storage, held in self.alive.items() if not storage.expired()}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.alive[StorageWeakRef(storage)] = len(storage) // tensor.element_size()
        self.need(EACH * sum(self.alive.values()) + PATCH * _patches(func, args, result))
        return result

    def need(self, size: int) -> None:
        """Raise `TooLargeError` if `size` bytes are too many."""
        allowance.require(size, self.size, self.what, self.TooLargeError)


def _patches(function: Any, args: Any, result: Any) -> int:
    """Entries of the matrix of patches in a convolution: one patch per pixel of the smaller side.

    With groups, two such matrices exist at once: the next is made before the last is freed.
    """
    if function is not torch.ops.aten.convolution.default:
        return 0
    image, weight, transposed, groups = args[0], args[1], args[6], args[8]
    return min(groups, 2) * weight[0].numel() * math.prod((image if transposed else result).shape[2:])
