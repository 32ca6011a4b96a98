"""`sglr report` on real run directories, and its page in a real browser."""

from __future__ import annotations

import csv
import html
import json
import math
import re
import shutil
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import typer
from PIL import Image
from typer.testing import CliRunner

from sglr_flower.cli import studies
from sglr_flower.errors import UserError
from sglr_flower.run import inprocess
from sglr_flower.run.config import RunConfig
from sglr_flower.run.settings import read_config
from sglr_flower.studies import report
from sglr_flower.studies.report import curves, groups, tables

TOTALS = ("bytes_up", "bytes_down")
T_975 = {1: 12.7062047, 2: 4.30265273}  # quantiles of Student's t by degrees of freedom, from a printed table


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small runs: sglr with seeds 0, 1, 2 and psl with seed 0."""
    folder = tmp_path_factory.mktemp("trained")
    for name, method, seed in [("a0", "sglr", 0), ("a1", "sglr", 1), ("a2", "sglr", 2), ("b0", "psl", 0)]:
        config = {"method": method, "seed": seed, "num-clients": 2, "samples-per-client": 16, "num-server-rounds": 2}
        inprocess.run(RunConfig.parse({**config, "evaluate-samples": 20, "run-dir": str(folder / name)}))
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """The same runs, to be changed by a test."""
    return Path(
        shutil.copytree(trained, tmp_path / "runs", ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    )


def dirs(folder: Path, *names: str) -> list[Path]:
    return [folder / name for name in names]


def edit_rows(run_dir: Path, change: Callable[[list[dict[str, str]]], Any]) -> None:
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    header = list(rows[0])
    change(rows)
    with (run_dir / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, header, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def without_columns(run_dir: Path) -> None:
    """As versions wrote it that counted only the totals of bytes."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    header = [column for column in rows[0] if not column.startswith("bytes_") or column in TOTALS]
    with (run_dir / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, header, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def edit_summary(run_dir: Path, **changes: Any) -> None:
    path = run_dir / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_config(run_dir: Path, **changes: Any) -> None:
    values = read_config(run_dir / "config.toml") | {key.replace("_", "-"): value for key, value in changes.items()}
    (run_dir / "config.toml").write_text(tomli_w.dumps(values))


def make_unfinished(run_dir: Path, rounds: int = 1) -> None:
    (run_dir / "summary.json").unlink()
    edit_rows(run_dir, lambda rows: rows.__delitem__(slice(rounds, None)))


def copy_as_new_run(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    (target / "run-id").unlink()
    return target


def markdown_rows(text: str) -> dict[str, list[str]]:
    """The results' cells by their first one."""
    block = text.split("\n\n")[1].splitlines()
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block]
    return {row[0]: row[1:] for row in cells}


def test_runs_that_differ_only_in_seed_are_one_group_with_a_t_interval(runs: Path) -> None:
    accuracies = {"a0": 0.5, "a1": 0.6, "a2": 0.8}
    for name, value in accuracies.items():
        edit_summary(runs / name, test_accuracy_mean=value)
    edit_summary(runs / "b0", test_accuracy_mean=0.3, test_accuracy_std=0.05)

    built = report.build(dirs(runs, "b0", "a2", "a0", "a1"))

    assert [group.name for group in built.groups] == ["sglr", "psl"]  # best first
    assert [run.config.seed for run in built.groups[0].runs] == [0, 1, 2]
    assert built.differing == ("method",)
    expected = T_975[2] * statistics.stdev(accuracies.values()) / math.sqrt(3)
    assert built.groups[0].score == groups.Estimate(pytest.approx(1.9 / 3), pytest.approx(expected))
    assert built.groups[1].score == groups.Estimate(0.3, 0.05)  # one seed: the std over its clients
    rows = markdown_rows(report.to_markdown(built))
    assert rows["sglr"][:2] == [f"63.33 ± {100 * expected:.2f} %", "95 % interval, 3 seeds"]
    assert rows["psl"][:2] == ["30.00 ± 5.00 %", "std over 2 clients"]


def test_curves_hold_the_mean_and_interval_of_every_round(runs: Path) -> None:
    for name, losses in {"a0": ("2.0", "1.0"), "a1": ("4.0", "1.5")}.items():
        edit_rows(
            runs / name, lambda rows, losses=losses: [r.update(train_loss=x) for r, x in zip(rows, losses, strict=True)]
        )
    curve = report.build(dirs(runs, "a0", "a1")).groups[0].curve("train_loss")

    np.testing.assert_array_equal(curve.rounds, [1, 2])
    np.testing.assert_allclose(curve.mean, [3.0, 1.25])
    # The standard deviation of two values is their distance / sqrt(2), that of their mean is half the distance.
    np.testing.assert_allclose(curve.spread, [T_975[1] * 1.0, T_975[1] * 0.25], rtol=1e-7)


def test_one_run_has_a_band_over_clients_around_accuracy_and_none_around_loss(runs: Path) -> None:
    def change(rows: list[dict[str, str]]) -> None:
        rows[0].update(test_accuracy_mean="", test_accuracy_std="")  # a round without an evaluation
        rows[1].update(test_accuracy_mean="0.5", test_accuracy_std="0.125")

    edit_rows(runs / "a0", change)
    group = report.build([runs / "a0"]).groups[0]

    accuracy = group.curve("test_score_mean")
    assert (accuracy.rounds.tolist(), accuracy.mean.tolist()) == ([2], [0.5])
    assert accuracy.spread is not None
    assert accuracy.spread.tolist() == [0.125]
    assert group.curve("train_loss").spread is None


def test_totals_are_those_of_the_summaries(runs: Path) -> None:
    summary = json.loads((runs / "b0" / "summary.json").read_text())
    run = report.build([runs / "b0"]).groups[0].runs[0]

    assert (run.steps, run.bytes_up, run.bytes_down) == tuple(summary[k] for k in ("steps", "bytes_up", "bytes_down"))
    assert run.seconds == pytest.approx(summary["seconds"])
    assert run.step_seconds == pytest.approx(summary["step_seconds_median"])


def test_what_a_client_bore_is_counted_once_and_the_rest_is_a_mean_over_seeds(runs: Path) -> None:
    counted = {"forward_flops": 2_000_000, "backward_flops": 3_000_000, "activation_bytes": 5000, "weight_bytes": 1000}
    counted |= {"gradient_bytes": 900, "optimizer_bytes": 1800}
    edit_summary(runs / "a0", client={**counted, "samples": 100.0, "step_seconds": 0.01})
    edit_summary(runs / "a1", client={**counted, "samples": 300.0, "step_seconds": 0.03})
    edit_summary(runs / "a2", client=None)  # of an earlier version
    edit_summary(runs / "b0", client={"samples": 100.0, "step_seconds": None})
    for name, up in (("a0", (700, 300)), ("a1", (1500, 1500))):
        edit_rows(runs / name, lambda rows, up=up: [r.update(bytes_up=x) for r, x in zip(rows, up, strict=True)])
    built = report.build(dirs(runs, "a0", "a1", "a2", "b0"))
    table = tables.clients(built)

    assert table is not None
    rows = {row[0]: row[1:] for row in table.rows}
    # 5 MFLOP for each of 200 samples in the mean; 8.7 kB; 1000 and 3000 bytes of two clients; 10 and 30 ms.
    assert rows["sglr"][:6] == ("2 MFLOP", "3 MFLOP", "1 GFLOP", "8.7 kB", "5.0 kB", "1.8 kB")
    assert (rows["sglr"][6], rows["sglr"][8]) == ("1.0 kB", "20 ms")
    assert rows["psl"][:5] == (tables.NOTHING,) * 5
    assert rows["psl"][8] == tables.NOTHING
    assert all(len(row) == len(table.header) for row in table.rows)
    assert "| one client of |" in report.to_markdown(built)
    assert "What one client bore" in report.to_html(built)


def test_runs_of_versions_that_did_not_count_have_no_such_table(runs: Path) -> None:
    for name in ("a0", "b0"):
        edit_summary(runs / name, client=None)
    built = report.build(dirs(runs, "a0", "b0"))
    assert tables.clients(built) is None
    assert "What one client bore" not in report.to_html(built)


def test_what_was_sent_is_shown_in_its_parts(runs: Path) -> None:
    table = tables.sent(report.build([runs / "a0"]))
    row = dict(zip(table.header, table.rows[0], strict=True))
    # 2 rounds of 32 samples: 32 x 8 x 8 floats each way, one of the two clients' replaced by the average, and a label.
    assert row["smashed data"] == "524.3 kB"
    assert (row["own gradients"], row["averages"]) == ("262.1 kB", "262.1 kB")
    assert (row["labels"], row["segments up"], row["framing"]) == ("512 bytes", "0 bytes", "0 bytes")
    assert (row["up per client"], row["down per client"]) == ("262.4 kB", "262.1 kB")


def test_a_run_that_did_not_count_apart_has_dashes(runs: Path) -> None:
    without_columns(runs / "b0")
    assert set(tables.sent(report.build([runs / "b0"])).rows[0][1:-2]) == {tables.NOTHING}


def test_a_seed_given_twice_does_not_narrow_the_interval(runs: Path) -> None:
    again = copy_as_new_run(runs / "a0", runs / "again")
    built = report.build([*dirs(runs, "a0", "a1"), again])

    assert sorted(len(group.runs) for group in built.groups) == [1, 2]
    assert {group.name for group in built.groups} == {f"sglr on digits ({again})", f"sglr on digits ({runs / 'a0'}, …)"}


def test_places_and_timeouts_do_not_keep_seeds_apart_but_settings_do(runs: Path) -> None:
    edit_config(runs / "a1", step_timeout=7.0, data_dir="/elsewhere", checkpoint_every=2)
    edit_config(runs / "a2", splitavg_phi=0.25)
    built = report.build(dirs(runs, "a0", "a1", "a2"))

    assert sorted(group.name for group in built.groups) == ["splitavg-phi 0.25", "splitavg-phi 0.5"]
    assert "splitavg-phi" not in built.common
    assert built.common["batch-size"] == 8


def test_two_folders_of_images_are_two_data_sets(runs: Path) -> None:
    for name, folder in (("a0", "/cats"), ("a1", "/dogs")):
        edit_config(runs / name, dataset="folder", data_dir=folder)
    assert len(groups.build(dirs(runs, "a0", "a1")).groups) == 2


def test_a_groups_name_has_no_more_settings_than_tell_it_apart(runs: Path) -> None:
    """A method's own settings go without saying, until two groups have the same method."""
    edit_config(runs / "b0", splitavg_phi=0.0)
    built = groups.build(dirs(runs, "a0", "b0"))
    assert sorted(group.name for group in built.groups) == ["psl", "sglr"]
    assert built.differing == ("method", "splitavg-phi")

    edit_config(runs / "a1", splitavg_phi=0.25)
    built = groups.build(dirs(runs, "a0", "a1", "b0"))
    assert sorted(group.name for group in built.groups) == [
        "psl, splitavg-phi 0.0",
        "sglr, splitavg-phi 0.25",
        "sglr, splitavg-phi 0.5",
    ]


def test_an_unfinished_run_is_shown_with_what_it_has_and_bends_no_mean(runs: Path) -> None:
    make_unfinished(runs / "a2")
    edit_rows(runs / "a2", lambda rows: rows[0].update(test_accuracy_mean="0.99", steps="77"))
    built = report.build(dirs(runs, "a2", "a0", "a1", "b0"))

    last = built.groups[-1]  # although its accuracy is the highest
    assert last.name == f"sglr ({runs / 'a2'}: unfinished, 1 of 2 rounds)"
    assert not last.finished
    assert "1 run is unfinished" in tables.sentence(built)
    cells = next(row for row in tables.results(built).rows if row[0] == last.name)
    assert cells[1] == "unfinished"
    assert cells[3].startswith("99.00 ±")
    assert cells[5] == "77"
    assert [len(group.runs) for group in built.groups[:-1] if group.name == "sglr"] == [2]


def test_a_run_before_its_first_round_and_a_failed_one_are_shown(runs: Path) -> None:
    make_unfinished(runs / "a0")
    (runs / "a0" / "metrics.csv").unlink()
    make_unfinished(runs / "a1")
    (runs / "a1" / "status.json").write_text(json.dumps({"state": "failed", "error": "disk <full>"}))
    built = report.build(dirs(runs, "a0", "a1"))

    assert "none of them finished yet" in tables.sentence(built)
    assert "failed: disk <full>" in {row[4] for row in tables.runs(built).rows}
    assert "disk &lt;full&gt;" in report.to_html(built)


def test_a_diverged_run_is_called_so_and_leaves_the_picture_readable(runs: Path) -> None:
    edit_rows(runs / "b0", lambda rows: (rows[0].update(train_loss="1e30"), rows[1].update(train_loss="nan")))
    edit_summary(runs / "b0", train_loss=None)
    edit_rows(runs / "a1", lambda rows: rows[1].update(train_loss="inf"))
    built = report.build(dirs(runs, "a0", "a1", "b0"))

    rows = markdown_rows(report.to_markdown(built))
    assert rows["psl"][3] == "diverged"
    assert rows["sglr"][3] == "diverged in 1 of 2"
    assert np.isnan(next(g for g in built.groups if g.name == "sglr").curve("train_loss").mean).tolist() == [
        False,
        True,
    ]
    assert "<svg" in curves.draw(built, curves.Look(dark=False, narrow=True))


def damage_field(run_dir: Path) -> None:
    edit_rows(run_dir, lambda rows: rows[1].update(train_loss="abc"))


def damage_tail(run_dir: Path) -> None:
    path = run_dir / "metrics.csv"
    path.write_text(path.read_text()[:-60])


def damage_order(run_dir: Path) -> None:
    edit_rows(run_dir, lambda rows: rows.reverse())


def damage_rows(run_dir: Path) -> None:
    edit_rows(run_dir, lambda rows: rows.pop())


def damage_column(run_dir: Path) -> None:
    path = run_dir / "metrics.csv"
    path.write_text(path.read_text().replace("train_loss", "loss"))


def damage_accuracy(run_dir: Path) -> None:
    edit_rows(run_dir, lambda rows: rows[0].update(test_accuracy_mean="77"))


def damage_bytes(run_dir: Path) -> None:
    (run_dir / "metrics.csv").write_bytes(b"\xff\xfe\x00")


def damage_summary(run_dir: Path) -> None:
    (run_dir / "summary.json").write_text('{"test_accuracy_mean": 0.5')


def damage_picture(run_dir: Path) -> None:
    Image.new("RGB", (64, 64)).save(run_dir / "partition.png")
    (run_dir / "partition.png").write_bytes((run_dir / "partition.png").read_bytes()[:40])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (damage_field, r"metrics\.csv is damaged: its row 2 has train_loss = 'abc', but it should be a valid number"),
        (damage_tail, r"metrics\.csv is damaged: its row 2"),
        (damage_order, r"metrics\.csv is damaged: its row 1 is of round 2, expected round 1"),
        (damage_rows, r"metrics\.csv is damaged: it has 1 rounds of a finished run of 2"),
        (damage_column, r"metrics\.csv is damaged: its row 1 has no train_loss"),
        (damage_accuracy, r"metrics\.csv is damaged: its row 1 has test_accuracy_mean = '77', but it should be less"),
        (damage_bytes, r"metrics\.csv cannot be read"),
        (damage_summary, r"summary\.json is damaged"),
        (damage_picture, r"partition\.png is no whole PNG picture"),
    ],
)
def test_a_damaged_file_is_one_sentence(runs: Path, damage: Callable[[Path], None], sentence: str) -> None:
    damage(runs / "a0")
    with pytest.raises(UserError, match=sentence) as raised:
        report.build([runs / "a0"])
    assert "\n" not in str(raised.value)


