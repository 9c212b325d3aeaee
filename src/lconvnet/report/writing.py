"""The files of a report, by default in a folder `tables` below the runs.

table.md, table.tex, table.csv and table.pdf; consolidated.json and consolidated.csv with the facts and metrics of every
run. Each report rewrites them; a foreign file of that name is never touched. The original's commands write the files
that its scripts expect: table.tex beside the runs, and a results.yaml in each of their folders.
"""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from lconvnet import atomic
from lconvnet.experiments.loading import load_any
from lconvnet.experiments.reading import read
from lconvnet.report import labels, rendering
from lconvnet.report.facts import facts_of_experiment, flatten
from lconvnet.report.rendering import Table
from lconvnet.report.runs import NAME, NORMS, Found, Run, Skipped, find_runs, parse_results
from lconvnet.report.tables import CERTIFIED, CLEAN, Line, attack, averages, tables
from lconvnet.visible import walk

FOLDER = "tables"
FORMAT = "lconvnet consolidated 1"
FIRST = ("path", "task", "data", "norms", "architecture", "method", "activation", "learning_rate", "trial", "specified")
RENDERERS = {"table.md": rendering.markdown, "table.tex": rendering.latex, "table.csv": rendering.to_csv}
# The first bytes of our files; a PDF has a further mark inside.
MARKS: Mapping[str, bytes] = {
    "table.md": rendering.MARKDOWN_MARK.encode(),
    "table.tex": rendering.LATEX_MARK.encode(),
    "table.csv": ",".join(rendering.CSV_HEADER).encode(),
    "table.pdf": b"%PDF-",
    "consolidated.json": f'{{\n  "format": "{FORMAT}"'.encode(),
    "consolidated.csv": ",".join(FIRST).encode(),
}
HEAD, ROW = re.compile(r"\|.*\| CFG \|"), re.compile(r"\|.*\| `([^`]+)` \|")
OTHER = re.compile(r".*results.*\.ya?ml")
DATE = re.compile(r"\d{4}-?\d\d-?\d\d.*")
NUMBERED = re.compile(r"results-(\d+)")


@dataclass(frozen=True)
class Written:
    """The runs read, the tables, the files written, and a note if one could not be."""

    found: Found
    tables: tuple[Table, ...]
    files: tuple[Path, ...]
    note: str = ""


@dataclass(frozen=True)
class Named:
    """The results.yaml written, each with its source; the number of those already there; and unusable results."""

    written: dict[Path, Path]
    present: int
    skipped: tuple[Skipped, ...]


def export(folder: str | Path, out: str | Path | None = None, readme: str | Path | None = None) -> Written:
    """Write the tables of the runs below `folder` as Markdown, LaTeX, CSV and, if pdflatex is installed, PDF. Also
    write the facts and metrics of every run as consolidated.json and consolidated.csv, and update the table in
    `readme`.

    Raises ValueError if there is no run, or if a foreign file is in the way.
    """
    found = find_runs(folder)
    made = tables(found.runs, str(folder))
    texts = consolidated(found) | ({name: render(made) for name, render in RENDERERS.items()} if made else {})
    contents = {name: text.encode() for name, text in texts.items()}
    described = {} if readme is None else {Path(readme): with_results(Path(readme), found).encode()}
    target = _target(Path(out) if out is not None else Path(folder) / FOLDER, [*contents, "table.pdf"])
    note = "" if made else _no_table(found)
    try:
        contents |= {"table.pdf": rendering.compile_pdf(texts["table.tex"])} if made else {}
    except rendering.NoPdfError as error:
        stale = "; the one that is there is older" if (target / "table.pdf").exists() else ""
        note = f"{target / 'table.pdf'} was not written: {error}{stale}"
    files = {**{target / name: content for name, content in contents.items()}, **described}
    return Written(found, made, _write(files), note)


def export_tex(folder: str | Path, out: str | Path | None = None) -> Written:
    """Write the tables of the runs below `folder` as its table.tex, the place used by the original's `export`.

    Raises ValueError if there is no run, if no table contains them, or if a foreign file is in the way.
    """
    found = find_runs(folder)
    made = tables(found.runs, str(folder))
    if not made:
        raise ValueError(_no_table(found))
    target = _target(Path(out if out is not None else folder), ["table.tex"])
    return Written(found, made, _write({target / "table.tex": rendering.latex(made).encode()}))


