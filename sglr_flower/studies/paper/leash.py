"""Runs a command for as long as the process that started it lives.

``python -m sglr_flower.studies.paper.leash COMMAND...``

Its standard input is a pipe whose other end only that process holds. The pipe closes when the process ends in whatever
way, SIGKILL included, or when it wants the command ended; then the command gets SIGTERM, and SIGKILL if it stays.
"""

from __future__ import annotations

import contextlib
import select
import signal
import subprocess
import sys
from collections.abc import Sequence

GRACE_SECONDS = 20.0
"""For a command to end in good order: `sglr run` ends Flower and Ray, which takes a few seconds."""


def hold(command: Sequence[str]) -> int:
    """Run a command until it ends or standard input closes; returns its exit status, 128 + N after signal N."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    for number in (signal.SIGTERM, signal.SIGINT):  # after the start: the child would inherit it
        signal.signal(number, signal.SIG_IGN)
    while child.poll() is None:
        if select.select([sys.stdin], [], [], 0.2)[0]:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(GRACE_SECONDS)
            child.kill()
            child.wait()
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(hold(sys.argv[1:]))
