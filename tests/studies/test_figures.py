"""What `sglr analyze` writes, from hand-made rows."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from sglr_flower.studies.convergence.smoothness import MULTIPLES
from sglr_flower.studies.figures import Row, draw, save, tables


def row(name: str, server_round: int, **changes: object) -> Row:
    values: dict[str, object] = dict.fromkeys(Row.__dataclass_fields__, 0.5)
    values |= {"run": name, "name": name, "round": server_round, "clients": 4, "active": 2}
    values["losses"] = tuple(1.0 + multiple for multiple in (0.0, *MULTIPLES))
    return Row(**{**values, **changes})


def test_what_is_expected_follows_from_the_clients_and_how_many_are_active() -> None:
    assert (row("a", 1).cosine_expected, row("a", 1).kept_expected) == pytest.approx((math.sqrt(0.5), 0.75))
    assert (row("a", 1, active=4).cosine_expected, row("a", 1, active=4).kept_expected) == pytest.approx((0.5, 0.25))
    assert (row("a", 1, active=0).cosine_expected, row("a", 1, active=0).kept_expected) == (None, 1.0)


def test_a_figure_that_is_none_or_not_finite_is_empty_in_csv_and_null_in_json(tmp_path: Path) -> None:
    none = {"active": 0, "own_norm": None, "average_norm": None, "cosine": None}
    diverged = {"kept": math.nan, "gradient_norm2": math.inf, "losses": (math.nan,) * (1 + len(MULTIPLES))}
    save(tmp_path, [row("a", 1, **none), row("a", 2, **diverged)], 16)

    written = json.loads((tmp_path / "convergence.json").read_text())
    assert (written["batches"], written["multiples"]) == (16, list(MULTIPLES))
    first, second = written["checkpoints"]
    assert (first["cosine"], first["losses"][1]) == (None, 1.25)
    assert (second["kept"], second["gradient_norm2"], second["losses"]) == (None, None, [None] * 6)
    lines = list(csv.DictReader((tmp_path / "convergence.csv").open()))
    assert [line["cosine"] for line in lines] == ["", "0.5"]
    assert (lines[0]["loss_at_0"], lines[0]["loss_at_4"]) == ("1.0", "5.0")


@pytest.mark.parametrize("runs", [1, 10, 12])
def test_the_picture_takes_any_number_of_runs_and_figures_without_a_logarithm(runs: int) -> None:
    rows = [row(f"run {k}", r, bias2=-0.1, gradient_norm2=0.0) for k in range(runs) for r in (2, 4)]
    with Image.open(io.BytesIO(draw(rows))) as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").getcolors(10**6)) > 10


def test_the_tables_show_own_beside_expected() -> None:
    console = Console(width=160, file=io.StringIO(), record=True)
    for shown in tables([row("a", 3, kept=0.7, kept_error=0.02, variance=2.0, own_variance=3.0)], 16):
        console.print(shown)
    text = console.export_text()
    assert "0.70 ± 0.02 (0.75)" in text
    assert "0.50 (0.71)" in text
    assert "2 (3)" in text
