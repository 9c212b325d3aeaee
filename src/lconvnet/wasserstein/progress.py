"""How a critic's training shows itself: a bar on a terminal, a log line now and then elsewhere."""

import contextlib
import logging
from collections.abc import Callable, Iterator

from lconvnet.training.reporting import terminal_bar

logger = logging.getLogger("lconvnet")

LINES = 20  # of the log
OnStep = Callable[[int, float], None]
"""Called after every optimiser step with their number and the difference on its batch."""


@contextlib.contextmanager
def shown(steps: int, *, progress: bool) -> Iterator[OnStep]:
    """Yield what hears of every step: a bar on standard error if `progress` and that is a terminal, else the log."""
    with terminal_bar("critic  {task.description}", progress=progress) as bar:
        if bar is None:
            yield lambda done, value: _log(done, steps, value)
            return
        task = bar.add_task("", total=steps)
        yield lambda done, value: bar.update(task, completed=done, description=f"batch difference {value:.4f}")


def _log(done: int, steps: int, value: float) -> None:
    if done * LINES // steps > (done - 1) * LINES // steps:
        logger.info("critic step %d/%d  batch difference %.4f", done, steps, value)
