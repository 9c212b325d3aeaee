"""`lconvnet tables`, `python -m lconvnet.export` and `python -m lconvnet.consolidate`."""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest

from lconvnet import cli, consolidate, export
from lconvnet.report import find_runs, tables
from lconvnet.report.csvfile import to_csv
from lconvnet.report.latex import latex
from lconvnet.report.markdown import markdown

NAMES = ["table.csv", "table.md", "table.tex"]


@pytest.fixture
def command(capsys):
    def run(application, *arguments) -> tuple[int, str, str]:
        code = cli.invoke(application, [str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def folder(runs) -> Path:
    for seed in range(2):
        runs.recorded(f"ours-{seed}", [f"seed={seed}"], accuracy=0.8 + seed / 10)
    runs.named("adv-rob-mnist/large/RKO/multi-trial-A")
    runs.critic("wde_stl10/lr-0.1/conv/RKO/relu/multi-trial-A", -1, 1)
    return runs.root


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def without_latex(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("without_latex")
def test_tables_shows_and_writes(command, folder):
    code, out, err = command(cli.app, "tables", folder)
    assert (code, err) == (0, "")
    assert "Table 1. Clean and provably robust accuracy (%)." in out
    assert "85.00 ± 5.00" in out
    assert "4 runs read; wrote" in out
    assert "table.pdf was not written: pdflatex is not installed" in out
    assert list(contents(folder / "tables")) == NAMES


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_export_is_the_same_and_writes_the_same_bytes_twice(command, folder, tmp_path):
    assert command(cli.app, "tables", folder)[0] == 0
    first = contents(folder / "tables")
    code, out, _ = command(export.app, "--dir", folder, "--out", tmp_path / "b")
    assert (code, "Table 1" in out, list(first)) == (0, True, [*NAMES[:2], "table.pdf", NAMES[2]])
    assert contents(tmp_path / "b") == first
    assert command(export.app, "--dir", folder)[0] == 0
    assert contents(folder / "tables") == first


def test_consolidate(command, folder):
    code, out, err = command(consolidate.app, "--dir", folder)
    assert (code, err) == (0, "")
    assert out.startswith("4 runs read; wrote ")
    values = json.loads((folder / "tables" / "consolidated.json").read_text())
    ours = next(run for run in values["runs"] if run["path"] == "ours-1")
    assert (ours["method"], ours["norms"], ours["trial"], ours["recipe"]["training.epochs"]) == ("BCOP", "l2", "1", 200)
    assert ours["metrics"]["adv_robustness"]["1.58"]["lb"] == 0.25
    rows = list(csv.DictReader(io.StringIO((folder / "tables" / "consolidated.csv").read_text())))
    assert [row["path"] for row in rows] == [run["path"] for run in values["runs"]]
    row = next(row for row in rows if row["path"] == "ours-1")
    assert (row["accuracy"], row["adv_robustness/1.58/lb"], row["recipe/loss.name"]) == ("0.9", "0.25", "hinge")


def test_consolidate_writes_the_same_bytes_twice(command, folder):
    command(consolidate.app, "--dir", folder)
    first = contents(folder / "tables")
    command(consolidate.app, "--dir", folder)
    assert contents(folder / "tables") == first


@pytest.mark.usefixtures("without_latex")
def test_a_corrupt_file_is_listed_at_the_end(command, folder, runs):
    bad = runs.named("bad")
    (bad / "results.yaml").write_text("loss: .nan")
    code, out, err = command(cli.app, "tables", folder)
    assert code == 0
    assert "4 runs read, 1 not used; wrote" in out
    assert err == f"not used: {bad / 'results.yaml'}: loss is nan; it should be a finite number\n"


@pytest.mark.usefixtures("without_latex")
def test_json_is_one_line(command, folder):
    code, out, err = command(cli.app, "tables", folder, "--json")
    values = json.loads(out)
    assert (code, out.count("\n"), values["runs"], values["tables"]) == (0, 1, 4, ["1", "3", "4a", "7", "8", "9"])
    assert "Table 1" in err


@pytest.mark.parametrize("name", ["table.md", "table.tex", "table.csv", "table.pdf"])
def test_a_file_of_somebody_else_is_left_alone(command, folder, name):
    target = folder / "tables"
    target.mkdir()
    (target / name).write_bytes(b"%PDF-1.5 mine")
    code, out, err = command(cli.app, "tables", folder)
    assert (code, out) == (2, "")
    assert f"{name} was not written by lconvnet and is left alone; choose another folder with --out" in err
    assert contents(target) == {name: b"%PDF-1.5 mine"}


@pytest.mark.parametrize(
    ("application", "arguments"), [(cli.app, ["tables"]), (export.app, ["--dir"]), (consolidate.app, ["--dir"])]
)
def test_nothing_to_read_is_one_line(command, tmp_path, application, arguments):
    for folder, reason in ((tmp_path / "absent", "is no folder"), (tmp_path, "holds no usable results.yaml")):
        code, out, err = command(application, *arguments, folder)
        assert (code, out) == (2, "")
        assert err.startswith("error: ") and reason in err and err.count("\n") == 1


def test_runs_that_belong_to_no_table(command, runs):
    runs.critic("wde_stl10/lr-0.1/conv/RKO/relu/multi-trial-A", -1, 1)
    path = runs.root / "wde_stl10/lr-0.1/conv/RKO/relu/multi-trial-A/results.yaml"
    path.write_text("loss: -1\n")
    code, _, err = command(cli.app, "tables", runs.root)
    assert (code, "none of the 1 runs" in err) == (2, True)


def test_the_committed_tables_are_those_of_the_committed_results(monkeypatch):
    """As `lconvnet tables results --out results/tables` in the root of the project writes them."""
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    made = tables(find_runs("results").runs, "results")
    for name, text in (("table.md", markdown(made)), ("table.tex", latex(made)), ("table.csv", to_csv(made))):
        assert (root / "results" / "tables" / name).read_bytes() == text.encode(), name
