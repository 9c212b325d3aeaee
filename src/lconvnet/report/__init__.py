"""From the results of runs to tables: runs are read, tables are a pure function of them, files are written last."""

from lconvnet.report.runs import Found, Run, Skipped, find_runs
from lconvnet.report.tables import tables
from lconvnet.report.writing import Written, consolidate, export

__all__ = ["Found", "Run", "Skipped", "Written", "consolidate", "export", "find_runs", "tables"]
