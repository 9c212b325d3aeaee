"""Atomic writes: a file holds its old content or its new content, never half of each.

Bytes go to a temporary file in the same folder, are flushed to the disk, and replace the target in one rename. Then
the folder itself is flushed, so that a power cut cannot undo the rename. A process killed at any instant leaves the
previous file intact, and at worst a `.NAME.*.tmp` beside it. Every failure of the operating system (full disk,
unwritable folder, a folder in the file's place) is a `WriteError` that names the file and the cause.

A lock lives as long as its process. A process that works on a run holds its lock; others can ask whether it is held.
The lock file is opened for writing, because shared file systems refuse a lock otherwise.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

try:
    import fcntl
except ImportError:  # not a POSIX system: processes are then not protected from each other
    fcntl = None

logger = logging.getLogger("lconvnet")

ATTEMPTS = 5
WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@contextlib.contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock of a file until the block ends or the process dies; create the file if it is missing.

    Raises ValueError with the message `busy` if another process holds the lock.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not _taken(descriptor, path):
            raise ValueError(busy)
        yield
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Return whether a living process holds the lock of a file (on file systems with locks)."""
    if fcntl is None or not path.exists():
        return False
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def _taken(descriptor: int, path: Path) -> bool:
    """Take the lock. Retry, because a probing process also holds it briefly."""
    if fcntl is None:
        return True
    for _ in range(ATTEMPTS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.05)
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            logger.warning("%s: this file system has no locks (%s); start no other process on it", path, error.strerror)
            return True
    return False


_FOLDERS: ContextVar[tuple[Path, ...]] = ContextVar("folders", default=())


class WriteError(OSError):
    """A file could not be written; its previous content is untouched."""


@contextlib.contextmanager
def confined(folder: Path) -> Iterator[None]:
    """Refuse every write in the block that would go through a symbolic link below `folder`."""
    token = _FOLDERS.set((*_FOLDERS.get(), folder))
    try:
        yield
    finally:
        _FOLDERS.reset(token)


def as_path(path: object) -> Path:
    """Return the path of a file. Raises ValueError for anything but a text or a path.

    >>> as_path("a/b.safetensors").name
    'b.safetensors'
    """
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"path={path!r} is a {type(path).__name__}: pass the path of a file as a text or a Path")
    return Path(path)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` atomically, creating the folders above it.

    Raises `WriteError` if the disk is full or the folder cannot be written; `path` then keeps its old content.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "runs" / "a.bin"
    >>> write_bytes(path, b"new")
    >>> path.read_bytes(), [file.name for file in path.parent.iterdir()]
    (b'new', ['a.bin'])
    """
    path = Path(path)
    _require_confined(path.parent)  # a link in the file's own place is replaced
    # Random, because process numbers repeat on other machines of a shared disk and after a kill.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    with _writing(path):
        _write_new(temporary, data)
        with _undone(lambda: temporary.unlink(missing_ok=True)):
            os.replace(temporary, path)
        _sync_folder(path.parent)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically; newlines are written as they are. See `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any, *, indent: int | None = 2) -> None:
    """Write `value` as JSON with a final newline, atomically, keys in their own order.

    Equal values give equal bytes. Raises `ValueError` for NaN and infinities, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], *, metadata: str = "") -> None:
    """Write named tensors as a safetensors file, atomically.

    `metadata` is stored under the single key `lconvnet`. The format does not order several keys; with one key, equal
    content gives equal bytes. Tensors are copied to the CPU, so views and shared memory are fine.
    """
    write_bytes(path, encode_safetensors(tensors, metadata=metadata))


def encode_safetensors(tensors: Mapping[str, Tensor], *, metadata: str = "") -> bytes:
    """Return the bytes that `write_safetensors` writes; they depend on the arguments alone."""
    owned = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(owned, metadata={"lconvnet": metadata})


def append_text(path: str | Path, text: str) -> None:
    """Add lines to `path` and wait until the disk has them. A torn last line there is ended first.

    A process killed meanwhile leaves at worst a torn last line. If the disk is full or the folder cannot be written,
    raises `WriteError` and leaves the file as long as it was.
    """
    path = Path(path)
    _require_confined(path)
    with _writing(path), open(path, "a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        with _undone(lambda: os.ftruncate(file.fileno(), size)):
            file.seek(max(0, size - 1))
            data = memoryview((b"" if file.read(1) in (b"", b"\n") else b"\n") + text.encode())
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())


def refuse_links(folder: Path, *paths: Path) -> None:
    """Raise ValueError if the way from `folder` to one of `paths` below it goes through a symbolic link.

    A write into somebody else's folder must not land elsewhere. Links on the way to `folder` itself are the user's own.
    """
    for path in paths:
        for place in (path, *path.parents):
            if place == folder:
                break
            if place.is_symlink():
                raise ValueError(f"{place} is a symbolic link, and nothing is written through it; put a folder there")


def _require_confined(path: Path) -> None:
    for folder in _FOLDERS.get():
        if folder in path.parents:
            refuse_links(folder, path)


def sweep(path: str | Path) -> None:
    """Remove the temporary files that killed writers of `path` left beside it.

    The caller must hold a lock, so that nobody else is writing `path`.
    """
    path = Path(path)
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        with contextlib.suppress(OSError):
            leftover.unlink()


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Make the folders above a file. Turn every failure of the operating system in the block into a WriteError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise WriteError(
            f"{path}: cannot be written ({error.strerror or error}), what stood there is unchanged; "
            "free some space on the disk or choose a folder that you may write to"
        ) from error


@contextlib.contextmanager
def _undone(undo: Callable[[], object]) -> Iterator[None]:
    """If the block fails (full disk, interrupt), take back what it has written."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            undo()
        raise


def _write_new(path: Path, data: bytes) -> None:
    """Create `path`, write all of `data` and wait until the disk has it. If this fails, remove `path`."""
    with open(path, "xb") as file, _undone(lambda: path.unlink(missing_ok=True)):
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Wait until the disk has the folder's new entry (a no-op if folders cannot be opened)."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
