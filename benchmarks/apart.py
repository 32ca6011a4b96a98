"""A process beside this one, for what may leave a process unfit for anything else."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from types import TracebackType
from typing import ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


class Apart:
    """Calls functions in another process, one after the other; after one that fails, in a fresh one.

    A recording that CUDA has refused may leave torch's memory on the GPU such that it can no longer be freed.
    """

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.end()

    def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What a function of a module returns or raises there; RuntimeError if the process dies of it."""
        self._pool = self._pool or ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        try:
            return self._pool.submit(function, *args, **kwargs).result()
        except Exception:
            self.end()
            raise

    def end(self) -> None:
        """End the process, if there is one, and free what it holds."""
        if self._pool is not None:
            self._pool.shutdown()
        self._pool = None
