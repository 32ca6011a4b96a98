"""Makes of this checkout a Flower app in the form of Flower Hub, and its bundle: ``python tools/fab.py FOLDER``.

``flwr run .`` and ``flwr build`` read the checkout's own pyproject.toml, whose license is an SPDX expression as PEP 639
has it. The format of apps that names the Flower version it was made for (``fab-format-version = 1``) takes nothing but
the older table ``license = {file = "LICENSE"}`` (flwr/supercore/fab_format_version.py). One file cannot say both, so
the app is a folder of its own: what a run needs, and that pyproject.toml in Flower's form. From there ``flwr build``
makes the bundle, and ``flwr app publish`` would upload it.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sysconfig
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import tomli_w

ROOT = Path(__file__).resolve().parents[1]
PROJECT = ("name", "version", "description", "readme", "requires-python", "dependencies")
PARTS = ("server_app.py", "client_app.py", "README.md", "LICENSE", "sglr_flower")


def write_app(folder: Path) -> None:
    """Write the app's folder.

    Parameters
    ----------
    folder : Path
        Must not exist yet. Its last part is the app's name, of letters, digits and hyphens.

    Raises
    ------
    FileExistsError
        If it exists.
    """
    folder.mkdir(parents=True)
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, folder / part)
    (folder / "pyproject.toml").write_text(tomli_w.dumps(app_settings()))


def app_settings() -> dict[str, object]:
    """The app's pyproject.toml: what Flower reads of the checkout's, with its license and version in Flower's form."""
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = {key: ours["project"][key] for key in PROJECT} | {"license": {"file": "LICENSE"}}
    app = {"fab-format-version": 1, "flwr-version-target": version("flwr"), **ours["tool"]["flwr"]["app"]}
    del app["fab-include"]  # the folder holds nothing else
    return {"project": project, "tool": {"flwr": {"app": app}}}


def build(folder: Path) -> Path:
    """Let ``flwr build`` make the bundle, beside the app's folder.

    Raises
    ------
    subprocess.CalledProcessError
        If Flower refuses the app; it has said why.
    """
    flwr = Path(sysconfig.get_path("scripts")) / "flwr"
    subprocess.run([flwr, "build", "--app", folder.resolve()], cwd=folder.parent, check=True)
    (bundle,) = folder.parent.glob("*.fab")
    return bundle


def main(where: Path) -> None:
    """Write app and bundle into a folder, and list what the bundle holds."""
    write_app(where / "sglr-flower")
    bundle = build(where / "sglr-flower")
    with zipfile.ZipFile(bundle) as opened:
        files = opened.infolist()
    for file in files:
        print(f"{file.file_size:9,}  {file.filename}")
    print(f"{bundle}: {len(files)} files, {bundle.stat().st_size:,} bytes")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(
        description="Write the app as Flower Hub takes it, and its bundle, into a folder."
    )
    arguments.add_argument("folder", type=Path)
    main(arguments.parse_args().folder)
