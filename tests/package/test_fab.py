"""What Flower packs of this project: with `flwr run`, from a checkout and an installed package, and for Flower Hub."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.supercore.constant import MAX_FILE_BYTES, MAX_FILE_COUNT, MAX_NAME_LENGTH, MAX_TOTAL_BYTES
from flwr.supercore.fab_format_version import normalize_and_validate_fab_format

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = ".info/CONTENT"
SENT = {"pyproject.toml", "server_app.py", "client_app.py"}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The app's folder for Flower Hub, and its bundle."""
    where = tmp_path_factory.mktemp("hub")
    command = [sys.executable, ROOT / "tools" / "fab.py", where / "fab"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (bundle,) = (where / "fab").glob("*.fab")
    assert f"{bundle}: {len(names(bundle)) + 1} files, {bundle.stat().st_size:,} bytes" in said
    return where / "fab" / "sglr-flower", bundle


def names(bundle: Path) -> set[str]:
    with zipfile.ZipFile(bundle) as opened:
        return {name for name in opened.namelist() if name != MANIFEST}


def package() -> set[str]:
    """Files of the package that Flower takes."""
    kinds = {".py", ".toml", ".md", ".json"}
    found = [path for path in (ROOT / "sglr_flower").rglob("*") if path.suffix in kinds]
    return {path.relative_to(ROOT).as_posix() for path in found if "__pycache__" not in path.parts}


def test_the_checkout_sends_what_a_run_needs_and_modules_beside_it(tmp_path: Path) -> None:
    bundle = tmp_path / "checkout.fab"
    bundle.write_bytes(build_fab_from_disk(ROOT))

    assert names(bundle) == SENT | package()


def test_the_apps_copy_in_a_package_is_an_app_too(tmp_path: Path) -> None:
    """Laid out as the wheel has it, by the same list."""
    copied = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for ours, theirs in copied["force-include"].items():
        (tmp_path / theirs).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / theirs).write_bytes((ROOT / ours).read_bytes())
    bundle = tmp_path / "copy.fab"
    bundle.write_bytes(build_fab_from_disk(tmp_path / "sglr_flower" / "app"))

    assert names(bundle) == SENT


def test_for_the_hub_it_is_of_format_1_and_names_license_and_flower(hub: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(hub[1]) as opened:
        settings = tomllib.loads(opened.read("pyproject.toml").decode())
        license_text = opened.read("LICENSE").decode()
    found = normalize_and_validate_fab_format(settings)

    assert settings["project"]["license"] == {"file": "LICENSE"}
    assert license_text == (ROOT / "LICENSE").read_text()
    assert found.fab_format_version == 1
    assert found.flwr_version_target is not None
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["tool"]["flwr"]["app"]["config"] == ours["tool"]["flwr"]["app"]["config"]
    assert settings["project"]["dependencies"] == ours["project"]["dependencies"]


def test_for_the_hub_it_holds_the_package_and_keeps_the_hubs_limits(hub: tuple[Path, Path]) -> None:
    folder, bundle = hub
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]

    assert names(bundle) == SENT | {"README.md", "LICENSE"} | package()
    assert len(sizes) <= MAX_FILE_COUNT
    assert max(sizes.values()) <= MAX_FILE_BYTES
    assert sum(sizes.values()) <= MAX_TOTAL_BYTES
    assert bundle.stat().st_size <= MAX_TOTAL_BYTES
    assert len(project["name"]) <= MAX_NAME_LENGTH
    assert len(project["description"]) < 200


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "sglr-flower").mkdir()
    done = subprocess.run([sys.executable, ROOT / "tools" / "fab.py", tmp_path], capture_output=True, text=True)

    assert done.returncode != 0
    assert "exists" in done.stderr
    assert list((tmp_path / "sglr-flower").iterdir()) == []
