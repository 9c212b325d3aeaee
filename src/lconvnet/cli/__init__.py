"""The command `lconvnet`: its subcommands, each a plain function in a module of this folder."""

from typing import NoReturn

import typer

from lconvnet.cli import certificates, families, reports, runs, wasserstein
from lconvnet.cli.process import invoke, start

__all__ = ["app", "invoke", "main", "start"]

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
