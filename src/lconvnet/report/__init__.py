"""From the results of runs to tables: runs are read, tables are a pure function of them, files are written last."""

from lconvnet.report.named import Named, name_results
from lconvnet.report.runs import Found, Run, Skipped, find_runs
from lconvnet.report.tables import tables
from lconvnet.report.writing import Written, export, export_tex

__all__ = [
    "Found",
    "Named",
    "Run",
    "Skipped",
    "Written",
    "export",
    "export_tex",
    "find_runs",
    "name_results",
    "tables",
]
