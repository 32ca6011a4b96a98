"""`sglr` answers at once: help, completion and mistakes in the arguments import nothing that takes seconds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata

import click
import pytest
import typer
from test_imports import HEAVY, ROOT, imported
from typer.testing import CliRunner

import sglr_flower
from sglr_flower import choices, models
from sglr_flower.cli.app import app
from sglr_flower.data import datasets
from sglr_flower.studies.paper.command import CALCULATIONS
from sglr_flower.studies.paper.experiments import EXPERIMENTS
from sglr_flower.studies.paper.scales import SCALES

NOT_NOW = (*HEAVY, "PIL", "cryptography")


def tree(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from tree(below, (*path, name))


COMMANDS = dict(tree(typer.main.get_command(app)))


def mistakes(command: click.Command) -> Iterator[list[str]]:
    """Arguments that the parser refuses: an unknown option, none where some are needed, a value of another type."""
    yield ["--no-such-option"]
    if isinstance(command, click.Group):
        yield ["no-such-command"]
    if any(parameter.required for parameter in command.params):
        yield []
    for parameter in command.params:
        takes_all = isinstance(parameter.type, click.types.StringParamType | click.Path | click.types.BoolParamType)
        if isinstance(parameter, click.Option) and not takes_all:
            yield [parameter.opts[0], "no-such-value"]


def answered(lines: list[list[str]]) -> str:
    """Code that gives `sglr` these command lines; each has to be refused by the parser, or with --help answered."""
    return f"""
import sys
from sglr_flower.cli import main
for line in {lines!r}:
    sys.argv = ["sglr", *line]
    stdout, sys.stdout = sys.stdout, sys.stderr
    try:
        main()
    except SystemExit as end:
        assert end.code == (0 if "--help" in line or "--version" in line else 2), (line, end.code)
    else:
        raise AssertionError(line)
    sys.stdout = stdout
"""


def asked(shell: str, *words: str) -> list[str]:
    """What `sglr` offers in a shell where the last of the words is not finished, and it imports nothing heavy."""
    asking = {"_SGLR_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": " ".join(words)}
    asking |= {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    asking["_TYPER_COMPLETE_FISH_ACTION"] = "get-args"
    code = f"""
import atexit, sys
from sglr_flower.cli import main
atexit.register(lambda: print("heavy:", *(name for name in {NOT_NOW!r} if name in sys.modules)))
sys.argv = ["sglr"]
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | asking, capture_output=True, text=True, check=True
    )
    *offered, heavy = done.stdout.splitlines()
    assert heavy.split() == ["heavy:"]
    return [line for line in offered if line]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_neither_help_nor_a_mistake_in_the_arguments_imports_anything_heavy(path: tuple[str, ...]) -> None:
    lines = [[*path, "--help"], *([*path, *wrong] for wrong in mistakes(COMMANDS[path]))]
    assert imported(answered(lines), NOT_NOW) == []


def test_every_kind_of_mistake_is_tried() -> None:
    assert ["--seeds", "no-such-value"] in list(mistakes(COMMANDS["paper",]))
    assert ["--knows", "no-such-value"] in list(mistakes(COMMANDS["attack",]))
    assert [] in list(mistakes(COMMANDS["federation", "init"]))
    assert len(COMMANDS) == 1 + 13 + 5


def test_keys_and_the_version_import_nothing_heavy() -> None:
    listed = (
        "from sglr_flower.cli.run import keys; import sys; sys.stdout = sys.stderr; keys(); sys.stdout = sys.__stdout__"
    )
    assert imported(listed, NOT_NOW) == []
    assert imported(answered([["--version"]]), NOT_NOW) == []


def test_the_version_names_what_a_result_depends_on() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sglr_flower.cli", "--version"], capture_output=True, text=True, cwd=ROOT
    )
    told = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert told == {
        "sglr-flower": sglr_flower.__version__,
        **{name: metadata.version(name) for name in ("flwr", "torch", "ray")},
        "Python": ".".join(map(str, sys.version_info[:3])),
    }


def test_a_package_that_is_not_there_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    result = CliRunner().invoke(app, ["--version"])
    assert "torch is not installed" in result.output.splitlines()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_offered_commands_options_and_values(shell: str) -> None:
    def offered(*words: str) -> set[str]:
        return set(re.findall(r"[\w=.-]+", " ".join(line.split("\t")[0] for line in asked(shell, *words))))

    assert {"predict"} <= offered("sglr", "pre")
    assert {"--in-process"} <= offered("sglr", "paper", "--in-")
    assert {"table1", "table6"} <= offered("sglr", "paper", "table")
    assert {"init", "demo"} <= offered("sglr", "federation", "")
    assert {"batch-size="} <= offered("sglr", "run", "-s", "batch-s")
    assert {"splitavg-phi=", "splitavg-over="} <= offered("sglr", "run", "--set", "splitavg-")
    assert {"optimizer=adam", "optimizer=sgd"} <= offered("sglr", "estimate", "-s", "opt")


def test_bash_is_offered_what_follows_its_last_word() -> None:
    """It takes = and : for words, and replaces what follows them."""
    assert asked("bash", "sglr", "run", "-s", "seed", "=", "1", "-s", "method", "=", "sf") == [
        "sfl",
        "sfl-v1",
        "sfl-v2",
    ]
    assert asked("bash", "sglr", "run", "-s", "recompute", "=") == ["true", "false"]
    assert asked("bash", "sglr", "paper", "table1", "--scale", "=", "sm") == ["smoke", "small"]
    before = ("-s", "partition", "=", "dirichlet", ":", "0.5")
    assert asked("bash", "sglr", "run", *before, "-s", "dataset", "=", "c") == ["cifar-10", "cifar-100"]


def test_zsh_is_offered_the_whole_word() -> None:
    assert '"method=ssl"' in asked("zsh", "sglr", "run", "-s", "method=ss")[0]


def test_what_is_offered_is_what_there_is() -> None:
    assert set(choices.MODELS) == set(models._MODELS)
    assert set(choices.DATASETS) == set(datasets.names())
    assert (tuple(EXPERIMENTS), tuple(CALCULATIONS)) == (choices.EXPERIMENTS, choices.CALCULATIONS)
    assert tuple(SCALES) == choices.SCALES
