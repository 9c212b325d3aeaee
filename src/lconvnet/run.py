"""The original's command `python -m lconvnet.run --cfg CFG [--resume] [--test]`, built on this package's functions.

Without `--test` it trains the experiment in the folder of its cfg.yaml. With `--test` it evaluates the trained run and
writes results.yaml beside the configuration; `--resume --test`, the original's habit, does the same. An unfinished run
is refused; `--resume` alone continues it. No flag deletes anything. A folder that the original wrote, with its cfg.yaml
and its checkpoints/*.pth, is evaluated in place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lconvnet.cli import options, runs, start
from lconvnet.experiments.run_folder import find_run
from lconvnet.importing import adopt

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(
    cfg: Annotated[Path, typer.Option("--cfg", help="Configuration; its folder is the run folder.")],
    resume: options.Resume = False,
    test: Annotated[bool, typer.Option("--test", help="Evaluate the trained run.")] = False,
    no_attacks: options.NoAttacks = False,
    data_dir: options.DataDir = None,
    changes: options.Set = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train the experiment in the folder of CFG, or evaluate it with --test."""
    given = options.overrides(changes, data_dir)
    if test or resume:
        adopt(cfg, given)
    if test:
        runs.evaluate(find_run(cfg), given, attacks=not no_attacks, as_json=as_json, quiet=quiet)
    else:
        runs.train(cfg, given, out=None, resume=resume, as_json=as_json, quiet=quiet)


if __name__ == "__main__":
    start(app)
