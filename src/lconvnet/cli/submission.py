"""The command `lconvnet submit DIR [--limit N] [--resume] [--test] [-- OPTIONS]`: a family of runs on Slurm.

Every folder below DIR with a cfg.yaml is a task of one job array. Without flags it is trained, with `--resume`
continued, with `--test` evaluated, with both continued and then evaluated. OPTIONS are those of sbatch; output goes to
DIR/slurm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lconvnet.cli import options, output
from lconvnet.experiments import slurm


def submit_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with cfg.yaml files below it.")],
    sbatch: Annotated[
        list[str] | None, typer.Argument(metavar="[-- SBATCH OPTIONS]", help="Options of sbatch.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Tasks that may run at once.")] = None,
    resume: options.Resume = False,
    test: Annotated[
        bool, typer.Option("--test", help="Evaluate the trained runs; with --resume, train first.")
    ] = False,
    notice: Annotated[
        int, typer.Option("--notice", min=1, help="Seconds before the time limit at which a task saves.")
    ] = slurm.NOTICE,
    as_json: options.Json = False,
) -> None:
    """Submit all runs below DIR as one Slurm job array."""
    runs, logs = slurm.find_runs(folder), folder / "slurm"
    given = {"limit": limit, "options": sbatch or (), "logs": logs, "notice": notice}
    done = slurm.submit(runs, resume=resume, test=test, **given)
    for run, reason in done.left_out.items():
        output.echo(f"not submitted: {run}: {reason}".replace(f"{run}: {run}", str(run)), err=True)
    if as_json:
        left_out = {str(run): reason for run, reason in done.left_out.items()}
        output.show_json({"job": done.job, "runs": list(map(str, done.runs)), "left_out": left_out, "logs": str(logs)})
    elif done.job is None:
        output.echo(f"nothing to submit: none of {len(runs)} runs has anything to do")
    else:
        output.echo(
            f"submitted job {done.job}: {len(done.runs)} of {len(runs)} runs, output in {logs}/{done.job}_*.out"
        )
