"""The command `lconvnet`: which commands there are, each a plain function in a module of this folder, and how they end.

Exit codes: 0 done, 2 the user's input (one line on standard error), 3 interrupted and resumable, 1 a bug or a
contradicted certificate.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

import typer

from lconvnet.cli import certificates, families, reports, runs, wasserstein
from lconvnet.experiments.robustness import ContradictionError
from lconvnet.training import Interrupted, is_first_process
from lconvnet.training.processes import NOTICES
from lconvnet.visible import printable

__all__ = ["app", "invoke", "main", "start"]

PACKAGE = Path(__file__).parents[1]
RESUMABLE = "interrupted; the same command goes on (training: with --resume)"
TYPERS_INTERRUPT = 130

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def commands() -> None:
    """Train, evaluate and certify 1-Lipschitz networks."""


app.command("train")(runs.train_command)
app.command("evaluate")(runs.evaluate_command)
app.command("certify")(certificates.certify_command)
app.command("verify")(certificates.verify_command)
app.command("import")(reports.import_command)
app.command("generate")(families.generate_command)
app.command("sweep")(families.sweep_command)
app.command("submit")(families.submit_command)
app.command("status")(families.status_command)
app.command("wasserstein")(wasserstein.wasserstein_command)
app.command("tables")(reports.tables_command)
app.command("plot")(reports.plot_command)


def main() -> NoReturn:
    """Entry point of the command."""
    start(app)


def invoke(application: typer.Typer, arguments: Sequence[str] | None = None) -> int:
    """Run an application and return its exit code; an error that the user can correct becomes one line."""
    try:
        code = application(arguments, standalone_mode=False)
        return interrupted() if code == TYPERS_INTERRUPT else int(code or 0)
    except (KeyboardInterrupt, typer.Abort):
        return interrupted()
    except Interrupted as error:
        return fail(str(error), 3)
    except typer.TyperException as error:
        return fail(error.format_message(), 2)
    except ContradictionError as error:
        return fail(str(error), 1)
    except OSError as error:
        # WriteError and our own messages are complete; messages of the operating system are rearranged.
        known = error.strerror is None or error.filename is None
        return fail(str(error) if known else f"{error.filename}: {error.strerror}", 2)
    except ValueError as error:
        if not raised_here(error):
            raise
        return fail(str(error), 2)


def interrupted() -> int:
    """Tell the user how to continue; only once if a signal stops several processes."""
    return fail(RESUMABLE, 3) if is_first_process() else 3


def raised_here(error: Exception) -> bool:
    """Return whether this package raised the error on purpose, and not a library because of a bug of ours."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and PACKAGE in Path(frames[-1][0].f_code.co_filename).parents


def fail(message: str, code: int) -> int:
    """Print one line on standard error and return the exit code."""
    typer.echo(f"error: {printable(' '.join(message.split()))}", err=True)
    return code


def stop(number: int, frame: FrameType | None) -> NoReturn:
    """Treat SIGTERM and SIGUSR1 as Ctrl-C, so that a cancelled job tells the user how to continue."""
    raise KeyboardInterrupt


def start(application: typer.Typer) -> NoReturn:
    """Run an application as this process."""
    for number in NOTICES:
        signal.signal(number, stop)
    code = invoke(application)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has closed the pipe (`| head`), so nothing more can be printed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