def test_a_folder_without_a_run_and_a_run_given_twice_are_refused(runs: Path) -> None:
    with pytest.raises(UserError, match="is not a run directory"):
        report.build([runs])
    with pytest.raises(UserError, match="are the same run: name it once"):
        report.build([runs / "a0", runs / "a1", runs / "a1" / ".." / "a0"])
    shutil.copytree(runs / "a0", runs / "copy")
    with pytest.raises(UserError, match="are the same run: name it once"):
        report.build(dirs(runs, "a0", "copy"))
    with pytest.raises(UserError, match="at least one run directory"):
        report.build([])


def test_markdown_keeps_wide_rows_whole_and_escapes_what_markdown_would_read(runs: Path, tmp_path: Path) -> None:
    for name in ("a0", "b0"):
        make_unfinished(runs / name)
    odd = runs / "a0"
    odd = odd.rename(odd.with_name("a|b*" + "x" * 100))
    app = typer.Typer()
    app.command()(studies.report)
    result = CliRunner().invoke(app, [str(odd), str(runs / "b0"), "--out", str(tmp_path / "r.html")])

    assert result.exit_code == 0, result.output
    row = next(line for line in result.stdout.splitlines() if "x" * 100 in line)
    assert r"a\|b\*" in row
    assert len(re.findall(r"(?<!\\)\|", row)) == len(tables.results(report.build([odd])).header) + 1
    assert result.stdout.splitlines()[-1] == f"written: {tmp_path / 'r.html'}"
    assert (tmp_path / "r.html").read_text().startswith("<!DOCTYPE html>")


