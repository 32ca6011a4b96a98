"""Files that are whole at any moment."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path


def is_full(error: BaseException) -> bool:
    """Whether it says that a disk, or a user's part of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def write_atomic(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file so that it is either the old or the new one, whenever the process dies.

    ``durable``: also when the machine dies. That waits for the disk, so it is off for what is written all the time.

    Raises
    ------
    OSError
        If it cannot be written, with its name; the old file is there, and nothing of the new one.
    """
    # A name of its own for each writer: two of one file may not mix their halves.
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)  # on a full disk it would take the room of what is still to be said
        raise OSError(error.errno, error.strerror, str(path)) from error
