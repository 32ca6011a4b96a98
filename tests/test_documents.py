"""The documents say what the ledger says, and the verdicts on the paper's claims follow from one rule."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from studies.paper.finished import finish

from sglr_flower.studies.paper import ledger
from sglr_flower.studies.paper.cells import select
from sglr_flower.studies.paper.experiments import EXPERIMENTS
from sglr_flower.studies.paper.results import Estimate
from sglr_flower.studies.paper.results import read as finished
from sglr_flower.studies.paper.scales import SCALES
from tools import claims, results

ROOT = Path(__file__).resolve().parents[1]
SHORT = SCALES["short"]
ENGINES = r"([0-9a-f]{16}(\+[0-9a-f]{16})*)?"
"""Several of a run that was resumed after the code changed; none of one of a version that did not record it."""


@pytest.mark.parametrize("name", results.DOCUMENTS)
def test_a_document_says_what_the_ledger_says(name: str) -> None:
    assert results.rendered(Path(name)) == (ROOT / name).read_text(encoding="utf-8"), "make results"


@pytest.mark.parametrize("path", sorted((ROOT / ledger.FOLDER).glob("*.csv")), ids=lambda path: path.stem)
def test_every_row_is_whole_and_of_a_cell(path: Path) -> None:
    rows = ledger.read(path)
    scale, seeds = SCALES[path.stem], ledger.seeds(rows)
    cells = {ledger.settings(cell.config) for one in EXPERIMENTS.values() for cell in one.cells(scale, sorted(seeds))}
    assert rows
    assert all(ledger.settings(row.config) in cells for row in rows)
    assert all(re.fullmatch(ENGINES, row.fields["engine"]) for row in rows)
    assert all(row.curve for row in rows)


def record(root: Path, experiment: str, only: str, percents: tuple[float, ...]) -> None:
    """A finished cell for each seed, in the ledger of ``root``."""
    cells = select(EXPERIMENTS[experiment].cells(SHORT, range(len(percents))), only)
    for cell, percent in zip(cells, percents, strict=True):
        finish(root / "runs", cell, percent, (percent - 1, percent))
    ledger.add(root / "results" / "short.csv", finished(root / "runs", cells))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout of documents and a ledger in which sglr is 2, 3 and 4 points above psl with 20 clients."""
    record(tmp_path, "methods", "method=psl,clients=20", (80.0, 82.0, 81.0))
    record(tmp_path, "methods", "method=sglr,clients=20", (82.0, 85.0, 85.0))
    (tmp_path / "docs" / "images").mkdir(parents=True)
    kinds = ("summary methods short clients=20", "pace methods short", "picture methods short", "claims short")
    blocks = "\n".join(f"<!-- results: {kind} -->\noutdated\n<!-- /results -->\nbetween" for kind in kinds)
    (tmp_path / "docs" / "results.md").write_text(f"before\n{blocks}\n")
    (tmp_path / "README.md").write_text("<!-- results: table fig2 short -->\n<!-- /results -->\n")
    return tmp_path


def test_blocks_are_made_from_the_ledger_and_nothing_else_is_touched(root: Path) -> None:
    """Differences 2, 3, 4: s = 1, t(0.975; 2) = 4.302653, half width 2.4841."""
    results.write(root)
    text = (root / "docs" / "results.md").read_text()
    assert "outdated" not in text
    assert text.startswith("before\n<!-- results: summary methods short clients=20 -->\n\n| method |")
    assert text.count("\nbetween") == 4
    assert "| sglr | 84.00 ± 4.30 | 87.48 | -3.48 | +3.00 ± 2.48 |" in text
    assert "| both help: sglr over psl, 20 clients | +2.60 | +3.00 ± 2.48 (3 seeds) | holds |" in text
    assert "| sglr | 20 | 81.00 | 3 of 3 | 1 |" in text
    assert "![All methods on the same data and seeds, 6 runs](images/methods_short.png)" in text
    assert (root / "docs" / "images" / "methods_short.png").read_bytes().startswith(b"\x89PNG")
    assert "No run of this is finished yet." in (root / "README.md").read_text()

    record(root, "methods", "method=sgl,clients=20", (90.0,))
    assert results.rendered(Path("docs/results.md"), root) != text


def test_the_check_is_an_exit_status(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert results.main(["--check"], root) == 1
    assert "docs/results.md does not say what results/ does: make results" in capsys.readouterr().out
    assert results.main([], root) == 0
    assert results.main(["--check"], root) == 0


@pytest.mark.parametrize(
    ("ours", "above", "verdict"),
    [
        (None, 0, "not run"),
        (Estimate(1.0, 0.5, 3), 0, "holds"),
        (Estimate(1.0, 1.5, 3), 0, "in direction"),
        (Estimate(1.0, None, 1), 0, "in direction"),
        (Estimate(0.0, None, 1), 0, "not seen"),
        (Estimate(-1.0, 1.5, 3), 0, "not seen"),
        (Estimate(-1.0, 0.5, 3), 0, "contradicted"),
        (Estimate(-9.0, None, 1), 0, "not seen"),
        (Estimate(40.0, 5.0, 3), 10, "holds"),
        (Estimate(1.0, 0.5, 3), 10, "contradicted"),
    ],
)
def test_a_verdict_follows_from_the_interval(ours: Estimate | None, above: float, verdict: str) -> None:
    assert claims.verdict(claims.Claim("", (), above), ours) == verdict


def test_every_claim_is_of_cells_of_the_scale_and_the_paper_reports_most() -> None:
    """The paper's: 86.59 - 84.88 for SplitAvg with 20 clients; 2.60 with 20 less 1.73 with 10; 83.49 - 34.37."""
    published = {claim.words: claims.published(claim, SHORT) for claim in claims.CLAIMS}
    assert published["SplitAvg helps: sgl over psl, 20 clients"] == pytest.approx(1.71)
    (growth,) = (value for words, value in published.items() if words.startswith("gains grow"))
    assert growth == pytest.approx(2.60 - 1.73)
    (diverged,) = (value for words, value in published.items() if words.startswith("alpha 2"))
    assert diverged == pytest.approx(49.12)
    assert [words for words, value in published.items() if value is None] == [
        claim.words for claim in claims.CLAIMS[-2:]
    ]


def test_only_seeds_of_which_all_cells_are_there_count(tmp_path: Path) -> None:
    record(tmp_path, "methods", "method=psl,clients=20", (80.0, 81.0))
    record(tmp_path, "methods", "method=sglr,clients=20", (82.0,))
    (claim,) = (claim for claim in claims.CLAIMS if claim.words.startswith("both help"))
    assert claims.difference(claim, ledger.read(tmp_path / "results" / "short.csv"), SHORT) == Estimate(
        pytest.approx(2.0), None, 1
    )
