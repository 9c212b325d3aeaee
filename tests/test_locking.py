"""Locks: who holds one, who is told, and file systems that are shared or have none."""

import errno
import fcntl
import logging
import os

import pytest

from lconvnet import atomic


def test_one_holds_and_others_are_told(tmp_path):
    path = tmp_path / "lock"
    assert not atomic.is_locked(path)
    with atomic.locked(path, "busy"):
        assert atomic.is_locked(path)
        with pytest.raises(ValueError, match="busy"), atomic.locked(path, "busy"):
            pass
    assert path.exists() and not atomic.is_locked(path)


def test_the_file_is_open_for_writing_as_shared_disks_demand(tmp_path, monkeypatch):
    """NFS refuses an exclusive lock on a file that is open for reading only (flock(2))."""
    real = fcntl.flock

    def nfs(descriptor, operation):
        mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        if operation & fcntl.LOCK_EX and mode == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        real(descriptor, operation)

    monkeypatch.setattr(atomic.fcntl, "flock", nfs)
    path = tmp_path / "lock"
    with atomic.locked(path, "busy"):
        assert atomic.is_locked(path)


@pytest.mark.parametrize(("number", "goes_on"), [(errno.ENOLCK, True), (errno.ENOSYS, True), (errno.EBADF, False)])
def test_only_a_file_system_without_locks_goes_without(tmp_path, monkeypatch, caplog, number, goes_on):
    def refuse(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic.fcntl, "flock", refuse)
    if goes_on:
        with caplog.at_level(logging.WARNING), atomic.locked(tmp_path / "lock", "busy"):
            assert "this file system has no locks" in caplog.text
    else:
        with pytest.raises(OSError, match="Bad file"), atomic.locked(tmp_path / "lock", "busy"):
            pass
