"""Settings as people write them: files, assignments of the command line, Flower's own table."""

from pathlib import Path

import pytest

from sglr_flower.errors import UserError
from sglr_flower.run.config import RunConfig
from sglr_flower.run.settings import parse_assignment, read_config


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("num-clients=20", ("num-clients", 20)),
        ("splitavg-phi = 0.5", ("splitavg-phi", 0.5)),
        ("data-dir=/some/where=odd", ("data-dir", "/some/where=odd")),
        ("client-lr=1e-2", ("client-lr", 0.01)),
        ("num-clients=many", ("num-clients", "many")),
        ('method="psl"', ("method", "psl")),  # as Flower's --run-config wants it, and as a shell may leave it
        ("method='psl'", ("method", "psl")),
        ("method=\"psl'", ("method", "\"psl'")),
        ('method="', ("method", '"')),
        ('classes="a,b","c,d"', ("classes", '"a,b","c,d"')),
        ('num-clients="2"', ("num-clients", 2)),
        ("num_clients=2", ("num-clients", 2)),
        ("channels=1", ("channels", 1)),  # one of few numbers
        ("exchange=grid", ("exchange", "grid")),
        ("num-server-rounds=1_000", ("num-server-rounds", 1000)),
        ("splitavg-phi=.5", ("splitavg-phi", 0.5)),
        ("splitavg-phi=1.", ("splitavg-phi", 1.0)),
        ("splitavg-phi=[1]", ("splitavg-phi", "[1]")),
        ("recompute=True", ("recompute", True)),
        ("recompute=false", ("recompute", False)),
        ("recompute=yes", ("recompute", "yes")),
    ],
)
def test_assignments_are_typed_by_their_key(text: str, expected: tuple[str, object]) -> None:
    assert parse_assignment(text) == expected


@pytest.mark.parametrize(("text", "word"), [("num-clients", "key=value"), ("clients=3", "num-clients")])
def test_a_wrong_assignment(text: str, word: str) -> None:
    with pytest.raises(UserError, match=word):
        parse_assignment(text)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("method = = 3")
    with pytest.raises(UserError, match=r"broken\.toml is not valid TOML"):
        read_config(broken)
    with pytest.raises(UserError, match=r"missing\.toml does not exist"):
        read_config(tmp_path / "missing.toml")


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "marked.toml").write_text('method = "psl"\n', encoding="utf-8-sig")
    assert read_config(tmp_path / "marked.toml") == {"method": "psl"}


def test_a_file_that_is_not_utf_8_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "wide.toml").write_text('method = "psl"\n', encoding="utf-16")
    with pytest.raises(UserError, match=r"wide\.toml is not UTF-8 text"):
        read_config(tmp_path / "wide.toml")


def test_a_flower_apps_pyproject_is_read_as_it_is(tmp_path: Path) -> None:
    app = tmp_path / "pyproject.toml"
    app.write_text('[project]\nname = "mine"\n[tool.ruff]\n[tool.flwr.app.config]\nnum_clients = 4\n')
    assert read_config(app) == {"num-clients": 4}
    app.write_text('[project]\nname = "mine"\n[tool.ruff]\nline-length = 100\n')
    with pytest.raises(UserError, match=r"pyproject\.toml has a table tool, but no \[tool\.flwr\.app\.config\]"):
        read_config(app)


def test_underscores_are_hyphens_everywhere(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("num_clients = 4\n")
    values = read_config(file) | dict([parse_assignment("num-clients=6")])
    assert RunConfig.parse(values).num_clients == 6
    assert RunConfig.parse({"num_clients": 3}).num_clients == 3
    file.write_text("num_clients = 4\nnum-clients = 4\n")
    with pytest.raises(UserError, match="num-clients is given twice: as num_clients too"):
        read_config(file)
