"""SIGINT and SIGTERM as a wish to stop at the next safe point instead of an exception anywhere."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(RuntimeError):  # noqa: N818 (not an error of anybody)
    """Training stopped on request, after saving where it stood. A command should exit with code 3."""


class Interruption:
    """Context that notes the `number` of the first SIGINT or SIGTERM; a second one acts as it did outside.

    Outside the main thread, where Python allows no handlers, it does nothing.

    >>> with Interruption() as interruption:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     signal.Signals(interruption.number).name
    'SIGTERM'
    """

    def __init__(self) -> None:
        self.number = 0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._request) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)
