"""Writes what the ledger says into the documents: ``python -m tools.results``, or ``make results``.

In a document, what stands between ``<!-- results: KIND ... -->`` and ``<!-- /results -->`` is made of the rows in
results/ alone. The kinds are ``table``, ``pace`` and ``picture``, each with an experiment, a scale and, if not all of
its cells are meant, an ``--only`` expression; ``summary``, a table without its caption but for the seeds; and
``claims`` with a scale. With ``--check`` nothing is written, and the exit status says whether both agree.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from sglr_flower.errors import UserError
from sglr_flower.studies.paper import ledger, pace
from sglr_flower.studies.paper.caption import caption, seeds, subtitle
from sglr_flower.studies.paper.cells import Cell, select
from sglr_flower.studies.paper.experiment import Experiment
from sglr_flower.studies.paper.experiments import EXPERIMENTS
from sglr_flower.studies.paper.picture import draw
from sglr_flower.studies.paper.results import Result
from sglr_flower.studies.paper.scales import SCALES, Scale
from sglr_flower.studies.paper.table import entries, grid
from tools import claims

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "docs/results.md")
IMAGES = Path("docs/images")
_BLOCK = re.compile(r"(<!-- results: (?P<what>.+?) -->\n).*?(<!-- /results -->)", re.DOTALL)
_NOTHING = "No run of this is finished yet."


def rendered(document: Path, root: Path = ROOT) -> str:
    """A document's text with its blocks made anew.

    Parameters
    ----------
    document : Path
        Relative to ``root``.
    root : Path
        The checkout.
    """
    text = (root / document).read_text(encoding="utf-8")
    return _BLOCK.sub(lambda block: f"{block[1]}\n{_block(block['what'], document, root)}{block[3]}", text)


def write(root: Path = ROOT) -> None:
    """Write all documents and their pictures."""
    for name in DOCUMENTS:
        document = Path(name)
        for block in _BLOCK.finditer((root / document).read_text(encoding="utf-8")):
            kind, *words = block["what"].split()
            if kind == "picture":
                _draw(root, *words)
        (root / document).write_text(rendered(document, root), encoding="utf-8")


def _block(what: str, document: Path, root: Path) -> str:
    """A block's paragraphs, each with an empty line after it."""
    kind, *words = what.split()
    if kind == "claims":
        (name,) = words
        rows = ledger.read(ledger.file_of(root / ledger.FOLDER, name))
        return f"{claims.table(rows, SCALES[name]).to_markdown()}\n\n{claims.RULE}\n\n"
    experiment, scale, cells, results = _finished(root, *words)
    if kind == "pace":
        timed = pace.table(experiment, results)
        if timed is None:
            return ""
        words_above = f"**{pace.title(experiment)}.** {pace.caption(experiment, results)}"
        return f"{words_above}\n\n{timed.to_markdown()}\n\n"
    if not results:
        return "" if kind == "picture" else f"{_NOTHING}\n\n"
    if kind == "picture":
        place = os.path.relpath(IMAGES / _image(*words), document.parent)
        return f"![{experiment.title}, {len(results)} runs]({place})\n\n"
    places = entries(experiment, cells, results)
    table = grid(experiment, places, {}).to_markdown()
    if kind == "summary":
        return f"{table}\n\n{seeds(places, cells)}\n\n"
    return f"{table}\n\n{caption(experiment, scale, places, cells, results)}\n\n"


def _finished(root: Path, name: str, scale_name: str, *only: str) -> tuple[Experiment, Scale, list[Cell], list[Result]]:
    """The finished cells of an experiment, and their results."""
    experiment, scale = EXPERIMENTS[name], SCALES[scale_name]
    rows = ledger.read(ledger.file_of(root / ledger.FOLDER, scale_name))
    cells = experiment.cells(scale, sorted(ledger.seeds(rows)) or [0])
    results = ledger.results(rows, select(cells, " ".join(only)))
    return experiment, scale, [result.cell for result in results], results


def _image(name: str, scale: str, *only: str) -> str:
    return "_".join([name, scale, *re.findall(r"[\w.]+", " ".join(only))]) + ".png"


def _draw(root: Path, *words: str) -> None:
    experiment, scale, cells, results = _finished(root, *words)
    if results:
        places = entries(experiment, cells, results)
        words_below = subtitle(experiment.picture, scale, cells)
        picture = draw(experiment, experiment.picture, places, results, {}, words_below)
        (root / IMAGES / _image(*words)).write_bytes(picture)


def main(arguments: Sequence[str], root: Path = ROOT) -> int:
    """Write, or with ``--check`` compare; the exit status."""
    if list(arguments) not in ([], ["--check"]):
        print(__doc__)
        return 2
    if not arguments:
        write(root)
        return 0
    stale = [name for name in DOCUMENTS if rendered(Path(name), root) != (root / name).read_text(encoding="utf-8")]
    for name in stale:
        print(f"{name} does not say what results/ does: make results")
    return 1 if stale else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"make results: {error}")
