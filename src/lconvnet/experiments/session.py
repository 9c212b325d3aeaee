"""The sessions of a run, with time, machine and code: logs/sessions.jsonl, two lines per session.

A session is one process that trains or evaluates a run. It keeps the file locked while it lives. So no other process
works on the same run, and others can see that it is running. A session without a last line was killed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lconvnet import atomic
from lconvnet.experiments.loading import AnyExperiment
from lconvnet.experiments.run_folder import RunFolder, recorded
from lconvnet.experiments.trained_on import require_source
from lconvnet.training import Interrupted, is_first_process
from lconvnet.training.checks import is_free
from lconvnet.training.settings import versions

PACKAGE = Path(__file__).parents[1]
LINES = 2000  # of a sessions file; the rest is not read


@dataclass(frozen=True)
class Session:
    """One session, from its two lines; `outcome` is "killed" if the second is missing."""

    task: str
    started: str
    outcome: str
    error: str
    facts: dict[str, Any]


@contextlib.contextmanager
def session(folder: RunFolder, task: str) -> Iterator[None]:
    """Record that this process works on a run until the block ends, and how it ended.

    Raises ValueError if another process works on the same run, or a link in its folder leads elsewhere.
    """
    folder.refuse_links()
    atomic.append_text(folder.sessions, "")
    with atomic.confined(folder.path), _exclusively(folder):
        started = time.perf_counter()
        _append(folder, {"event": "start", "task": task, "time": _now(), **_circumstances()})
        outcome, error = "killed", ""
        try:
            yield
            outcome = "finished"
        except (Interrupted, KeyboardInterrupt):
            outcome = "interrupted"
            raise
        except BaseException as exception:
            outcome, error = "failed", f"{type(exception).__name__}: {' '.join(str(exception).split())}"
            raise
        finally:
            end = {"event": "end", "time": _now(), "outcome": outcome, "error": error}
            with contextlib.suppress(OSError):  # a full disk has been reported already
                _append(folder, {**end, "seconds": round(time.perf_counter() - started, 3), **_peak_memory()})


@contextlib.contextmanager
def training(
    experiment: AnyExperiment, folder: RunFolder, what: str, *, weights: Path | None, resume: bool
) -> Iterator[AnyExperiment]:
    """A session that trains a run. Yields the experiment to train, at least as long as the part already done.

    Of several processes only the first records it. Raises ValueError if the folder holds imported weights or a run that
    may not be continued, or if there is no run to start from.
    """
    folder.refuse_if_imported()
    if not resume and is_first_process():
        _refuse_longer(experiment, folder)
        folder.refuse_if_used()
    require_source(weights, folder)
    with session(folder, what) if is_first_process() else contextlib.nullcontext():
        found, section = recorded(folder), experiment.training
        done, asked = len(found.epochs) if found else 0, getattr(section, "epochs", math.inf)
        free = done > asked and is_free(getattr(experiment, "schedule", None), done, int(asked))
        longer = {"epochs": done} if free else {}
        yield experiment.model_copy(update={"training": section.model_copy(update=longer)})
        if not is_first_process():
            raise SystemExit(0)  # the first process saves and reports the result


def _refuse_longer(experiment: AnyExperiment, folder: RunFolder) -> None:
    """Raise ValueError, with both remedies, if a longer run is asked of one that has begun."""
    found, asked = recorded(folder), dict(experiment.training)
    key = "steps" if "steps" in asked else "epochs"
    done = found.settings.get(key, len(found.epochs)) if found else 0
    if 0 < done < asked[key]:
        raise ValueError(
            f"training.{key} is {asked[key]}, but {folder.path} is a run of {done}; go on with it (--resume), if its "
            "learning rates do not depend on its length, or start a new run from its weights: "
            f"lconvnet train CFG --from {folder.path} --out NEW --set training.{key}=..."
        )


def is_running(folder: RunFolder) -> bool:
    """Whether a living process works on a run (on file systems with locks)."""
    return atomic.is_locked(folder.sessions)


@contextlib.contextmanager
def undisturbed(folder: RunFolder) -> Iterator[None]:
    """Keep processes from beginning work on a run until the block ends.

    Raises ValueError if one works on it. A run without sessions has never been worked on, so nothing is created there.
    """
    with _exclusively(folder) if folder.sessions.exists() else contextlib.nullcontext():
        yield


def _exclusively(folder: RunFolder) -> contextlib.AbstractContextManager[None]:
    busy = f"{folder.path}: another process works on this run; wait for it, or choose another folder"
    return atomic.locked(folder.sessions, busy)


def sessions(folder: RunFolder) -> list[Session]:
    """Return the sessions of a run, oldest first, without incomplete lines."""
    if not folder.sessions.exists():
        return []
    found: list[Session] = []
    for line in folder.sessions.read_text(encoding="utf-8", errors="replace").splitlines()[-LINES:]:
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            values = dict(json.loads(line))
            if values.get("event") == "start":
                found.append(Session(str(values.get("task")), str(values.get("time")), "killed", "", values))
            elif found:
                outcome, error = str(values.get("outcome")), str(values.get("error"))
                last = found[-1]
                found[-1] = Session(last.task, last.started, outcome, error, {**last.facts, **values})
    return found


def _append(folder: RunFolder, values: dict[str, Any]) -> None:
    atomic.append_text(folder.sessions, json.dumps(values) + "\n")


def _circumstances() -> dict[str, Any]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    place = {"host": socket.gethostname(), "pid": os.getpid(), "hardware": device, "command": sys.argv}
    return {**place, "code": code_version(), "versions": versions(torch.device("cpu"))}


def code_version() -> str:
    """The commit of the source tree that this package runs from, with "+" if the tree was changed; "" outside one."""
    try:
        _git("ls-files", "--error-unmatch", "__init__.py")  # the surrounding tree may be another project's
        return _git("describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(PACKAGE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()


def _peak_memory() -> dict[str, float]:
    """Megabytes: resident memory of this process, and memory of the GPU if there is one."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    memory = {"peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)}
    if torch.cuda.is_available():
        memory["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return memory


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
