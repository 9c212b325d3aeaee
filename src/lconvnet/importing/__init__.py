"""Weights that others trained, as networks of this package; nothing in their files is ever run."""

from lconvnet.importing.libraries import load_compared, load_orthogonium, load_torchlip
from lconvnet.importing.plain_networks import load_plain
from lconvnet.importing.runs import adopt, import_run

__all__ = ["adopt", "import_run", "load_compared", "load_orthogonium", "load_plain", "load_torchlip"]
