"""The files of a report, in a folder `tables` below the runs unless another is named.

table.md, table.tex, table.csv and table.pdf; consolidated.json and consolidated.csv. They are written again each time;
a file of that name that is somebody else's is never touched.
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
    """Write the tables of the runs below `folder` as Markdown, LaTeX, CSV and, where pdflatex is installed, PDF.

    Raises ValueError where there is no run, no table that they belong to, or a foreign file in the way.
    """
    found = find_runs(folder)
    made = tables(found.runs, str(folder))
    if not made:
        raise ValueError(
            f"none of the {len(found.runs)} runs below {folder} belongs to a table; see lconvnet.consolidate"
        )
    texts = {"table.md": markdown(made), "table.tex": latex(made), "table.csv": to_csv(made)}
    contents = {name: text.encode() for name, text in texts.items()}
    target = _target(folder, out, [*contents, "table.pdf"])
    note = ""
    try:
        contents["table.pdf"] = pdf.compile_pdf(texts["table.tex"])
    except pdf.NoPdfError as error:
        stale = "; the one that is there is older" if (target / "table.pdf").exists() else ""
        note = f"{target / 'table.pdf'} was not written: {error}{stale}"
    return Written(found, made, _write(target, contents), note)


def consolidate(folder: str | Path, out: str | Path | None = None) -> Written:
    """Write the facts and metrics of every run below `folder` as consolidated.json and consolidated.csv.

    Raises ValueError where there is no run, or a foreign file in the way.
    """
    found = find_runs(folder)
    text = json.dumps(consolidated.to_json(found), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    contents = {"consolidated.json": text.encode(), "consolidated.csv": consolidated.to_csv(found).encode()}
    return Written(found, (), _write(_target(folder, out, list(contents)), contents))


def _target(folder: str | Path, out: str | Path | None, files: Sequence[str]) -> Path:
    """Return the folder to write to; ValueError where a file in it is not ours."""
    target = Path(out) if out is not None else Path(folder) / FOLDER
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
