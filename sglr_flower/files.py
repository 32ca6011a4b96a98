"""Files that are whole at any moment."""

from __future__ import annotations

import os
import threading
from pathlib import Path


def write_atomic(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file so that it is either the old or the new one, whenever the process dies.

    ``durable``: also when the machine dies. That waits for the disk, so it is off for what is written all the time.
    """
    # A name of its own for each writer: two of one file may not mix their halves.
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    with partial.open("wb") as file:
        file.write(content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    partial.replace(path)
