"""The command ``sglr``: its entry point, and what it does with mistakes and interrupts."""

from __future__ import annotations

import os
import signal
import sys

import click
from rich.console import Console

from sglr_flower.commands import app
from sglr_flower.errors import UserError


def main() -> None:
    """Entry point: a user's mistake is one sentence and exit status 1; Ctrl-C ends what was started and gives 130."""
    sys.path.append(os.getcwd())  # one's own models and methods; at the end, so that nothing of ours is shadowed
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` blocks end the children
    try:
        sys.exit(app(sys.argv[1:], prog_name="sglr", standalone_mode=False))
    except (UserError, OSError) as error:  # OSError: a full disk, say; its text names the file
        Console(stderr=True).print(f"sglr: {error}", style="red", highlight=False, soft_wrap=True, markup=False)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)


if __name__ == "__main__":
    main()
