"""Run many experiments on this machine, a few at a time, each in its own process.

A failed or killed run does not affect the others. A finished run is never run again. So the same call continues after
a kill, a full disk, Ctrl-C or a corrected configuration. The files in a run's folder tell its progress.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal, Protocol, get_args

import torch

from lconvnet.experiments.loading import AnyExperiment, load_any
from lconvnet.experiments.run_folder import RunFolder, recorded
from lconvnet.experiments.session import Session, is_running, sessions
from lconvnet.experiments.tasks import results_of, task_of
from lconvnet.training import Record, is_started
from lconvnet.training.processes import SIGNALS

State = Literal["finished", "running", "trained", "interrupted", "failed", "invalid", "missing"]
STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True)
class Status:
    """A summary of a run. Accuracies are fractions, on the `images` that were evaluated (test, else validation); the
    certified one is at `eps`.

    finished: trained and evaluated · trained: not evaluated yet · interrupted: stopped or killed, can be resumed ·
    failed: ended by the error in `detail` · invalid: its cfg.yaml cannot be used · missing: not started.
    """

    path: Path
    state: State
    epoch: int = 0
    epochs: int = 0
    clean: float | None = None
    certified: float | None = None
    images: str = ""
    eps: float | None = None
    seconds: float = 0.0
    images_per_second: float | None = None
    peak_memory_mb: float | None = None
    device: str = ""
    detail: str = ""


def status(path: str | Path) -> Status:
    """Return the progress of the run in the folder `path`; `detail` describes any damage there."""
    folder = RunFolder(Path(path))
    past, record = sessions(folder), recorded(folder)
    experiment, error = _experiment(folder, record)
    state, detail = _state(folder, past, record, experiment, error)
    asked = record.settings.get("epochs") or getattr(experiment and experiment.training, "epochs", 0) if record else 0
    return Status(
        folder.path,
        state,
        epoch=len(record.epochs) if record else 0,
        epochs=max(int(asked), len(record.epochs)) if record else 0,
        **_accuracies(record, results_of(folder, record)),
        seconds=sum(_numbers(past, "seconds")),
        images_per_second=_throughput(folder),
        peak_memory_mb=max(_numbers(past, "peak_memory_mb"), default=None),
        device=_device(record),
        detail=detail,
    )


def is_finished(folder: RunFolder, *, test: bool = True, attacks: bool = True) -> bool:
    """Whether nothing is left to do: the run is trained to the end and, with `test`, measured as cfg.yaml asks,
    `attacks` included.

    Raises ValueError if cfg.yaml cannot be used, or states another experiment than was trained.
    """
    experiment = load_any(folder.config)
    task = task_of(experiment)
    task.require_stated(experiment, recorded(folder))
    done = task.finished(experiment, folder, test, attacks)
    return done is not None and (folder.path / task.product).exists()


def _experiment(folder: RunFolder, record: Record[Any] | None) -> tuple[AnyExperiment | None, str]:
    """The experiment in cfg.yaml, and the error if it is unusable."""
    try:
        experiment = load_any(folder.config)
        task_of(experiment).require_stated(experiment, record)
    except ValueError as error:
        return None, str(error)
    return experiment, ""


def count(rows: Iterable[Status]) -> dict[State, int]:
    """Return how many runs are in each state, without empty states."""
    found = [row.state for row in rows]
    return {state: found.count(state) for state in STATES if state in found}


def _state(
    folder: RunFolder, past: list[Session], record: Record[Any] | None, experiment: AnyExperiment | None, error: str
) -> tuple[State, str]:
    last = past[-1] if past else None
    if is_running(folder):
        return "running", f"{last.task} on {last.facts.get('host')}, since {last.started}" if last else ""
    if experiment is None:
        return "invalid", error
    task = task_of(experiment)
    done = task.finished(experiment, folder, True, False)
    if done is not None:
        outdated = task.outdated(experiment, folder)
        return ("trained", outdated) if outdated else ("finished", done)
    if last and last.outcome == "failed":
        return "failed", last.error
    if record and record.finished and task.finished(experiment, folder, False, False) is not None:
        return "trained", ""
    if last or is_started(folder.path):
        return "interrupted", f"{last.task} was {last.outcome}" if last else ""
    said = _last_line(folder.output)
    return ("failed", said) if said else ("missing", "")


def _last_line(path: Path) -> str:
    """Return the last message of a process that ended before its session began."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _accuracies(record: Record[Any] | None, results: dict[str, Any]) -> dict[str, Any]:
    """Return the accuracies of the test images, at the largest eps, or else those of the validation images, at the
    first eps; never a mixture."""
    if "accuracy" in results:
        rows = results.get("adv_robustness")
        eps = max(rows) if isinstance(rows, dict) and rows else None
        row = rows[eps] if isinstance(rows, dict) and isinstance(rows.get(eps), dict) else {}
        at = {"certified": row["lb"], "eps": eps} if "lb" in row else {}
        return {"clean": results["accuracy"], "images": "test", **at}
    if not record or not record.best_epoch or record.best.rank is None:
        return {}
    eps, certified = next(iter(record.best.certified.items()), (None, None))
    return {"clean": record.best.clean, "images": "validation", "certified": certified, "eps": eps}


