"""A lock on a file that lives as long as its process: whoever works on a run takes it, others look whether it is taken.

The file is opened for writing, because file systems that several machines share refuse a lock otherwise.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a POSIX system: processes are then not protected from each other
    fcntl = None

logger = logging.getLogger("lconvnet")

ATTEMPTS = 5
WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@contextlib.contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock of a file, created if it is missing, until the block ends or the process dies.

    Raises ValueError with the message `busy` if another process holds it.
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
    """Take the lock; retry, because a probing process also holds it briefly."""
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
