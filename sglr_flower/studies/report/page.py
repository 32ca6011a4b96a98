"""The report as one HTML page."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from sglr_flower.studies.report import tables
from sglr_flower.studies.report.curves import COLOURS, Look, draw
from sglr_flower.studies.report.groups import Report, printable

NARROW = "(max-width: 640px)"
DARK = "(prefers-color-scheme: dark)"


@dataclass(frozen=True)
class Partition:
    """The picture of one partition.

    Attributes
    ----------
    source : str
        A data URI.
    caption : str
        Whose partition it is.
    """

    source: str
    caption: str


def to_html(report: Report) -> str:
    """The whole page: no script, no link to anything outside it, light and dark, wide and narrow."""
    import jinja2  # only reports need it

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sglr_flower.studies.report", "."),
        autoescape=True,  # names, paths and settings come from files
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    curves = {
        f"{theme}_{width}": _data_uri("image/svg+xml", draw(report, Look(theme == "dark", width == "narrow")).encode())
        for theme in ("light", "dark")
        for width in ("wide", "narrow")
    }
    first, others = _partitions(report)
    return environment.get_template("page.html").render(
        title=tables.title(report),
        sentence=tables.sentence(report),
        score=report.score.words,
        curves=curves,
        narrow=NARROW,
        dark=DARK,
        results=tables.results(report),
        finished=[group.finished for group in report.groups],
        notes=tables.notes(report),
        clients=tables.clients(report),
        clients_note=tables.CLIENTS_NOTE,
        sent=tables.sent(report),
        differences=tables.differences(report),
        common=tables.common(report),
        runs=tables.runs(report),
        partitions=first,
        other_partitions=others,
        colours=COLOURS,
    )


def _partitions(report: Report) -> tuple[list[Partition], list[Partition]]:
    """Each partition once: those of the groups' first seeds, and those that only other seeds have."""
    owners: dict[bytes, list[str]] = {}
    leading = set()
    for group in report.groups:
        for index, run in enumerate(group.runs):
            if run.partition:
                owners.setdefault(run.partition, []).append(f"{group.name}, seed {run.config.seed}")
                if index == 0:
                    leading.add(run.partition)
    total = len([run for run in report.runs if run.partition])
    first: list[Partition] = []
    others: list[Partition] = []
    for picture, names in owners.items():
        caption = "all runs" if len(names) == total == len(report.runs) else printable("; ".join(names))
        (first if picture in leading else others).append(Partition(_data_uri("image/png", picture), caption))
    return first, others


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
