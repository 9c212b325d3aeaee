"""Several processes that train one network: how they start, share a batch, add up their results and end.

Every process runs the whole program on its share of each batch. Gradients, running sums and requests to stop are added
up over all processes at fixed points, so all take the same path. Only the first one writes files and messages.
*A process that fails closes the connection, and a process that loses the connection ends*, so none waits for a process
that is gone.
"""

import atexit
import contextlib
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # takes as long to import as torch, so only a training imports it


# The signals that batch systems send before they kill (Windows has no SIGUSR1).
NOTICES = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
SIGNALS = (signal.SIGINT, *NOTICES)
SAME_WISH = 1.0  # seconds


class Interrupted(RuntimeError):  # noqa: N818 (a stop on request, not an error)
    """Training stopped on request, after saving its state. A command should exit with code 3."""


class Interruption:
    """Context that notes the `number` of the first SIGINT, SIGTERM or SIGUSR1.

    A second SIGINT acts as it did outside the context. Within a second of the first it counts as the same request,
    because a terminal and a parent process may both send it. Repeated SIGTERM and SIGUSR1 have no further effect: batch
    systems send them twice, and the run is already saving its state.

    Outside the main thread, where Python allows no handlers, the context does nothing.

    >>> with Interruption() as interruption:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     signal.raise_signal(signal.SIGTERM)
    ...     interruption.requested
    'SIGTERM'
    """

    def __init__(self) -> None:
        self.number = 0
        self._first = math.inf
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._request) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._previous:
            self._restore(next(iter(self._previous)))

    @property
    def requested(self) -> str:
        """The name of the signal; empty if there was none."""
        return signal.Signals(self.number).name if self.number else ""

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
        if number in NOTICES or number not in self._previous:
            return
        self._first = min(self._first, time.monotonic())
        if time.monotonic() - self._first > SAME_WISH:
            self._restore(signal.Signals(number))
            signal.raise_signal(number)

    def _restore(self, number: signal.Signals) -> None:
        signal.signal(number, self._previous.pop(number))


Precision = Literal["32-true", "bf16-mixed", "64-true"]
ACCELERATORS = ("auto", "cpu", "gpu", "cuda")
STARTED = "LCONVNET_FIRST_PROCESS"  # environment variable: the process that started those of a joint training
FAREWELL = timedelta(minutes=1)
T = TypeVar("T")


class Lost(Interrupted):
    """Another process of the training is gone, so this one stopped too; the saved state can be resumed."""


