"""What a shell is offered for a word that is not finished, where it is neither a command nor an option nor a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, get_args

from click import shell_completion

from sglr_flower.choices import DATASETS, LOSSES, MODELS, OPTIMIZERS


def of(names: Sequence[str]) -> Callable[[str], list[str]]:
    """A completion by names, where another value ends in a sentence of ours and not in the parser's."""

    def fitting(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return fitting


def setting(incomplete: str) -> list[str]:
    """Run-config keys, or one of them with each of its values, if it has only a few.

    Parameters
    ----------
    incomplete : str
        The beginning of ``key=value``.
    """
    from sglr_flower.run.config import keys

    key, equals, _ = incomplete.partition("=")
    found = [key] if equals else [name for name in keys() if name.startswith(incomplete)]
    offered = [f"{found[0]}={value}" for value in values(found[0])] if len(found) == 1 else []
    return [text for text in offered if text.startswith(incomplete)] if offered or equals else [f"{k}=" for k in found]


def values(key: str) -> Sequence[str]:
    """The values of a run-config key that has only a few, and the names of ours where one's own are possible too."""
    from sglr_flower.run.config import RunConfig
    from sglr_flower.split.methods import METHODS

    named: dict[str, Sequence[str]] = {"method": tuple(METHODS), "model": MODELS, "dataset": DATASETS}
    named |= {"loss": LOSSES, "optimizer": OPTIMIZERS, "server-optimizer": OPTIMIZERS}
    field = RunConfig.model_fields.get(key.replace("-", "_"))
    if key in named or field is None:
        return named.get(key, ())
    return ("true", "false") if field.annotation is bool else [str(value) for value in get_args(field.annotation)]


def make_bash_complete_values() -> None:
    """Let bash complete what follows a ``=``, once typer has brought its own completions.

    bash makes ``=`` and ``:`` words of their own, tells only the words, and puts what it is offered after the last of
    these. Other shells take ``key=value`` for one word.
    """
    typers: Any = shell_completion.get_completion_class("bash")

    class Bash(typers):  # type: ignore[misc]
        """typer's, with words as a person sees them."""

        def get_completion_args(self) -> tuple[list[str], str]:
            words = os.environ["COMP_WORDS"].split("\n")[: int(os.environ["COMP_CWORD"]) + 1]
            os.environ["COMP_WORDS"] = "\n".join(joined := _joined(words))
            os.environ["COMP_CWORD"] = str(len(joined) - 1)
            arguments, incomplete = super().get_completion_args()
            self.kept = incomplete[: max(incomplete.rfind(mark) for mark in "=:") + 1]
            return arguments, incomplete

        def format_completion(self, item: shell_completion.CompletionItem) -> str:
            return str(super().format_completion(item)).removeprefix(self.kept)

    shell_completion.add_completion_class(Bash, "bash")


def _joined(words: Sequence[str]) -> list[str]:
    found: list[str] = []
    for number, word in enumerate(words):
        if number and (word in ("=", ":") or words[number - 1] in ("=", ":")):
            found[-1] += word
        else:
            found.append(word)
    return found