def _numbers(past: list[Session], name: str) -> list[float]:
    """Return a fact from all sessions that have it."""
    found = (session.facts.get(name) for session in past)
    return [float(value) for value in found if isinstance(value, int | float)]


def _device(record: Record[Any] | None) -> str:
    """Return the device of the last training session, and the number of processes if above one."""
    versions = record.versions if record else {}
    device, processes = versions.get("device", ""), versions.get("processes")
    return f"{device} x {processes}" if processes else device


def _throughput(folder: RunFolder) -> float | None:
    """Return the median over epochs of the training images per second."""
    path = folder.path / "logs" / "timing.jsonl"
    if not path.exists():
        return None
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found.append(float(json.loads(line)["images_per_second"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return median(found) if found else None


STOPPING = (*SIGNALS, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
LONGEST_LINE = 2**20
INTERRUPTED = 3


@dataclass
class Plan:
    """The runs to carry out, and the reasons against the others."""

    todo: list[Path] = field(default_factory=list)
    finished: list[Path] = field(default_factory=list)
    running: list[Path] = field(default_factory=list)
    invalid: dict[Path, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """The end of a run's process: its exit code (negative: the signal that killed it), its last line, and whether it
    had been asked to stop."""

    code: int
    last_line: str
    asked: bool = False

    @property
    def interrupted(self) -> bool:
        """Whether it stopped on request, before or after it could save."""
        return self.code == INTERRUPTED or (self.asked and self.code < 0)

    @property
    def reason(self) -> str:
        """The end in words."""
        if self.code < 0:
            return f"killed by {signal.Signals(-self.code).name}"
        return self.last_line or f"exit code {self.code}"


class Watcher(Protocol):
    """Receives messages about the processes of a sweep and sends nothing back."""

    def says(self, run: Path, line: str) -> None:
        """Called when a run has started, or printed a line."""
        ...

    def ended(self, run: Path, outcome: Outcome) -> None:
        """Called when the process of a run has ended."""
        ...

    def stops(self) -> None:
        """Called when all processes have been asked to save and stop."""
        ...


def plan(runs: Sequence[Path], *, test: bool, attacks: bool) -> Plan:
    """Sort the folders of runs by what is left to do; `test` asks for an evaluation after the training."""
    result = Plan()
    for path in runs:
        folder = RunFolder(path)
        if is_running(folder):
            result.running.append(path)
            continue
        try:
            done = is_finished(folder, test=test, attacks=attacks)
            (result.finished if done else result.todo).append(path)
        except ValueError as error:
            result.invalid[path] = str(error)
    return result


def run_all(runs: Sequence[Path], arguments: Sequence[str], watcher: Watcher, *, jobs: int) -> dict[Path, Outcome]:
    """Call `lconvnet train RUN/cfg.yaml --resume` with further `arguments` for every run, `jobs` at a time.

    Each process gets its share of the processors, and one GPU if there are several. On SIGINT, SIGTERM, SIGUSR1 or
    SIGHUP the processes are asked to save and stop, no further ones start, and the outcomes so far are returned. A
    second SIGINT kills the processes. Raises ValueError for jobs below 1.
    """
    if jobs < 1:
        raise ValueError(f"jobs={jobs}: must be at least 1")
    return asyncio.run(_Sweep(arguments, jobs, watcher).run(runs))


class _Sweep:
    """The processes of one call."""

    def __init__(self, arguments: Sequence[str], jobs: int, watcher: Watcher) -> None:
        self.arguments, self.jobs, self.watcher = arguments, jobs, watcher
        self.processes: set[asyncio.subprocess.Process] = set()
        self.stopping = False

    async def run(self, runs: Sequence[Path]) -> dict[Path, Outcome]:
        waiting, outcomes = deque(runs), dict[Path, Outcome]()
        loop, jobs = asyncio.get_running_loop(), min(self.jobs, len(runs))
        for number in STOPPING:
            loop.add_signal_handler(number, self._stop, number)
        try:
            shares = [{**os.environ, **share(worker, jobs)} for worker in range(jobs)]
            await asyncio.gather(*(self._work(waiting, outcomes, environment) for environment in shares))
        finally:
            for number in STOPPING:
                loop.remove_signal_handler(number)
        return outcomes

    async def _work(self, waiting: deque[Path], outcomes: dict[Path, Outcome], environment: Mapping[str, str]) -> None:
        while waiting and not self.stopping:
            run = waiting.popleft()
            outcomes[run] = await self._process(run, environment)
            self.watcher.ended(run, outcomes[run])

    async def _process(self, run: Path, environment: Mapping[str, str]) -> Outcome:
        command = [sys.executable, "-m", "lconvnet", "train", str(run / "cfg.yaml"), "--resume", *self.arguments]
        self.watcher.says(run, "started")
        process = await asyncio.create_subprocess_exec(
            *command,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches only this process, which passes it on once
            limit=LONGEST_LINE,
        )
        self.processes.add(process)
        if self.stopping:
            process.terminate()
        try:
            last = await self._listen(run, process)
            return Outcome(await process.wait(), last, self.stopping)
        finally:
            self.processes.discard(process)
            if process.returncode is None:
                process.terminate()

    async def _listen(self, run: Path, process: asyncio.subprocess.Process) -> str:
        """Show and keep the output of a process until it ends; return its last line."""
        last = ""
        with _log(RunFolder(run).output) as keep:
            while process.stderr and (line := await _line(process.stderr)):
                keep(line)
                if text := line.decode(errors="replace").strip():
                    last = text
                    self.watcher.says(run, text)
        return last

    def _stop(self, number: int) -> None:
        if not self.stopping:
            self.watcher.stops()
        elif number != signal.SIGINT:
            return  # batch systems send a notice twice, and the processes are already saving
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                if self.stopping:
                    process.kill()
                else:
                    process.terminate()
        self.stopping = True


def share(worker: int, jobs: int) -> dict[str, str]:
    """Environment variables for one worker's share: threads, and a GPU if there are several.

    The user's own setting for threads stays.
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, available // jobs))}
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = named.split(",") if named is not None else [str(i) for i in range(torch.cuda.device_count())]
    return {**threads, **({"CUDA_VISIBLE_DEVICES": devices[worker % len(devices)]} if len(devices) > 1 < jobs else {})}


def exit_code(outcomes: Mapping[Path, Outcome], plan: Plan, *, complete: bool) -> int:
    """The exit code of the sweep: 1 a bug or a contradicted certificate, 2 the user's input, 3 not done yet, 0 done."""
    codes = {outcome.code for outcome in outcomes.values()}
    if 1 in codes:
        return 1
    if plan.invalid or any(outcome.code > 0 and not outcome.interrupted for outcome in outcomes.values()):
        return 2
    return 0 if complete and codes <= {0} and not plan.running else INTERRUPTED


async def _line(stream: asyncio.StreamReader) -> bytes:
    try:
        return await stream.readline()
    except ValueError:  # the line is longer than the limit: take the part there is
        return await stream.read(LONGEST_LINE)


@contextlib.contextmanager
def _log(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Yield a function that appends to a log; it does nothing if the log cannot be written."""
    with contextlib.ExitStack() as stack:
        file = None
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(path, "ab", buffering=0))

        def keep(line: bytes) -> None:
            with contextlib.suppress(OSError):
                if file:
                    file.write(line)

        yield keep