@dataclass(frozen=True)
class Processes:
    """The processes of a training as seen by one of them: its rank and their number; by default one process alone.

    `group` and `farewell` are process groups on the CPU, one for messages and one for the end.

    >>> Processes(rank=1, count=3).share(torch.arange(8)).tolist()
    [1, 4, 7]
    >>> Processes().gather(0.5, 2).tolist()
    [[0.5, 2.0]]
    """

    rank: int = 0
    count: int = 1
    group: Any = None
    farewell: Any = None

    @property
    def first(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def share(self, values: Tensor) -> Tensor:
        """This process's part of a joint batch: every `count`-th row, from row `rank` on; it may be empty."""
        return values[self.rank :: self.count]

    def gather(self, *values: float) -> Tensor:
        """The numbers of every process, `(count, len(values))` in float64, equal on all processes."""
        own = torch.tensor(values, dtype=torch.float64)
        rows = [own] if self.count == 1 else [torch.empty_like(own) for _ in range(self.count)]
        if self.count > 1:
            with _connected():
                dist.all_gather(rows, own, group=self.group)
        return torch.stack(rows)

    def from_first(self, work: Callable[[], T]) -> T:
        """Return on all processes the result of `work` on the first one."""
        found: list[Any] = [work() if self.first else None]
        if self.count > 1:
            with _connected():
                dist.broadcast_object_list(found, src=0, group=self.group)
        return found[0]

    def add_gradients_(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over the processes, in one reduction in the order of `parameters`.

        The same parameters must have a gradient on every process. The order of the terms depends only on the number of
        processes, so a resumed run gets the same sums as an undisturbed one.
        """
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.count == 1 or not gradients:
            return
        joint = torch.cat([gradient.reshape(-1) for gradient in gradients])
        with _connected():
            dist.all_reduce(joint)
        for gradient, part in zip(gradients, joint.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view(gradient.shape))

    @contextlib.contextmanager
    def ending_together(self, *joint: type[Exception]) -> Iterator[None]:
        """Ensure that no process waits for this one after the block, however the block ends.

        Errors of the kinds `joint` reach all processes at once: the first raises them and the others end with
        `SystemExit`. Processes that lose the connection also end with `SystemExit`, because the first one reports the
        cause.
        """
        try:
            yield
            self._meet()
        except joint as error:
            if not isinstance(error, Lost):
                self._meet()
            self._leave()
            if self.first:
                raise
            # Under torchrun every exit code counts; the process that started the others takes 0 for a quiet end.
            failed = isinstance(error, Lost) and dist.is_torchelastic_launched()
            raise SystemExit(3 if failed else 0) from error
        except BaseException:
            self._leave()
            raise

    def _meet(self) -> None:
        """Wait until every process has read its messages; an exit may cancel those under way."""
        if self.count > 1:
            with contextlib.suppress(Lost), _connected():
                dist.all_gather([torch.zeros(1) for _ in range(self.count)], torch.zeros(1), group=self.farewell)

    def _leave(self) -> None:
        if self.count > 1:
            _disconnect()


def is_first_process() -> bool:
    """Whether this process writes files and messages. Always true if one process trains alone.

    With `devices` above 1, and under torchrun, every process runs the whole script. Put code that must run once below
    `if is_first_process():`.

    >>> is_first_process()
    True
    """
    if _joined():
        return dist.get_rank() == 0
    if dist.is_torchelastic_launched():
        return os.environ["RANK"] == "0"
    return STARTED not in os.environ or os.environ.get("LOCAL_RANK", "0") == "0"


def configured(accelerator: str, precision: Precision, devices: int) -> "Fabric":
    """Fabric for `devices` processes on this machine, or for the torchrun job that this process belongs to.

    Starts no process. The environment is given, so that Fabric does not look for a cluster to join. Raises `ValueError`
    for an option that is unknown or not available here.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment

    if precision not in get_args(Precision):
        raise ValueError(f"precision={precision!r}: unknown; choose one of {', '.join(get_args(Precision))}")
    if accelerator not in ACCELERATORS:
        raise ValueError(f"accelerator={accelerator!r}: unknown; choose one of {', '.join(ACCELERATORS)}")
    if accelerator == "auto" and not torch.cuda.is_available():
        accelerator = "cpu"  # Fabric would choose MPS, which has no float64 for bounds and certificates
    if accelerator == "gpu" and not torch.cuda.is_available() and torch.backends.mps.is_available():
        raise ValueError("accelerator='gpu': is MPS here, which has no float64 for bounds and certificates; use 'cpu'")
    here, machines = _placement(devices)
    if here * machines > 1:
        _require_reachable(here, machines)
    options: dict[str, Any] = {
        "devices": here,
        "num_nodes": machines,
        "strategy": "ddp" if here * machines > 1 else "auto",
        "plugins": [TorchElasticEnvironment() if dist.is_torchelastic_launched() else LightningEnvironment()],
    }
    try:
        return Fabric(accelerator=accelerator, precision=precision, **options)
    except Exception as error:  # Fabric's own exceptions, for a device that is missing
        many = f", devices={here}" if here > 1 else ""
        fewer = ", or fewer devices" if many else ""
        raise ValueError(
            f"accelerator={accelerator!r}{many}: cannot be used here ({error}); use 'auto' or 'cpu'{fewer}"
        ) from error


def is_joint(fabric: "Fabric") -> bool:
    """Whether several processes train together."""
    from lightning_fabric.strategies import DDPStrategy

    return isinstance(fabric.strategy, DDPStrategy)


def launched(fabric: "Fabric") -> Processes:
    """Start the other processes, or join those that run already; returns when all are there.

    The other processes run this process's own command and call this function too.
    """
    if not is_joint(fabric):
        return Processes()
    if not _joined() and STARTED in os.environ and not dist.is_torchelastic_launched():
        threading.Thread(target=_end_with, args=(int(os.environ[STARTED]),), daemon=True).start()
    if not _joined():
        atexit.register(_disconnect)
    silent = contextlib.nullcontext() if is_first_process() else _ended_by_signals()
    os.environ.setdefault(STARTED, str(os.getpid()))
    with silent, _warnings_only("lightning_fabric"):
        _launch(fabric)
        with _connected():
            groups = dist.new_group(backend="gloo"), dist.new_group(backend="gloo", timeout=FAREWELL)
    return Processes(fabric.global_rank, fabric.world_size, *groups)


def _disconnect() -> None:
    """End gloo's threads while the interpreter lives: a thread that releases a tensor later aborts the process."""
    if _joined():
        dist.destroy_process_group()


def _launch(fabric: "Fabric") -> None:
    try:
        fabric.launch()
    except RuntimeError as error:
        raise ValueError(
            f"devices={fabric.world_size}: the processes could not meet ({_first_line(error)}); set MASTER_PORT to "
            "a free port, or look why one of them did not start"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _placement(devices: int) -> tuple[int, int]:
    """The number of processes on this machine, and of machines."""
    if not dist.is_torchelastic_launched():
        return devices, 1
    here, everywhere = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    if devices not in (1, here):
        raise ValueError(
            f"devices={devices}: torchrun has started {here} on this machine; start it with "
            f"--nproc-per-node {devices}, or leave devices at 1"
        )
    if everywhere % here:
        raise ValueError(
            f"torchrun has started {here} of {everywhere} processes on this machine; "
            "start it with the same --nproc-per-node on every machine"
        )
    return here, everywhere // here


def _require_reachable(here: int, machines: int) -> None:
    """Raise `ValueError` if the other processes could never join."""
    elastic, place = dist.is_torchelastic_launched(), os.environ.get("LOCAL_RANK")
    if _joined():
        if dist.get_world_size() != here * machines:
            raise ValueError(
                f"devices={here}: this command already runs as {dist.get_world_size()} processes; "
                "give every training in it the same number"
            )
    elif STARTED in os.environ:
        if elastic or place == "0":
            raise ValueError(
                f"devices={here}: the other processes of this command ended with an earlier training; start it again"
            )
    elif place is not None and not elastic:
        raise ValueError(f"devices={here}: LOCAL_RANK={place} is set, but not by torchrun; use that, or unset it")
    elif not elastic and not _can_start_again():
        raise ValueError(
            f"devices={here}: the other processes run the same command, but this is an interactive session; "
            "put the training into a script"
        )


def _can_start_again() -> bool:
    """Whether this process was started from a script or a module."""
    named = getattr(sys.modules["__main__"], "__spec__", None) is not None or Path(sys.argv[0]).is_file()
    return named and not hasattr(sys, "ps1")


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    """Explain the error if the processes cannot reach each other."""
    try:
        yield
    except RuntimeError as error:
        raise Lost(
            "another process of this training is gone: killed, out of memory, or ended by an error that it printed "
            f"({_first_line(error)}); go on from the last checkpoint with resume=True, on the command line --resume"
        ) from error


@contextlib.contextmanager
def _warnings_only(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGINT and SIGTERM end this process at once; Python cannot handle them while it waits for the others."""
    main = threading.current_thread() is threading.main_thread()
    previous = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS if main}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, even while it waits."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
