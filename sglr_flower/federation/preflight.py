"""Finds a run's mistakes before it starts, in a process of its own that ends with the answer.

The check makes the model and reads the data, for which it needs torch: half a gigabyte that `sglr run` would hold for
as long as it shows the run's progress.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from sglr_flower.errors import UserError, traceback_of
from sglr_flower.federation.processes import ended_with_block
from sglr_flower.federation.warm import FORKS, Interpreter
from sglr_flower.run.config import RunConfig

_CHILD = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from sglr_flower.federation.preflight import answer
answer()
"""
_FORKED = "sglr_flower.federation.preflight:answer"


class Findings(BaseModel):
    """What is known of a run once it is checked.

    Attributes
    ----------
    gpus : int
        GPUs that torch can compute on here.
    classes : tuple[str, ...]
        The names of the classes; empty with partition "own".
    counts : tuple[tuple[int, ...], ...]
        For each client its number of samples of each class; empty with partition "own".
    notes : tuple[str, ...]
        What a person should know of the data, a sentence each.
    remarks : tuple[str, ...]
        What can be trained and may not be meant, as of `run.checks.remarks`; empty with partition "own".
    """

    model_config = ConfigDict(frozen=True)

    gpus: int
    classes: tuple[str, ...] = ()
    counts: tuple[tuple[int, ...], ...] = ()
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


class _Question(BaseModel):
    config: dict[str, str | int | float | bool]
    own_data: bool
    changed_data: bool
    path: list[str]


class _Answer(BaseModel):
    mistake: str = ""
    details: str = ""
    findings: Findings | None = None


def look(config: RunConfig, *, own_data: bool, changed_data: bool = False) -> Findings:
    """`run.checks.check`, and what it leaves to be known, in this process.

    ``changed_data``: after `run.assembly.take_changed_data`.
    """
    from sglr_flower.data import datasets
    from sglr_flower.run import assembly, checks
    from sglr_flower.run.machine import available_gpus

    if changed_data:
        assembly.take_changed_data(config)
    checks.check(config, own_data=own_data)
    if config.partition == "own":
        return Findings(gpus=available_gpus())
    classes, counts = assembly.class_counts(config)
    return Findings(
        gpus=available_gpus(),
        classes=classes,
        counts=tuple(map(tuple, counts)),
        notes=tuple(datasets.notes(*assembly.data_of(config))),
        remarks=tuple(checks.remarks(config, {client: sum(own) for client, own in enumerate(counts)})),
    )


def look_apart(
    config: RunConfig, *, own_data: bool, changed_data: bool = False, warm: Interpreter | None = None
) -> Findings:
    """As `look`, without torch in this process; where it is loaded already, here after all.

    Parameters
    ----------
    config, own_data, changed_data
        As of `look`.
    warm : Interpreter or None
        The warm interpreter to fork the other process from, if there is one.
    """
    if "torch" in sys.modules:
        return look(config, own_data=own_data, changed_data=changed_data)
    asked = _Question(config=config.values(), own_data=own_data, changed_data=changed_data, path=_import_path())
    question = asked.model_dump_json().encode()
    code, said = _asked(question) if warm is None or not FORKS else _asked_of_fork(warm, question)
    if code < 0:
        name = signal.Signals(-code).name
        raise UserError(f"the run could not be checked: the process that makes its model was ended by {name}")
    if code > 0:
        sys.exit(code)  # a mistake of ours, whose traceback has been shown
    if not said:  # a module of the user's own has ended it
        raise UserError("the run could not be checked: the process that makes its model ended without an answer")
    reply = _Answer.model_validate_json(said)
    if reply.findings is None:
        mistake = UserError(reply.mistake)
        mistake.details = reply.details
        raise mistake
    return reply.findings


def _asked(question: bytes) -> tuple[int, bytes]:
    """The exit code and the answer of a process that is started for the question."""
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, json.dumps(_import_path())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        process_group=0,  # Ctrl-C in a terminal reaches this process alone, which ends the other without a traceback
    )
    with ended_with_block(child):
        said, _ = child.communicate(question)
    return child.returncode, said


def _asked_of_fork(warm: Interpreter, question: bytes) -> tuple[int, bytes]:
    """As `_asked`, of a process that is forked for the question."""
    with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as said:
        asked.write(question)
        asked.seek(0)
        with contextlib.closing(warm.start([_FORKED], asked.fileno(), said.fileno(), 2)) as child:
            code = child.wait()
        said.seek(0)
        return code, said.read()


def answer() -> None:
    """Be the other process of `look_apart`: a question on stdin, the answer on stdout."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a download takes its scratch folder away
    # Modules of the user's own may print when they are imported.
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        question = _Question.model_validate_json(sys.stdin.buffer.read())
        try:
            sys.path[:] = question.path
            findings = look(
                RunConfig.parse(question.config), own_data=question.own_data, changed_data=question.changed_data
            )
            reply = _Answer(findings=findings)
        except (UserError, OSError) as error:  # OSError: a full disk, say; its text names the file
            reply = _Answer(mistake=str(error), details=traceback_of(error))
        out.write(reply.model_dump_json().encode())
    sys.stdout.flush()
    os._exit(0)  # torch would take half a second to end in good order


def _import_path() -> list[str]:
    """Where this process finds modules, this package's own folder included."""
    return [*sys.path, str(Path(__file__).resolve().parents[2])]
