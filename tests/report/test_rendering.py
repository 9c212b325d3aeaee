"""Markdown, LaTeX, CSV and PDF of tables, hostile names included."""

import csv
import io
import re
import shutil
import subprocess
from dataclasses import replace

import pytest
from rich.console import Console

from lconvnet.report import find_runs, rendering, tables
from lconvnet.report.rendering import (
    LATEX_COLUMNS,
    LATEX_ROWS,
    Cell,
    Row,
    Table,
    latex,
    markdown,
    terminal,
    to_csv,
    with_best,
)

NASTY = r"50%_a&b#c$d{e}f~g^h\input{x}|<i>\"j\" *k* `l` é 中 🙂 ε"
needs_latex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")


def table(columns=("A", "B"), rows=2, **changes) -> Table:
    cells = tuple(Cell(float(place), 0.5, 5) for place in range(len(columns)))
    lines = tuple(Row(f"block {place // 4}", f"row {place}", cells) for place in range(rows))
    return with_best(Table("1", "Title", tuple(columns), lines, **changes))


NASTY_TABLE = Table(
    "9", NASTY, (NASTY, "ok"), (Row(NASTY, NASTY, (Cell(1.0, 0.0, 1), Cell(fill=f"lconvnet {NASTY}"))),), notes=(NASTY,)
)


@pytest.fixture
def made(runs):
    runs.recorded("a", ["data.name=50%_a&b"])
    for trial, accuracy in zip("AB", (0.76543, 0.87654), strict=True):
        runs.named(f"adv-rob-mnist/small/BCOP-Bjorck/multi-trial-{trial}", accuracy=accuracy)
    runs.critic("wde_stl10/lr-0.1/conv/RKO/relu/multi-trial-A", -1, 1)
    return tables(find_runs(runs.root).runs)


def test_markdown_is_a_grid_with_best_cells_bold():
    text = markdown([table()])
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines == [
        "|  |  | A | B |",
        "| --- | --- | --: | --: |",
        "| block 0 | row 0 | 0.00 ± 0.50 | **1.00 ± 0.50** |",
        "|  | row 1 | 0.00 ± 0.50 | **1.00 ± 0.50** |",
    ]
    assert "over 5 seeds" in text


def test_markdown_lists_what_fills_missing_cells(made):
    text = markdown(made)
    command = (
        "`python -m lconvnet.run --cfg runs/adv-rob-mnist/large/RKO/multi-trial-A/cfg.yaml  # then again with --test`"
    )
    assert f"- {' '.join(command.split())}: MNIST (ε = 1.58), Large, RKO: Clean, Robust" in text.splitlines()


def test_no_name_breaks_a_markdown_grid():
    (line,) = (line for line in markdown([NASTY_TABLE]).splitlines() if line.startswith("| 50"))
    assert len(re.findall(r"(?<!\\)\|", line)) == 5
    assert "<i>" not in line.replace(r"\<i\>", "")


def test_latex_escapes_every_special_character():
    body = latex([NASTY_TABLE]).partition(r"\begin{document}")[2]
    assert r"50\%\_a\&b\#c\$d\{e\}f\textasciitilde{}g\textasciicircum{}h\textbackslash{}input\{x\}" in body
    assert body.isascii()
    assert r"\input{" not in body


def test_latex_uses_nothing_but_booktabs_and_the_base(made):
    packages = re.findall(r"\\usepackage(?:\[[^]]*\])?\{(.*?)\}", latex(made))
    assert packages == ["geometry", "booktabs", "graphicx"]


def test_latex_continues_large_tables(made):
    text = latex([table(columns=[f"c{place}" for place in range(LATEX_COLUMNS + 1)], rows=LATEX_ROWS + 1)])
    assert text.count(r"\begin{lrbox}") == 4
    assert text.count("(continued)") == 3
    for place in range(LATEX_COLUMNS + 1):
        assert text.count(f"c{place} ") == 2, "each column once in each of two pieces"


@needs_latex
def test_pdf_is_compiled_and_the_same_twice(made):
    document = latex([*made, NASTY_TABLE])
    found = rendering.compile_pdf(document)
    assert found.startswith(b"%PDF-")
    assert rendering.PDF_MARK in found
    assert found == rendering.compile_pdf(document)


@needs_latex
def test_no_table_is_wider_or_higher_than_the_page(tmp_path):
    wide = table(columns=["a rather long heading of a column (offset-cross-entropy, 10 epochs)"] * 20, rows=60)
    high = table(rows=60)
    high = replace(high, rows=tuple(replace(row, block=f"block {place}") for place, row in enumerate(high.rows)))
    (tmp_path / "t.tex").write_text(latex([wide, high]), encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "t.tex"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "Overfull" not in done.stdout


@needs_latex
def test_a_document_cannot_read_files_elsewhere_or_run_programs(tmp_path):
    secret = tmp_path / "secret.tex"
    secret.write_text("secret")
    start = "\\documentclass{article}\\begin{document}x"
    with pytest.raises(rendering.NoPdfError, match="pdflatex failed"):
        rendering.compile_pdf(f"{start}\\input{{{secret}}}\\end{{document}}")
    rendering.compile_pdf(f"{start}\\immediate\\write18{{touch {tmp_path}/made}}\\end{{document}}")
    assert not (tmp_path / "made").exists()


@needs_latex
def test_a_document_that_never_ends(monkeypatch):
    monkeypatch.setattr(rendering, "PDF_SECONDS", 1)
    with pytest.raises(rendering.NoPdfError, match="more than 1 seconds"):
        rendering.compile_pdf(r"\documentclass{article}\begin{document}\loop\iftrue\repeat\end{document}")


def test_without_pdflatex_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(rendering.NoPdfError, match="not installed; install it"):
        rendering.compile_pdf("")


def test_csv_round_trip(made):
    rows = list(csv.DictReader(io.StringIO(to_csv(made))))
    cells = [
        (made_table.number, f"{row.block}, {row.label}", column, cell)
        for made_table in made
        for row in made_table.rows
        for column, cell in zip(made_table.columns, row.cells, strict=True)
    ]
    assert len(rows) == len(cells)
    for read, (number, row, column, cell) in zip(rows, cells, strict=True):
        assert (read["table"], read["row"], read["column"]) == (number, row, column)
        if cell.mean is None:
            assert read["missing"] == (cell.fill or "not run")
            assert read["mean"] == read["std"] == ""
        else:
            values = (float(read["mean"]), float(read["std"]), int(read["n"]), read["best"] == "true", read["missing"])
            assert values == (cell.mean, cell.std, cell.n, cell.best, "")


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_number_is_cut_in_a_terminal(width):
    columns = ("OSSN", "BCOP (offset-cross-entropy, 6 epochs)", *(f"RKO (optimizer.lr={place})" for place in range(6)))
    cells = tuple(Cell(90.0 + place, 0.25, 5) for place in range(len(columns)))
    made = Table("1", "Title", columns, (Row("CIFAR-10 (ε = 36/255), Large", "Clean", cells),))
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(terminal(made, width))
    text = console.file.getvalue()
    assert [text.count(cell.text) for cell in cells] == [1] * len(cells)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width


def test_a_terminal_does_not_read_names_as_markup():
    console = Console(width=200, file=io.StringIO())
    console.print(terminal(table(columns=("[red]A[/red]", "B")), 200))
    assert "[red]A[/red]" in console.file.getvalue()