def consolidated(found: Found) -> dict[str, str]:
    """Return consolidated.json, with unused files and the reasons, and consolidated.csv, one row per run."""
    entries = [_entry(run) for run in found.runs]
    skipped = [{"path": item.path, "reason": item.reason} for item in found.skipped]
    values = {"format": FORMAT, "runs": entries, "skipped": skipped}
    rows = [
        {
            **{key: entry[key] for key in FIRST},
            **{f"recipe/{key}": value for key, value in entry["recipe"].items()},
            **dict(flatten(entry["metrics"], separator="/")),
        }
        for entry in entries
    ]
    others = sorted({key for row in rows for key in row} - set(FIRST))
    text = io.StringIO()
    writer = csv.DictWriter(text, [*FIRST, *others], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    joined = json.dumps(values, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    return {"consolidated.json": joined, "consolidated.csv": text.getvalue()}


def with_results(readme: Path, found: Found) -> str:
    """Return a Markdown file with the figures in its table of results brought up to date.

    The table's last column, CFG, names the folder of a configuration beside the file. The runs of that folder fill the
    columns epochs, seeds, clean, certified and those named after an attack (with a star: on the first test images
    only). All other text is written by hand and stays, as does a row without runs.
    """
    lines = readme.read_text(encoding="utf-8").splitlines()
    start = next((number for number, line in enumerate(lines) if HEAD.fullmatch(line)), None)
    if start is None:
        raise ValueError(f"{readme} has no table whose last column is CFG: the folder of each row's configuration")
    heads = _split(lines[start])
    rows = list(takewhile(lambda line: line.startswith("|"), lines[start + 2 :]))
    lines[start + 2 : start + 2 + len(rows)] = [_with_figures(row, heads, readme, found) for row in rows]
    return "\n".join(lines) + "\n"


def name_results(folder: str | Path) -> Named:
    """Copy the newest results of every folder in and below `folder` to results.yaml if that is missing.

    The original wrote one results-norm-2019-05-21-….yaml per evaluation; here a later evaluation keeps the results that
    it replaces as results-1.yaml, results-2.yaml, and so on. Nothing is overwritten. Raises ValueError if there is no
    such folder, or no results in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; name one with results below it, such as runs")
    written: dict[Path, Path] = {}
    skipped: list[Skipped] = []
    present = 0
    for place, _, files in walk(folder):
        if place / NAME in files:
            present += 1
            continue
        usable = []
        for path in files:
            if OTHER.fullmatch(path.name):
                try:
                    parse_results(read(path))
                    usable.append(path)
                except (OSError, ValueError, RecursionError) as error:
                    skipped.append(Skipped(str(path), " ".join(str(error).split())))
        if usable:
            written[place / NAME] = newest(usable)
            atomic.write_bytes(place / NAME, newest(usable).read_bytes())
    if not written and not present:
        raise ValueError(f"{folder} holds no usable {NAME}, nor results under another name")
    return Named(written, present, tuple(skipped))


def newest(paths: Sequence[Path]) -> Path:
    """Return the newest of several results: by the latest date in the names, else by the highest number, else by the
    time of writing.

    >>> newest([Path("results-norm-2019-10-02-09-00.yaml"), Path("results-adv-2019-09-30-12-00.yaml")]).name
    'results-norm-2019-10-02-09-00.yaml'
    >>> newest([Path("results-10.yaml"), Path("results-9.yaml")]).name
    'results-10.yaml'
    """
    ages: Sequence[Any] = [re.sub(r"\D", "", date.group()) for path in paths if (date := DATE.search(path.stem))]
    if len(ages) < len(paths):
        ages = [int(number[1]) for path in paths if (number := NUMBERED.fullmatch(path.stem))]
    if len(ages) < len(paths):
        ages = [path.stat().st_mtime_ns for path in paths]
    return max(zip(ages, paths, strict=True))[1]


def _entry(run: Run) -> dict[str, Any]:
    """The facts of a run, its recipe, and its measurements, nested as in its results.yaml."""
    measured = {found.norm for found in run.measurements if found.eps is not None}
    named = {"path": run.path, "norms": " ".join(norm for norm in NORMS if norm in measured), **vars(run.facts)}
    recipe = {key: list(value) if isinstance(value, tuple) else value for key, value in run.facts.recipe}
    metrics: dict[str, Any] = {}
    for found in run.measurements:
        *above, last = found.place
        inner = metrics
        for key in above:
            inner = inner.setdefault(key, {})
        inner[last] = found.value
    return {**{key: named[key] for key in FIRST}, "recipe": recipe, "metrics": metrics}


def _with_figures(row: str, heads: Sequence[str], readme: Path, found: Found) -> str:
    config, cells = ROW.fullmatch(row), _split(row)
    if config is None or len(cells) != len(heads):
        raise ValueError(f"{readme} has a row without `CFG` at its end, or not with {len(heads)} cells: {row}")
    facts = replace(facts_of_experiment(load_any(readme.parent / config[1] / "cfg.yaml")), trial="")
    runs = [run for run in found.runs if replace(run.facts, trial="") == facts]
    if not runs:
        return row
    known = {"epochs": str(dict(facts.recipe).get("training.epochs", "—")), "seeds": str(len(runs))}
    means = averages(runs, labels.EPS.get(facts.data, 0.0), [line for head in heads if (line := _line(head))])
    known |= {head: mean.text for head, mean in means.items()}
    return f"| {' | '.join(known.get(head, cell) for head, cell in zip(heads, cells, strict=True))} |"


def _line(head: str) -> Line | None:
    """The measure for a column of the table of results, if the column is to be filled."""
    lines = {"clean": CLEAN, "certified": CERTIFIED}
    for name, label in labels.ATTACKS.items():
        short = label.lower().removesuffix(" attack")
        lines |= {short: attack(name), f"{short}*": attack(name, mini=True)}
    found = lines.get(head.lower())
    return found and replace(found, label=head)


def _split(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def _no_table(found: Found) -> str:
    return f"none of the {len(found.runs)} runs below {found.folder} belongs to a table"


def _target(target: Path, files: Sequence[str]) -> Path:
    """Return the folder to write to; ValueError if a file in it is not ours."""
    for path in (target / name for name in files):
        if path.exists():
            content = path.read_bytes() if path.is_file() else b""
            is_ours = content.startswith(MARKS[path.name]) and (path.suffix != ".pdf" or rendering.PDF_MARK in content)
            if not is_ours:
                raise ValueError(
                    f"{path} was not written by lconvnet and is left alone; choose another folder with --out"
                )
    return target


def _write(files: Mapping[Path, bytes]) -> tuple[Path, ...]:
    for path, content in files.items():
        atomic.write_bytes(path, content)
    return tuple(files)
