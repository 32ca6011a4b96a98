"""Where a run is kept: a disk that is full, a file system without links, another locale than UTF-8's."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sglr_flower.errors import UserError
from sglr_flower.run import inprocess
from sglr_flower.run.config import RunConfig
from sglr_flower.run.rundir import RunDirectory

VALUES = {
    **{"dataset": "digits", "num-clients": 2, "samples-per-client": 16, "num-server-rounds": 3},
    **{"checkpoint-every": 1, "evaluate-samples": 20},
}


def full(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], error: int = errno.ENOSPC) -> None:
    """From now on a file with one of these names in its path has no room."""
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if any(name in path for name in names):
            raise OSError(error, os.strerror(error))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_is_named_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    whole = inprocess.run(RunConfig.parse(VALUES | {"run-dir": str(tmp_path / "whole")}))
    config = RunConfig.parse(VALUES | {"run-dir": str(tmp_path / "run")})
    with monkeypatch.context() as patched:
        full(patched, (".round-0002.partial",), error)
        with pytest.raises(
            UserError,
            match=r"disk of the run directory .*run is full \(.*round-0002.* the checkpoint of round 1 is whole",
        ):
            inprocess.run(config)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "failed"
    assert "is full" in status["error"]
    assert not list((tmp_path / "run").rglob("*.partial"))
    assert inprocess.run(config.replace(resume=True)).totals.train_loss == whole.totals.train_loss


def test_before_the_first_checkpoint_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full(monkeypatch, (".round-0001.partial",))
    with pytest.raises(UserError, match="there is no checkpoint yet: make room"):
        inprocess.run(RunConfig.parse(VALUES | {"run-dir": str(tmp_path / "run")}))


def test_the_end_is_told_where_no_new_file_has_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = Path.replace

    def refuse(self: Path, target: Path) -> Path:
        if json.loads(self.read_bytes()).get("state") == "failed":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(self, target)

    def run_into_it() -> None:
        with RunDirectory(tmp_path / "run").session(RunConfig.parse(VALUES)):
            monkeypatch.setattr(Path, "replace", refuse)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match="is full"):
        run_into_it()
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"


def test_a_file_system_without_links_has_runs_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    directory = RunDirectory(tmp_path / "run")
    directory.claim(RunConfig.parse(VALUES))
    assert directory.read_config().num_clients == 2
    with pytest.raises(UserError, match="holds another run"):
        directory.claim(RunConfig.parse(VALUES))


@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_another_locale_reads_and_writes_the_same_names(tmp_path: Path, locale: dict[str, str]) -> None:
    run_dir = tmp_path / "Läufe" / "erster"
    values = VALUES | {"num-server-rounds": 1}
    settings = [part for key, value in values.items() for part in ("-s", f"{key}={value}")]
    command = [sys.executable, "-m", "sglr_flower.cli", "run", "--in-process", "--run-dir", str(run_dir), *settings]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHONUTF8"))}
    done = subprocess.run(command, env=environment | locale, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert "Läufe/erster" in done.stdout.decode()
    assert RunDirectory(run_dir).is_finished()


def test_a_name_that_is_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run-config key data-dir = '.*b\\udcfcder': it must be UTF-8 text"):
        RunConfig.parse({"data-dir": f"{tmp_path}/b\udcfcder"})
