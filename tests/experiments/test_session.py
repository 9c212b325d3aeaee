"""Sessions: what worked on a run and how it ended, one at a time, seen from outside."""

import json
import subprocess
import sys

import pytest

from lconvnet.experiments.run_folder import RunFolder
from lconvnet.experiments.session import code_version, is_running, session, sessions
from lconvnet.training import Interrupted

HOLD = """
import sys
from pathlib import Path
from lconvnet.experiments.run_folder import RunFolder
from lconvnet.experiments.session import session
with session(RunFolder(Path(sys.argv[1])), "train"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def test_a_session_says_where_with_what_and_how_long(folder):
    with session(folder, "train"):
        assert is_running(folder)
    assert not is_running(folder)
    (found,) = sessions(folder)
    assert (found.task, found.outcome, found.error) == ("train", "finished", "")
    assert found.facts["versions"]["torch"] and found.facts["host"] and found.facts["command"]
    assert found.facts["seconds"] >= 0 and found.facts["peak_memory_mb"] > 10


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (Interrupted("later"), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
        (ValueError("lr\nis 3"), "failed"),
        (MemoryError(), "failed"),
    ],
)
def test_the_end_of_a_session_is_kept(folder, error, outcome):
    with pytest.raises(type(error)), session(folder, "evaluate"):
        raise error
    (found,) = sessions(folder)
    assert found.outcome == outcome
    assert found.error == ("ValueError: lr is 3" if isinstance(error, ValueError) else found.error)


def test_another_process_is_kept_out_and_a_killed_one_leaves_the_run_free(folder):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with other:
        assert other.stdout.readline() == b"held\n"
        assert is_running(folder)
        with pytest.raises(ValueError, match="another process works on this run"), session(folder, "train"):
            pass
        other.kill()
    assert not is_running(folder)
    assert [found.outcome for found in sessions(folder)] == ["killed"]
    with session(folder, "train"):
        pass
    assert [found.outcome for found in sessions(folder)] == ["killed", "finished"]


def test_torn_lines_are_left_out(folder):
    with session(folder, "train"):
        pass
    with open(folder.sessions, "ab") as file:
        file.write(b'{"event": "sta')
    with session(folder, "evaluate"):
        pass
    assert [found.task for found in sessions(folder)] == ["train", "evaluate"]
    folder.sessions.write_text('[]\n3\n{"event": "end"}\nnull\n\xff')
    assert sessions(folder) == []


def test_a_full_disk_at_the_end_does_not_hide_the_error(folder, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    def work():
        with session(folder, "train"):
            monkeypatch.setattr("os.fsync", full)
            raise RuntimeError("itself")

    with pytest.raises(RuntimeError, match="itself"):
        work()
    assert [found.outcome for found in sessions(folder)] == ["killed"]


def test_the_code_is_named_by_its_commit():
    version = code_version()
    assert version == "" or len(version.rstrip("+")) >= 7
    json.dumps(version)
