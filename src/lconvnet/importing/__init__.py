"""Weights that others trained, as networks of this package; nothing in their files is ever run."""

from lconvnet.importing.runs import adopt, import_run

__all__ = ["adopt", "import_run"]
