"""From the results of runs to tables: runs are read into one tidy frame, tables are its pivots, files come last."""

from lconvnet.report.runs import Found, Run, Skipped, find_runs, measurements
from lconvnet.report.tables import tables
from lconvnet.report.writing import Named, Written, export, export_tex, name_results

__all__ = [
    "Found",
    "Named",
    "Run",
    "Skipped",
    "Written",
    "export",
    "export_tex",
    "find_runs",
    "measurements",
    "name_results",
    "tables",
]