def test_a_page_that_cannot_be_written_is_a_sentence(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"report .*nowhere.* \(--out\) cannot be written: No such file"):
        report.command([runs / "a0"], tmp_path / "nowhere" / "r.html")


def test_the_same_report_is_the_same_page_and_names_nothing_outside_it(runs: Path) -> None:
    page = report.to_html(report.build(dirs(runs, "a0", "b0")))

    assert page == report.to_html(report.build(dirs(runs, "a0", "b0")))
    assert re.findall(r"(?:src|href|srcset)=\"(?!data:)|url\(|@import|<script|<link", page) == []


# In a browser


def browser() -> str:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium or google-chrome on the PATH: the page cannot be looked at")
    return found


def chromium(page: Path, *options: str) -> str:
    quiet = "--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
    profile = page.parent / f"profile-{len(list(page.parent.iterdir()))}"
    command = [browser(), "--headless", "--no-sandbox", *quiet.split(), "--disable-sync", f"--user-data-dir={profile}"]
    done = subprocess.run([*command, *options, page.as_uri()], capture_output=True, text=True, timeout=100, check=True)
    return done.stdout


COUNT_PICTURES = """<script>addEventListener("load", () => {
  const loaded = [...document.images].filter(image => image.complete && image.naturalWidth > 0);
  document.body.dataset.pictures = loaded.length + "/" + document.images.length;
  document.body.dataset.overflow = document.documentElement.scrollWidth - innerWidth;
});</script>"""


