"""Old `.pth` files, read by torch's weights-only reader: nothing in them is ever run or imported by name.

Besides tensors, such a file may hold objects of the package that wrote it, such as a table of metrics. The file names
each of them. Names that match `SKIPPED` are read as empty placeholders; all others are refused by name.
"""

from __future__ import annotations

import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

SKIPPED = re.compile(r"lconvnet(\.\w+)+|numpy\.(_?core\.multiarray\.(scalar|_reconstruct)|dtype|ndarray)")
REFUSED = re.compile(r"GLOBAL (\S+)|reduce for unrecognized function (.+)")
CALLS = ("INST", "OBJ", "EXT1", "EXT2", "EXT4", "STACK_GLOBAL", "NEWOBJ_EX")
UNNEEDED = (
    "torch.save never writes and weights do not need; nothing was run; save the weights with torch.save's own protocol"
)
PROTOCOL = 2  # of torch.save
PICKLES_OF_A_LEGACY_FILE = 4  # magic number, protocol, system, content
FACTORIES = ("bool", "dict", "float", "int", "set", "str", "tuple")  # of a table of metrics; none is called
SIZED = {"builtins.bytearray", "__builtin__.bytearray", "torch._utils._rebuild_qtensor"}
"""Objects that torch's reader would make in any size that a file of a few bytes states."""
ORDINARY = ("torch.", "collections.", "numpy.", "lconvnet.", "_codecs.")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
MAXIMAL_PICKLE = 16_000_000  # bytes; it holds names and shapes only
MAXIMAL_INSTRUCTIONS = 1_000_000  # forty per tensor; more take seconds to check


class Unfit(Exception):  # noqa: N818 (says what the file is)
    """The fault of a file, as the text that follows its name."""


class Skipped:
    """Stands for an object that is not needed: it accepts anything and does nothing."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...

    def __repr__(self) -> str:
        return "an object that is not read"


def read(path: Path) -> Any:
    """Return what torch.save wrote to `path`, with tensors on the CPU and foreign objects as `Skipped`.

    Both formats are read: archives, and files from before torch 1.6. Raises ValueError if the file is missing, damaged
    or compressed, or names anything to be run.
    """
    named: set[str] = set()
    try:
        if not path.is_file():
            raise Unfit("does not exist; name a .pth file")
        named.update(_globals(path))
        if sized := named & SIZED:
            raise Unfit(f"is refused: it asks for a {min(sized)}, which no weights need; nothing was run")
        known = {**{name: Skipped for name in named if SKIPPED.fullmatch(name)}, **ALLOWED}
        safe: list[Any] = [(value, name) for name, value in known.items()]
        with torch.serialization.safe_globals(safe), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch passes on every error of its zip and pickle readers
        raise ValueError(f"{path} {_reason(error, named)}") from None


def state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """Return tensors by name, checked to be finite floats. Raises ValueError for anything else.

    >>> sorted(state_dict({"weight": torch.ones(2)}, Path("a.pth")))
    ['weight']
    """
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds no weights by name; save model.state_dict()")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"{path}: {name!r} is a {type(value).__name__}; weights are tensors with names")
        fault = ""
        if value.layout != torch.strided or value.is_nested or value.device.type != "cpu":
            fault = "is not a dense tensor"
        elif value.dtype not in DTYPES:
            fault = f"has dtype {value.dtype}; weights are in {', '.join(str(dtype) for dtype in DTYPES)}"
        elif value.numel() * value.itemsize > value.untyped_storage().nbytes():
            fault = f"has shape {tuple(value.shape)}, more than the file holds; save a contiguous tensor"
        elif not bool(value.isfinite().all()):  # checked last, once the file is known to hold the values
            fault = "holds NaN or infinite values"
        if fault:
            raise ValueError(f"{path}: {name} {fault}")
    return {name: value.detach() for name, value in content.items()}


def by_module(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each module under its path, including its parametrizations, in the order of the file.

    >>> by_module({"a.bias": torch.ones(1), "a.parametrizations.weight.original": torch.ones(1)})["a"].keys()
    dict_keys(['bias', 'parametrizations.weight.original'])
    """
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in weights.items():
        place, found, leaf = f".{name}".partition(".parametrizations.")
        if found:
            place, leaf = place.removeprefix("."), f"parametrizations.{leaf}"
        else:
            place, _, leaf = name.rpartition(".")
        groups.setdefault(place, {})[leaf] = value
    return groups


def _empty(*_: object) -> dict[Any, Any]:
    return {}


ALLOWED: Mapping[str, Any] = {
    "collections.defaultdict": _empty,
    **{f"{place}.list": list for place in ("builtins", "__builtin__")},
    **{f"{place}.{name}": Skipped for place in ("builtins", "__builtin__") for name in FACTORIES},
}
"""Names that a file may use besides tensors and skipped objects: the table type that holds metrics."""


def _globals(path: Path) -> Iterator[str]:
    """Yield the names that the pickled part of a file refers to, without evaluating it."""
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            yield from _names(file, PICKLES_OF_A_LEGACY_FILE)
            return
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise Unfit("is a compressed archive; torch.save writes plain ones")
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise Unfit("is an archive whose parts overlap; torch.save writes each one once")
            (content,) = (entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl"))
            if content.file_size > MAXIMAL_PICKLE:
                raise Unfit(f"has {content.file_size} bytes of names; it is not a file of weights")
            with archive.open(content) as pickled:
                yield from _names(pickled, 1)  # pyright: ignore[reportArgumentType]


def _names(file: BinaryIO, pickles: int) -> Iterator[str]:
    for _ in range(pickles):
        foreign: list[str] = []
        protocol = PROTOCOL
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count >= MAXIMAL_INSTRUCTIONS:
                raise Unfit(
                    f"has more than {MAXIMAL_INSTRUCTIONS} instructions in its pickle; it is not a file of weights"
                )
            # Text (protocol 0), protocol 4 and later, and calls that torch's reader cannot see.
            is_text = opcode.arg is not None and opcode.arg.n == pickletools.UP_TO_NEWLINE
            if (is_text and opcode.name != "GLOBAL") or opcode.proto > 3 or opcode.name in CALLS:
                foreign.append(opcode.name)
            if opcode.name == "GLOBAL":
                yield str(argument).replace(" ", ".")
            if opcode.name == "PROTO":
                protocol = argument
        if foreign:  # raised only at the end, because any bytes may begin like a pickle
            worst = min(foreign, key=lambda name: name not in CALLS)
            raise Unfit(f"is refused: its pickle holds {worst}, which {UNNEEDED}")
        if protocol != PROTOCOL:
            raise Unfit(f"is refused: its pickle is of protocol {protocol}, which {UNNEEDED}")


def _reason(error: Exception, named: set[str]) -> str:
    if isinstance(error, Unfit):
        return str(error)
    if isinstance(error, PermissionError):
        return "cannot be read: permission denied"
    refused = REFUSED.search(str(error))
    strange = sorted(name for name in named - set(ALLOWED) if not name.startswith(ORDINARY))
    if "Can only" in str(error):
        return "holds an object with items of a class of its own, which cannot be left out; save trainer.net without it"
    if refused or strange:
        name = (refused[1] or refused[2]) if refused else strange[0]
        return f"is refused: it asks to run {name}, which no weights need; nothing was run"
    return "is not a file of weights that torch.save wrote, or is damaged; copy it again"
