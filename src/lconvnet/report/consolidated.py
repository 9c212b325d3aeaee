"""Every run's facts and metrics in one machine-readable file: as JSON, and as CSV with one row for each run."""

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

from lconvnet.report.results import L_CONSTANT, NORMS, SECTIONS, Radii
from lconvnet.report.runs import Found, Run

FORMAT = "lconvnet consolidated 1"
FIRST = ("path", "task", "data", "norms", "architecture", "method", "activation", "learning_rate", "trial", "specified")


def to_json(found: Found) -> dict[str, Any]:
    """Return JSON-able values: runs, and the files that were not used with the reasons."""
    skipped = [{"path": item.path, "reason": item.reason} for item in found.skipped]
    return {"format": FORMAT, "runs": [_entry(run) for run in found.runs], "skipped": skipped}


def to_csv(found: Found) -> str:
    """Return a table with a row for each run, its columns the facts, the recipe and every metric of any run."""
    rows = [_row(_entry(run)) for run in found.runs]
    others = sorted({key for row in rows for key in row} - set(FIRST))
    text = io.StringIO()
    writer = csv.DictWriter(text, [*FIRST, *others], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _entry(run: Run) -> dict[str, Any]:
    facts = run.facts
    norms = [norm for norm in NORMS if any(run.results.rows[norm, mini] for mini in (False, True))]
    named = {"path": run.path, "norms": " ".join(norms), **vars(facts)}
    recipe = {key: list(value) if isinstance(value, tuple) else value for key, value in facts.recipe}
    return {**{key: named[key] for key in FIRST}, "recipe": recipe, "metrics": _metrics(run)}


def _metrics(run: Run) -> dict[str, Any]:
    results = run.results
    values: dict[str, Any] = {"accuracy": results.accuracy, "loss": results.loss, L_CONSTANT: results.lipschitz}
    known = {key: value for key, value in values.items() if value is not None}
    sections = {SECTIONS[place]: _by_text(rows) for place, rows in results.rows.items() if rows}
    return {**known, **results.norms, **sections}


def _by_text(rows: Radii) -> dict[str, Any]:
    return {f"{eps:.10g}": dict(row) for eps, row in rows.items()}


def _row(entry: Mapping[str, Any]) -> dict[str, Any]:
    facts = {key: entry[key] for key in FIRST}
    metrics = dict(_flat(entry["metrics"]))
    return {**facts, **{f"recipe/{key}": value for key, value in entry["recipe"].items()}, **metrics}


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}/")
        else:
            yield f"{above}{key}", value
