"""Training: one loop on Lightning Fabric for every task, resumable at any instant.

*The state of a run is a function of its settings, its seed and the number of steps done.*
"""

from typing import TYPE_CHECKING, Any

from lconvnet.training import schedules
from lconvnet.training.checkpoint import load_best
from lconvnet.training.folder import is_started
from lconvnet.training.loop import Diverged
from lconvnet.training.processes import Interrupted, is_first_process
from lconvnet.training.record import CheckpointError, Epoch, Record, load_record

if TYPE_CHECKING:
    from lconvnet.tasks.classification import fit

__all__ = [
    "CheckpointError",
    "Diverged",
    "Epoch",
    "Interrupted",
    "Record",
    "fit",
    "is_first_process",
    "is_started",
    "load_best",
    "load_record",
    "schedules",
]


def __getattr__(name: str) -> Any:
    """Look up `fit`, which lives in `lconvnet.tasks`; that package is built on this one."""
    if name == "fit":
        from lconvnet.tasks.classification import fit

        return fit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
