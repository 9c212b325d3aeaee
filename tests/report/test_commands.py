"""`lconvnet tables`, `python -m lconvnet.export` and `python -m lconvnet.consolidate`."""

import csv
import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lconvnet import cli, consolidate, export
from lconvnet.report import find_runs, tables
from lconvnet.report.rendering import latex, markdown, to_csv
from lconvnet.report.writing import with_results

JOINED = ["consolidated.csv", "consolidated.json"]
NAMES = [*JOINED, "table.csv", "table.md", "table.tex"]


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
def test_tables_writes_the_same_bytes_twice(command, folder, tmp_path):
    assert command(cli.app, "tables", folder)[0] == 0
    first = contents(folder / "tables")
    code, out, _ = command(cli.app, "tables", folder, "--out", tmp_path / "b")
    assert (code, "Table 1" in out, sorted(first)) == (0, True, sorted([*NAMES, "table.pdf"]))
    assert contents(tmp_path / "b") == first


def test_tables_joins_the_facts_of_all_runs(command, folder):
    assert command(cli.app, "tables", folder)[0] == 0
    values = json.loads((folder / "tables" / "consolidated.json").read_text())
    ours = next(run for run in values["runs"] if run["path"] == "ours-1")
    assert (ours["method"], ours["norms"], ours["trial"], ours["recipe"]["training.epochs"]) == ("BCOP", "l2", "1", 200)
    assert ours["metrics"]["adv_robustness"]["1.58"]["lb"] == 0.25
    rows = list(csv.DictReader(io.StringIO((folder / "tables" / "consolidated.csv").read_text())))
    assert [row["path"] for row in rows] == [run["path"] for run in values["runs"]]
    row = next(row for row in rows if row["path"] == "ours-1")
    assert (row["accuracy"], row["adv_robustness/1.58/lb"], row["recipe/loss.name"]) == ("0.9", "0.25", "hinge")


def test_the_originals_export_writes_its_one_file_beside_the_runs(command, folder, tmp_path):
    before = set(folder.rglob("*"))
    code, out, err = command(export.app, "--dir", folder)
    assert (code, err) == (0, "")
    assert "Table 1" in out and f"4 runs read; wrote {folder / 'table.tex'}" in out
    assert set(folder.rglob("*")) - before == {folder / "table.tex"}
    assert (folder / "table.tex").read_text() == latex(tables(find_runs(folder).runs, str(folder)))
    assert command(export.app, "--dir", folder, "--out", tmp_path / "b")[0] == 0
    assert contents(tmp_path / "b") == {"table.tex": (folder / "table.tex").read_bytes()}
    (folder / "table.tex").write_text("of somebody else")
    code, out, err = command(export.app, "--dir", folder)
    assert (code, out, "was not written by lconvnet and is left alone" in err) == (2, "", True)


def test_the_originals_consolidate_names_the_newest_results(command, runs):
    """Of those with dates the last, whatever comes before the date; of ours the highest number; the last written."""
    dated, ours, mixed = (runs.named(f"adv-rob-mnist/small/RKO/multi-trial-{trial}") for trial in "ABC")
    for place in (dated, ours, mixed):
        (place / "results.yaml").unlink()
    names = {dated: ["results-norm-2019-05-21-23-01-59.yaml", "results-2019-05-22-00-10-00.yaml"]}
    names |= {ours: ["results-9.yaml", "results-10.yaml"], mixed: ["results-old.yaml", "my_results.yaml"]}
    for place, both in names.items():
        for loss, name in enumerate(both):
            (place / name).write_text(f"loss: {loss}\naccuracy: 0.5\n")
            os.utime(place / name, (loss, loss) if place is mixed else (0, 0))
    (ours / "results-11.yaml").write_text("loss: .nan")
    there = runs.named("adv-rob-mnist/small/RKO/multi-trial-D")
    kept = (there / "results.yaml").read_bytes()
    (there / "results-1.yaml").write_text("loss: 3\n")
    hidden = runs.root / ".cache"
    hidden.mkdir()
    (hidden / "results-1.yaml").write_text("loss: 3\n")
    code, out, err = command(consolidate.app, "--dir", runs.root)
    assert code == 0
    for place, both in names.items():
        assert f"{place / 'results.yaml'}: copied from {both[1]}" in out
        assert (place / "results.yaml").read_bytes() == (place / both[1]).read_bytes()
    assert "3 written, 1 were there" in out
    assert err.startswith(f"not used: {ours / 'results-11.yaml'}: loss is nan") and err.count("\n") == 1
    assert (there / "results.yaml").read_bytes() == kept
    assert not (hidden / "results.yaml").exists()
    before = sorted(runs.root.rglob("*"))
    assert "0 written, 4 were there" in command(consolidate.app, "--dir", runs.root)[1]
    assert sorted(runs.root.rglob("*")) == before
    assert command(export.app, "--dir", runs.root)[0] == 0, "the original's two commands, one after the other"


