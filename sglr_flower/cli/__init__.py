"""The command ``sglr``: its entry point, and what it does with mistakes and interrupts.

This folder says what each command takes; what it does is in the other rooms. Nothing here imports them before a command
is called, so that help, completion and mistakes in the arguments need not wait for torch.
"""

from __future__ import annotations

import os
import signal
import sys

import click
import typer

from sglr_flower.cli import completion
from sglr_flower.cli.app import app
from sglr_flower.cli.run import TRACEBACK
from sglr_flower.errors import UserError, traceback_of


def _speak_utf8() -> None:
    """Start anew with UTF-8 where the locale has another encoding: names of files and nodes, tables and logs are in it.

    Python 3.15 does so by itself, and 3.11 to 3.14 in the locale C; processes that are started take it over.
    """
    if sys.getfilesystemencoding() == "utf-8" and sys.stdout.encoding.lower() in ("utf-8", "utf8"):
        return
    if sys.flags.utf8_mode or os.environ.get("PYTHONIOENCODING") or os.environ.get("PYTHONUTF8") == "1":
        return  # so it was meant, or Python has been told not to look at its environment
    os.environ["PYTHONUTF8"] = "1"
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def main() -> None:
    """Entry point: a user's mistake is one sentence and exit status 1; Ctrl-C ends what was started and gives 130."""
    _speak_utf8()
    sys.path.append(os.getcwd())  # one's own models and methods; at the end, so that nothing of ours is shadowed
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` blocks end the children
    command = typer.main.get_command(app)
    completion.make_bash_complete_values()
    try:
        sys.exit(command(sys.argv[1:], prog_name="sglr", standalone_mode=False))
    except (UserError, OSError) as error:  # OSError: a full disk, say; its text names the file
        from rich.console import Console

        console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
        if TRACEBACK in sys.argv and (details := traceback_of(error)):  # an option of the commands that train
            console.print(details.rstrip())
        console.print(f"sglr: {error}", style="red")
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
