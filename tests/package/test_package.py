"""The package as it is installed: built, put into an empty environment and used where there is no checkout.

The environment has the dependencies of the one that tests, which are not downloaded again, but neither its commands nor
its sglr_flower.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from email import message_from_string
from email.message import Message
from importlib.metadata import distribution
from pathlib import Path

import pytest

pytestmark = pytest.mark.flower

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """#!{python}
import sys
from {module} import {function}
sys.exit({function}())
"""
MINE = """
from collections import OrderedDict
from torch import nn
from sglr_flower import splitavg
from sglr_flower.split.methods import Method

def tiny(num_classes, image_size):
    top = nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))
    return nn.Sequential(OrderedDict(low=nn.Conv2d(3, 2, 3, 2), top=top))

tiny.cut = "low"
halved = Method(cut_gradient=lambda *arguments: splitavg.average(*arguments) / 2)
"""
TYPED = """
from sglr_flower import splitlr

rate: str = splitlr.server_lr(0.1, 8, 0.5)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


class Environment:
    """A virtual environment with the wheel, and a folder of a user who has nothing else of ours."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        venv.create(folder / "venv", with_pip=True, symlinks=True)
        self.bin, self.home = folder / "venv" / "bin", folder / "home"
        self.home.mkdir()
        self.run("python", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", str(wheel))
        site = self.run("python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        # Python does not read the .pth files of a folder that it was told of by one, so not that of the checkout.
        (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
        for command in distribution("flwr").entry_points.select(group="console_scripts"):
            path = self.bin / command.name
            path.write_text(SCRIPT.format(python=self.bin / "python", module=command.module, function=command.attr))
            path.chmod(0o755)

    def run(self, name: str, *arguments: str) -> str:
        """What a command of the environment prints; it has to end well."""
        ours = ("PYTHON", "VIRTUAL_ENV", "SGLR_")
        env = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
        env |= {"PATH": os.defpath, "COLUMNS": "200"}
        done = subprocess.run([self.bin / name, *arguments], cwd=self.home, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("user"), built[1])


def of_sdist(sdist: Path) -> Iterator[tuple[str, int]]:
    """Names without their first part, and sizes in bytes."""
    with tarfile.open(sdist) as opened:
        for member in opened.getmembers():
            yield member.name.partition("/")[2], member.size


def metadata(sdist: Path, wheel: Path) -> list[Message]:
    with tarfile.open(sdist) as opened:
        info = opened.extractfile(f"{sdist.name.removesuffix('.tar.gz')}/PKG-INFO")
        assert info is not None
        texts = [info.read().decode()]
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        texts.append(archive.read(name).decode())
    return [message_from_string(text) for text in texts]


def test_its_license_is_an_expression_and_a_file(built: tuple[Path, Path]) -> None:
    for found in metadata(*built):
        assert found.get_all("License-Expression") == ["Apache-2.0"]
        assert found.get_all("License-File") == ["LICENSE"]
        assert found.get("License") is None
        assert not any(line.startswith("License ::") for line in found.get_all("Classifier", []))
    with zipfile.ZipFile(built[1]) as wheel:
        (path,) = (name for name in wheel.namelist() if name.endswith("dist-info/licenses/LICENSE"))
        assert wheel.read(path) == (ROOT / "LICENSE").read_bytes()


def test_the_sdist_has_what_is_built_and_tested_and_nothing_heavy(built: tuple[Path, Path]) -> None:
    sizes = dict(of_sdist(built[0]))
    for name in ("pyproject.toml", "README.md", "LICENSE", "server_app.py", "sglr_flower/py.typed", "tools/fab.py"):
        assert name in sizes
    assert {Path(name).parts[0] for name in sizes} >= {"tests", "docs", "configs", "benchmarks"}
    assert not [name for name in sizes if name.startswith((".venv", "runs/", "data/", "build/", "dist/"))]
    assert max(sizes.values()) < 100_000
    assert built[0].stat().st_size < 1_000_000


def test_it_is_imported_from_the_wheel_and_nothing_from_the_checkout(installed: Environment) -> None:
    ask = "import importlib.util as u; print(*(u.find_spec(n) and u.find_spec(n).origin for n in {names!r}), sep='\\n')"
    names = ("sglr_flower.cli", "flwr", "server_app", "tests", "benchmarks")
    ours, flwr, *others = installed.run("python", "-c", ask.format(names=names)).splitlines()

    assert Path(ours).is_relative_to(installed.bin.parent)
    assert Path(flwr).is_relative_to(sysconfig.get_path("purelib"))
    assert others == ["None"] * 3


def test_a_run_with_ones_own_method_and_model_through_flower(installed: Environment) -> None:
    (installed.home / "mine.py").write_text(MINE)
    settings = ["num-clients=2", "samples-per-client=16", "num-server-rounds=2", "evaluate-samples=20"]
    settings += ["method=mine:halved", "model=mine:tiny"]
    said = installed.run("sglr", "run", "--run-dir", "own", *(f"--set={setting}" for setting in settings))

    assert "mine:halved with mine:tiny on digits" in said
    summary = json.loads((installed.home / "own" / "summary.json").read_text())
    assert (summary["rounds"], summary["exchange"]) == (2, "stream")
    assert str(ROOT) not in (installed.home / "own" / "flower.log").read_text()


def test_a_table_of_the_paper(installed: Environment) -> None:
    said = installed.run("sglr", "paper", "table6", "--out", "table6")

    assert "Table 6" in said
    assert (installed.home / "table6" / "table.md").read_text().startswith("#")


def test_a_users_type_checker_sees_its_types(installed: Environment, tmp_path: Path) -> None:
    module = tmp_path / "typed.py"
    module.write_text(TYPED)
    command = [sys.executable, "-m", "mypy", "--config-file=", "--cache-dir", tmp_path / "cache"]
    command += ["--python-executable", installed.bin / "python", module]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout

    assert 'expression has type "float", variable has type "str"' in said
    assert "Found 1 error in 1 file" in said
