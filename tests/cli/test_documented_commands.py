"""Every command in README.md and docs/ is one that the real command line takes."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer
from flwr.cli.app import app as flwr_app

from benchmarks import machine
from sglr_flower.cli.app import app
from sglr_flower.errors import UserError
from sglr_flower.run.config import RunConfig
from sglr_flower.run.settings import parse_assignment, read_config

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TOOLS = ("sglr", "make", "flwr", "python")
SGLR, FLWR = typer.main.get_command(app), typer.main.get_command(flwr_app)
for parameter in SGLR.params:  # parsing alone would install completion into this person's home
    parameter.callback = None
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


class Unknown(Exception):
    """A command that there is not."""


def commands(text: str) -> Iterator[tuple[str, bool]]:
    """The commands of a document, and whether each is whole; one within a sentence may stand for all of its kind."""
    fence = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    for block in fence.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            yield line, True
    for span in re.findall(r"`([^`]+)`", fence.sub("", text)):
        yield " ".join(span.split()), False


def words(line: str) -> list[str]:
    """Its words, without variables before it and the comment after it; none if it calls no tool of `TOOLS`."""
    if line.partition("=")[0].isupper():
        line = line.partition(" ")[2]
    if not line.startswith(tuple(f"{tool} " for tool in TOOLS)):
        return []
    return shlex.split(line, comments=True)


def parse(command: click.Command, arguments: list[str], whole: bool) -> click.Context | None:
    """Parse as the command line does, without doing anything; None where a sentence names no more than a kind."""
    rest = list(arguments)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        if rest[0] not in command.commands:
            raise Unknown(f"{' '.join(arguments)}: there is no {rest[0]}")
        command = command.commands[rest.pop(0)]
    try:
        return command.make_context(command.name or "", rest)
    except click.exceptions.Exit:  # --help, --version: it has said what was asked for
        return None
    except click.UsageError as error:
        no_more = not rest and isinstance(command, click.Group)
        needs_more = isinstance(error, click.MissingParameter) or "requires an argument" in error.message or no_more
        placeholder = isinstance(error, click.BadParameter) and re.search(r"'[A-Z-]+'", error.message)
        if not whole and (needs_more or placeholder):
            return None
        raise Unknown(f"{' '.join(arguments)}: {error.format_message()}") from None


def check(line: str, *, whole: bool) -> None:
    """Parse one command by the real command line.

    Raises
    ------
    Unknown
        If it would not be taken.
    """
    tool, *arguments = words(line)
    match [tool, *arguments]:
        case ["sglr", *_]:
            context = parse(SGLR, arguments, whole)
            if context is not None:
                check_settings(context)
        case ["flwr", *_]:
            parse(FLWR, arguments, whole)
        case ["make", *targets]:
            if missing := [target for target in targets if "=" not in target and target not in TARGETS]:
                raise Unknown(f"make has no target {missing[0]}")
        case ["python", "-m", "pytest", *rest]:
            if missing := [path for path in rest if not path.startswith("-") and not (ROOT / path).exists()]:
                raise Unknown(f"there is no {missing[0]}")
        case ["python", "-m", module, *rest] if module.startswith("benchmarks."):
            try:
                main = importlib.import_module(module).main
            except ModuleNotFoundError as error:
                raise Unknown(str(error)) from None
            parse(typer.main.get_command(machine.command(main)), rest, whole)
        case _:
            raise Unknown(f"{line}: nobody knows how to check it")


def check_settings(context: click.Context) -> None:
    """Check the run-config of a command that takes one: its file and its keys."""
    config, settings = context.params.get("config"), context.params.get("settings")
    try:
        values = read_config(ROOT / config) if str(config).endswith(".toml") else {}
        RunConfig.parse(values | dict(parse_assignment(text) for text in settings or ()))
    except UserError as error:
        raise Unknown(str(error)) from None


def documented() -> Iterator[tuple[str, str, bool]]:
    for document in DOCUMENTS:
        for line, whole in dict.fromkeys(commands(document.read_text(encoding="utf-8"))):
            if words(line):
                yield document.name, line, whole


@pytest.mark.parametrize(("document", "line", "whole"), documented())
def test_it_is_a_command_that_there_is(document: str, line: str, whole: bool) -> None:
    check(line, whole=whole)


def test_commands_of_every_kind_are_found() -> None:
    found = [line for _, line, _ in documented()]
    for beginning in ("sglr run configs/", "sglr federation init", "make ", "python -m benchmarks.", "flwr run . "):
        assert any(line.startswith(beginning) for line in found), beginning
    assert sum(line.startswith("sglr ") for line in found) > 80


@pytest.mark.parametrize(
    "line",
    [
        "sglr bench step --only 20",
        "sglr trains",
        "sglr federation serve DIR",
        "sglr paper table9",
        "sglr run -s num-client=3",
        "sglr run -s optimizer=rmsprop",
        "sglr run configs/nowhere.toml",
        "sglr resume",
        "make tests",
        "python -m benchmarks.steps",
        "python -m benchmarks.step --only some",
        "python -m pytest tests/nowhere.py",
        "flwr run . --streaming",
        "SEEDS=3 make faulty",
    ],
)
def test_a_command_that_there_is_not_is_noticed(line: str) -> None:
    with pytest.raises(Unknown):
        check(line, whole=True)


def test_a_sentence_may_name_a_kind_but_no_kind_that_there_is_not() -> None:
    for line in ("sglr resume", "sglr paper NAME", "sglr federation", "sglr run --federation", "flwr stop"):
        check(line, whole=False)
    for line in ("sglr paper name", "sglr federations", "sglr run --deployment"):
        with pytest.raises(Unknown):
            check(line, whole=False)
