"""Atomic writes: new or old, never half; failures of the disk are clear and change nothing."""

import errno
import json
import math
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from lconvnet import atomic


def test_content_replaces_content_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folders" / "a.bin"
    for data in (b"first", b"", b"third" * 1000):
        atomic.write_bytes(path, data)
        assert path.read_bytes() == data
    assert [file.name for file in path.parent.iterdir()] == ["a.bin"]


def test_text_and_json_are_plain(tmp_path: Path) -> None:
    atomic.write_text(tmp_path / "t.csv", "a\nü\n")
    assert (tmp_path / "t.csv").read_bytes() == "a\nü\n".encode()
    atomic.write_json(tmp_path / "v.json", {"b": 0.1, "a": [1]})
    text = (tmp_path / "v.json").read_text()
    assert json.loads(text) == {"b": 0.1, "a": [1]}
    assert text.endswith("}\n")
    assert text.index("b") < text.index("a")


def test_json_refuses_what_json_has_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        atomic.write_json(tmp_path / "v.json", math.nan)
    assert list(tmp_path.iterdir()) == []


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    atomic.write_bytes(tmp_path / "a", b"")
    (tmp_path / "b").touch()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"]
    assert modes[0] == modes[1]


def test_safetensors_bytes_are_a_function_of_the_content(tmp_path: Path) -> None:
    tensors = {name: torch.arange(6.0).reshape(2, 3).T for name in "cab"} | {"scalar": torch.tensor(3)}
    for name in ("1", "2"):
        atomic.write_safetensors(tmp_path / name, tensors, metadata='{"epoch": 3}')
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    loaded = safetensors.torch.load_file(tmp_path / "1")
    assert all(torch.equal(loaded[name], value) for name, value in tensors.items())
    with safetensors.safe_open(tmp_path / "1", framework="pt") as file:
        assert file.metadata() == {"lconvnet": '{"epoch": 3}'}


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_is_a_clear_error_and_changes_nothing(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    atomic.write_bytes(path, b"old")

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if call == "write":
        monkeypatch.setattr(atomic, "_write_new", full)
    else:
        monkeypatch.setattr(os, call, full)
    with pytest.raises(
        atomic.WriteError, match=r"a\.bin: cannot be written \(No space left on device\).*free some space"
    ):
        atomic.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.bin"]


def test_the_file_of_another_writer_is_never_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is taken (a leftover, another machine on a shared disk) is an error, and stays as it is."""
    monkeypatch.setattr(atomic.secrets, "token_hex", lambda count: "taken")
    other = tmp_path / ".a.bin.taken.tmp"
    other.write_bytes(b"of another writer")
    with pytest.raises(atomic.WriteError, match="File exists"):
        atomic.write_bytes(tmp_path / "a.bin", b"new")
    assert other.read_bytes() == b"of another writer"


def test_a_leftover_of_this_process_number_is_no_hindrance(tmp_path: Path) -> None:
    leftovers = [tmp_path / f".a.bin.{os.getpid()}.{number}.tmp" for number in range(1000)]
    for leftover in leftovers:
        leftover.touch()
    atomic.write_bytes(tmp_path / "a.bin", b"new")
    assert all(leftover.exists() for leftover in leftovers)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_the_systems_own_full_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = open
    monkeypatch.setattr("builtins.open", lambda path, mode: original("/dev/full", "wb", buffering=0))
    with pytest.raises(atomic.WriteError, match="No space left on device"):
        atomic.write_bytes(tmp_path / "a.bin", b"new")
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(atomic.WriteError, match=r"file/a: cannot be written .*choose a folder"):
        atomic.write_bytes(tmp_path / "file" / "a", b"")
    with pytest.raises(atomic.WriteError, match="cannot be written"):
        atomic.write_bytes(tmp_path, b"")
    assert (tmp_path / "file").read_text() == ""
    assert len(list(tmp_path.iterdir())) == 1


def test_a_writer_killed_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    atomic.write_bytes(path, b"old")
    script = (
        "import os, signal, sys; sys.modules.update(safetensors=None)\n"
        f"exec(open({str(Path(atomic.__file__))!r}).read().replace('import safetensors.torch', '')"
        ".replace('from torch import Tensor', 'Tensor = object'))\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_bytes(sys.argv[1], b'new')\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2  # what the killed writer could not take away
    (tmp_path / ".other.1.0.tmp").touch()
    atomic.sweep(path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [".other.1.0.tmp", "a.bin"]


def test_appending_ends_a_torn_line_first(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "log.jsonl"
    atomic.append_text(path, "one\n")
    atomic.append_text(path, "tw")
    atomic.append_text(path, "three\n")
    assert path.read_text() == "one\ntw\nthree\n"


def test_appending_to_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.jsonl"
    atomic.append_text(path, "one\n")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(atomic.WriteError, match=r"log\.jsonl: cannot be written .*unchanged"):
        atomic.append_text(path, "two\n")
    assert path.read_text() == "one\n"
