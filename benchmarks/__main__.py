"""Measure every row side by side, print the table, write it down, and draw how the cost grows.

`make bench` does all of it, in about ten minutes on two cores.

    python -m benchmarks --only large_step small_step            # some rows; nothing is written without --out
    python -m benchmarks --steps 1 --warm-up 1 --out trial.json  # does it run?

Nothing is measured where a peer is missing.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from threadpoolctl import threadpool_limits

from benchmarks import peers, picture, scaling
from benchmarks.report import about, as_json, table
from benchmarks.rows import ROWS, measure
from benchmarks.timing import Effort
from lconvnet.atomic import write_json

LATEST = Path(__file__).with_name("latest.json")


def arguments_of(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    default = Effort()
    parser.add_argument("--steps", type=int, default=default.turns, help="timed turns at most; slow rows take fewer")
    parser.add_argument("--warm-up", type=int, default=default.warm_up, help="turns before the first timed one")
    parser.add_argument("--threads", type=int, default=2)
    parts = [*ROWS, "scaling"]
    parser.add_argument("--only", nargs="+", choices=parts, metavar="ROW", help=", ".join(parts))
    parser.add_argument("--out", type=Path, help="default benchmarks/latest.json; scaling.json and .png go beside it")
    parser.add_argument("--no-scaling", action="store_true", help="leave out the curves over width and depth")
    arguments = parser.parse_args(argv)
    if arguments.steps < 1 or arguments.warm_up < 0 or arguments.threads < 1:
        parser.error("--steps and --threads must be at least 1, --warm-up at least 0")
    return arguments


def run_rows(console: Console, names: list[str], effort: Effort, out: Path | None) -> None:
    """Measure the rows one after another, print them, and write them down where a file is given."""
    results = []
    for name in names:
        results.append(measure(name, effort))
        console.print(f"{name}: {results[-1].ratio:.3f} ({results[-1].note})")
    console.print(table(results))
    if out is not None:
        write_json(out, as_json(results))


def run_scaling(console: Console, effort: Effort, out: Path) -> None:
    """Measure the curves, print their exponents, write and draw them."""
    curves = scaling.measure_scaling(effort)
    for axis, members in curves.items():
        for curve in members:
            console.print(f"cost against {axis}: {picture.legend(curve)} {curve.dropped}".rstrip())
    write_json(out.with_name("scaling.json"), {**about(), **scaling.as_json(curves)})
    picture.draw(out.with_name("scaling.png"), curves)


def main() -> None:
    """Run what the command line asks for."""
    arguments = arguments_of(sys.argv[1:])
    try:
        peers.require_all()
    except peers.MissingPeerError as error:
        sys.exit(str(error))
    effort = replace(Effort(), turns=arguments.steps, warm_up=arguments.warm_up)
    rows = [name for name in ROWS if not arguments.only or name in arguments.only]
    out: Path = arguments.out or LATEST
    console = Console()
    with threadpool_limits(arguments.threads):
        torch.set_num_threads(arguments.threads)
        if rows:
            run_rows(console, rows, effort, arguments.out if arguments.only else out)
        if not arguments.no_scaling and (not arguments.only or "scaling" in arguments.only):
            run_scaling(console, effort, out)


if __name__ == "__main__":
    main()
