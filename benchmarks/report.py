"""What is written down about a row, as JSON and as a table."""

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table


@dataclass(frozen=True)
class Target:
    """The ratios that are good enough."""

    low: float = 0.0
    high: float = float("inf")

    def __str__(self) -> str:
        if self == Target():
            return "none"
        if self.high == float("inf"):
            return f">= {self.low:g}"
        return f"<= {self.high:g}" if self.low == 0 else f"{self.low:g}-{self.high:g}"

    def met(self, ratio: float) -> bool:
        """Whether a ratio is good enough."""
        return self.low <= ratio <= self.high


@dataclass(frozen=True)
class Measured:
    """What a row measures: two medians in one unit, and what must be said beside them."""

    ours: float
    other: float
    unit: str
    note: str


@dataclass(frozen=True)
class Result:
    """A row as it is written down. `ratio` is ours / other, or other / ours where the name says so."""

    row: str
    ratio: float
    ours: float
    other: float
    unit: str
    target: str
    met: bool
    note: str


def result(row: str, measured: Measured, target: Target) -> Result:
    """A measured row with its ratio: names that end in `_over_ours` have ours below the line."""
    ours, other = measured.ours, measured.other
    ratio = other / ours if row.endswith("_over_ours") else ours / other
    return Result(row, ratio, ours, other, measured.unit, str(target), target.met(ratio), measured.note)


def machine() -> str:
    """Architecture and, where Linux tells it, the processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{platform.machine()}, {len(names)} x {names[0]}" if names else platform.machine()


def about() -> dict[str, Any]:
    """Where and with what the numbers were made."""
    return {"torch": torch.__version__, "machine": machine(), "threads": torch.get_num_threads()}


def as_json(results: Sequence[Result]) -> dict[str, Any]:
    """The layout of benchmarks/latest.json."""
    return {**about(), "rows": [asdict(row) for row in results]}


def table(results: Sequence[Result]) -> Table:
    """The rows for a terminal of 80 columns; the notes are in the file."""
    facts = about()
    caption = f"medians, threads: {facts['threads']}, torch {facts['torch']}, {facts['machine']}"
    shown = Table(caption=caption, box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for heading in ("row", "ours", "other", "unit", "ratio", "target", "met"):
        justify = "right" if heading in ("ours", "other", "ratio") else "left"
        shown.add_column(heading, justify=justify, no_wrap=True)
    for row in results:
        numbers = (f"{row.ours:.4g}", f"{row.other:.4g}", row.unit, f"{row.ratio:.3f}")
        shown.add_row(row.row, *numbers, row.target, "yes" if row.met else "no")
    return shown
