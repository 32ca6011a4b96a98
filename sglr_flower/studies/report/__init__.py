"""`sglr report`: runs compared, as one page that needs nothing else and as Markdown. Reads run directories only."""

from __future__ import annotations

from pathlib import Path

import typer

from sglr_flower.errors import UserError
from sglr_flower.files import write_atomic
from sglr_flower.studies.report.groups import Report, build
from sglr_flower.studies.report.page import to_html
from sglr_flower.studies.report.tables import to_markdown

__all__ = ["Report", "build", "command", "to_html", "to_markdown"]


def command(run_dirs: list[Path], out: Path) -> None:
    """Write the page to ``out``, and the tables as Markdown here."""
    report = build(run_dirs)
    try:
        write_atomic(out, to_html(report).encode())
    except OSError as error:
        raise UserError(f"report {out} (--out) cannot be written: {error.strerror or error}") from None
    # Not through rich, which would fold wide rows: this text is to be pasted.
    typer.echo(to_markdown(report))
    typer.echo(f"\nwritten: {out.absolute()}")
