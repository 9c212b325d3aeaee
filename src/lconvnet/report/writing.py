"""The files of a report, in a folder `tables` below the runs unless another is named.

table.md, table.tex, table.csv and table.pdf; consolidated.json and consolidated.csv. They are written again each time;
a file of that name that is somebody else's is never touched. The original's commands write what its scripts expect:
table.tex beside the runs, and a results.yaml in each of their folders.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lconvnet import atomic
from lconvnet.report import consolidated, pdf
from lconvnet.report.cells import Table
from lconvnet.report.csvfile import HEADER, to_csv
from lconvnet.report.latex import MARK as TEX_MARK
from lconvnet.report.latex import latex
from lconvnet.report.markdown import MARK as MARKDOWN_MARK
from lconvnet.report.markdown import markdown
from lconvnet.report.runs import Found, find_runs
from lconvnet.report.tables import tables

FOLDER = "tables"
# What a file of ours begins with; a PDF has it further inside.
MARKS: Mapping[str, bytes] = {
    "table.md": MARKDOWN_MARK.encode(),
    "table.tex": TEX_MARK.encode(),
    "table.csv": ",".join(HEADER).encode(),
    "table.pdf": b"%PDF-",
    "consolidated.json": f'{{\n  "format": "{consolidated.FORMAT}"'.encode(),
    "consolidated.csv": ",".join(consolidated.FIRST).encode(),
}


@dataclass(frozen=True)
class Written:
    """What was read, the tables, the files written, and a note where one could not be."""

    found: Found
    tables: tuple[Table, ...]
    files: tuple[Path, ...]
    note: str = ""


def export(folder: str | Path, out: str | Path | None = None) -> Written:
    """Write the tables of the runs below `folder` as Markdown, LaTeX, CSV and, where pdflatex is installed, PDF, and
    the facts and metrics of every run as consolidated.json and consolidated.csv.

    Raises ValueError where there is no run, or a foreign file in the way.
    """
    found = find_runs(folder)
    made = tables(found.runs, str(folder))
    joined = json.dumps(consolidated.to_json(found), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    texts = {"consolidated.json": joined, "consolidated.csv": consolidated.to_csv(found)}
    if made:
        texts |= {"table.md": markdown(made), "table.tex": latex(made), "table.csv": to_csv(made)}
    contents = {name: text.encode() for name, text in texts.items()}
    target = _target(Path(out) if out is not None else Path(folder) / FOLDER, [*contents, "table.pdf"])
    note = "" if made else _no_table(found)
    try:
        contents |= {"table.pdf": pdf.compile_pdf(texts["table.tex"])} if made else {}
    except pdf.NoPdfError as error:
        stale = "; the one that is there is older" if (target / "table.pdf").exists() else ""
        note = f"{target / 'table.pdf'} was not written: {error}{stale}"
    return Written(found, made, _write(target, contents), note)


def export_tex(folder: str | Path, out: str | Path | None = None) -> Written:
    """Write the tables of the runs below `folder` as its table.tex, where the original's `export` wrote its own.

    Raises ValueError where there is no run, no table that they belong to, or a foreign file in the way.
    """
    found = find_runs(folder)
    made = tables(found.runs, str(folder))
    if not made:
        raise ValueError(_no_table(found))
    target = _target(Path(out if out is not None else folder), ["table.tex"])
    return Written(found, made, _write(target, {"table.tex": latex(made).encode()}))


def _no_table(found: Found) -> str:
    return f"none of the {len(found.runs)} runs below {found.folder} belongs to a table"


def _target(target: Path, files: Sequence[str]) -> Path:
    """Return the folder to write to; ValueError where a file in it is not ours."""
    for path in (target / name for name in files):
        if path.exists() and not _ours(path):
            raise ValueError(f"{path} was not written by lconvnet and is left alone; choose another folder with --out")
    return target


def _ours(path: Path) -> bool:
    if not path.is_file():
        return False
    content = path.read_bytes()
    return content.startswith(MARKS[path.name]) and (path.suffix != ".pdf" or pdf.MARK in content)


def _write(target: Path, contents: Mapping[str, bytes]) -> tuple[Path, ...]:
    for name, content in contents.items():
        atomic.write_bytes(target / name, content)
    return tuple(target / name for name in contents)
