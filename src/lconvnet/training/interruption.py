"""SIGINT, SIGTERM and SIGUSR1 as a wish to stop at the next safe point instead of an exception anywhere."""

import math
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

# What batch systems send before they kill (Windows has no SIGUSR1).
NOTICES = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
SIGNALS = (signal.SIGINT, *NOTICES)
SAME_WISH = 1.0  # seconds


class Interrupted(RuntimeError):  # noqa: N818 (not an error of anybody)
    """Training stopped on request, after saving where it stood. A command should exit with code 3."""


class Interruption:
    """Context that notes the `number` of the first SIGINT, SIGTERM or SIGUSR1.

    A second SIGINT acts as it did outside: somebody is impatient; within a second of the first it is the same wish,
    which a terminal and a parent process may both send. SIGTERM and SIGUSR1 do nothing more however often
    they come: batch systems send them to a process twice, and its state is being saved.

    Outside the main thread, where Python allows no handlers, it does nothing.

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
        """The name of the signal, empty where there was none."""
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