@pytest.mark.usefixtures("without_latex")
def test_a_corrupt_file_is_listed_at_the_end(command, folder, runs):
    bad = runs.named("bad")
    (bad / "results.yaml").write_text("loss: .nan")
    code, out, err = command(cli.app, "tables", folder)
    assert code == 0
    assert "4 runs read, 1 not used; wrote" in out
    assert err == f"not used: {bad / 'results.yaml'}: loss is nan; it should be a finite number\n"


@pytest.mark.usefixtures("without_latex")
def test_what_is_trained_and_not_evaluated_is_named(command, folder):
    (folder / "fresh").mkdir()
    for name in ("record.json", "model.safetensors"):
        assert "not evaluated" not in command(cli.app, "tables", folder)[1]
        (folder / "fresh" / name).touch()
    code, out, _ = command(cli.app, "tables", folder)
    assert code == 0 and "4 runs read; wrote" in out
    assert "1 trained but not evaluated (fresh): lconvnet evaluate RUN" in out
    assert "certified accuracy is rounded down" in out


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
    for folder, reason in ((tmp_path / "absent", "is not a folder"), (tmp_path, "holds no usable results.yaml")):
        code, out, err = command(application, *arguments, folder)
        assert (code, out) == (2, "")
        assert err.startswith("error: ") and reason in err and err.count("\n") == 1


def test_runs_that_belong_to_no_table(command, runs):
    runs.critic("wde_stl10/lr-0.1/conv/RKO/relu/multi-trial-A", -1, 1)
    path = runs.root / "wde_stl10/lr-0.1/conv/RKO/relu/multi-trial-A/results.yaml"
    path.write_text("loss: -1\n")
    code, out, _ = command(cli.app, "tables", runs.root)
    assert (code, "none of the 1 runs" in out, list(contents(runs.root / "tables"))) == (0, True, JOINED)
    code, _, err = command(export.app, "--dir", runs.root)
    assert (code, "none of the 1 runs" in err) == (2, True)


def test_the_committed_tables_are_those_of_the_committed_results(monkeypatch):
    """As `lconvnet tables results --out results/tables` in the root of the project writes them."""
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    made = tables(find_runs("results").runs, "results")
    for name, text in (("table.md", markdown(made)), ("table.tex", latex(made)), ("table.csv", to_csv(made))):
        assert (root / "results" / "tables" / name).read_bytes() == text.encode(), name


def test_the_table_in_the_readme_is_that_of_the_committed_results():
    """As `lconvnet tables results --readme README.md` in the root of the project writes it."""
    readme = Path(__file__).parents[2] / "README.md"
    found = find_runs(readme.parent / "results")
    text = with_results(readme, found)
    assert text == readme.read_text()
    paths = {run.path for run in found.runs if run.path.startswith("mnist-ten-epochs/BCOP-Bjorck")}
    without = replace(found, runs=tuple(run for run in found.runs if run.path not in paths))
    assert len(paths) > 1 and with_results(readme, without) == text, "what is not found stays"


def test_the_figures_of_a_readme_are_filled_in_and_the_words_stay(command, runs, tmp_path):
    config = runs.recorded("a", ["seed=0"], accuracy=0.9) / "cfg.yaml"
    runs.recorded("b", ["seed=1"], accuracy=0.8)
    readme = tmp_path / "README.md"
    table = (
        "| network | epochs | seeds | clean | certified | PGD | boundary* | CFG |\n|---|---|---|---|---|---|---|---|\n"
    )
    row = "| mine † |  |  |  |  |  | 1.00 | `a` |\n"
    other = "\nWords.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
    (tmp_path / "a").mkdir()
    shutil.copy(config, tmp_path / "a" / "cfg.yaml")
    readme.write_text(other + table + row + other)
    code, out, _ = command(cli.app, "tables", runs.root, "--readme", readme)
    assert (code, str(readme) in out) == (0, True)
    filled = "| mine † | 200 | 2 | 85.00 ± 5.00 | 25.00 ± 0.00 | 50.00 ± 0.00 | — | `a` |\n"
    assert readme.read_text() == other + table + filled + other
    for text, said in (
        (other, "has no table whose last column is CFG"),
        (table + "| a |\n", "not with 8 cells: | a |"),
    ):
        readme.write_text(text)
        code, _, err = command(cli.app, "tables", runs.root, "--readme", readme)
        assert (code, said in err, readme.read_text()) == (2, True, text)