@pytest.mark.browser
def test_a_browser_shows_tables_and_pictures_and_runs_nothing_from_files(runs: Path, tmp_path: Path) -> None:
    for name, colour in {"a0": "red", "a1": "blue", "b0": "red"}.items():
        Image.new("RGB", (60, 40), colour).save(runs / name / "partition.png")
    make_unfinished(runs / "a2")
    evil = (runs / "a2").rename(runs / '"><img src=x onerror=alert(1)><b>')
    built = report.build([*dirs(runs, "a0", "a1", "b0"), evil])
    page = tmp_path / "page.html"
    page.write_text(report.to_html(built).replace("</body>", COUNT_PICTURES + "</body>"), encoding="utf-8")
    dom = chromium(page, "--window-size=500,900", "--dump-dom")

    # The curves, and each of the two different partitions once; the text of the evil name is no picture.
    assert 'data-pictures="3/3"' in dom
    overflow = re.search(r'data-overflow="(-?\d+)"', dom)
    assert overflow is not None
    assert int(overflow[1]) <= 0  # nothing to scroll sideways on a phone
    table = re.search(r'<table class="results">.*?</table>', dom, re.DOTALL)
    assert table is not None
    cells = [html.unescape(re.sub(r"<[^>]*>", "", cell)) for cell in re.findall(r"<t[hd]\b.*?</t[hd]>", table[0])]
    expected = tables.results(built)
    assert cells == [*expected.header, *(cell for row in expected.rows for cell in row)]


@pytest.mark.browser
@pytest.mark.parametrize(("dark", "scheme"), [(False, 1), (True, 0)])
def test_a_browser_draws_the_page_light_and_dark(runs: Path, tmp_path: Path, dark: bool, scheme: int) -> None:
    page, shot = tmp_path / "page.html", tmp_path / "shot.png"
    page.write_text(report.to_html(report.build(dirs(runs, "a0", "b0"))), encoding="utf-8")
    chromium(page, "--window-size=900,700", f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={shot}")
    with Image.open(shot) as picture:
        pixels = np.asarray(picture.convert("RGB"), dtype=np.int64)

    assert (pixels[5, 5].mean() < 80) == dark
    best = tuple(int(curves.COLOURS[0][dark][i : i + 2], 16) for i in (1, 3, 5))
    curve_pixels = (np.abs(pixels[150:450] - best).max(axis=-1) < 12).sum()
    assert curve_pixels > 100  # the best group's line, in the colour of this scheme
