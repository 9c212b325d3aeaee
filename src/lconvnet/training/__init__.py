"""Training: one readable loop on Lightning Fabric, resumable at any instant, judged on the validation split.

*The state of a run is a function of its settings, its seed and the number of steps done.*
"""

from lconvnet.training import schedules
from lconvnet.training.checkpoint import CheckpointError, load_best
from lconvnet.training.fit import fit
from lconvnet.training.folder import is_started, load_record
from lconvnet.training.interruption import Interrupted
from lconvnet.training.processes import is_first_process
from lconvnet.training.record import Epoch, Record
from lconvnet.training.state import Diverged

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
