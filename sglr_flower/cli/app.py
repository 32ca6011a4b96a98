"""All commands of ``sglr``, in the order in which its help lists them."""

from __future__ import annotations

import platform
from typing import Annotated

import typer

import sglr_flower
from sglr_flower.cli import costs, federation, paper, run, studies, trained

app = typer.Typer(help="SGLR split learning on Flower.", no_args_is_help=True, pretty_exceptions_enable=False)

for command in (
    *(run.run, run.resume, run.keys),
    *(studies.report, trained.evaluate, trained.export, trained.predict),
    *(studies.attack, paper.paper, costs.estimate, studies.analyze, costs.bench),
):
    app.command()(command)
app.add_typer(federation.app, name="federation")


def _show_versions(wanted: bool) -> None:
    if not wanted:
        return
    from importlib import metadata  # a third of the time that help takes

    typer.echo(f"sglr-flower {sglr_flower.__version__}")
    for name in ("flwr", "torch", "ray"):
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = "is not installed"
        typer.echo(f"{name} {found}")
    typer.echo(f"Python {platform.python_version()}")
    raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_versions,
            is_eager=True,
            help="Show the versions of sglr-flower, flwr, torch, ray and Python, and exit.",
        ),
    ] = False,
) -> None:
    """SGLR split learning on Flower."""
