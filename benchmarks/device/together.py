"""How many runs at once are fastest: processes that make the same steps side by side, and count them."""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing.context import SpawnContext
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from typing import Any

import torch

from benchmarks import gpu
from sglr_flower.run import assembly
from sglr_flower.run.config import RunConfig
from sglr_flower.run.machine import available_cpus


def rates(
    values: Mapping[str, Any], place: torch.device, levels: Sequence[int], seconds: float, patience: float
) -> dict[int, float]:
    """Steps per second that each of so many processes makes, for each number of them.

    Parameters
    ----------
    values : Mapping[str, Any]
        Run-config keys of the steps.
    place : torch.device
        Where all of them compute.
    levels : Sequence[int]
        Numbers of processes.
    seconds : float
        How long each number is given.
    patience : float
        For all of it, in seconds: what is not known then is left out.
    """
    context, most = multiprocessing.get_context("spawn"), max(levels)
    started, counts, processes = time.monotonic(), _queue(context), []
    barrier = context.Barrier(most + 1)
    for number in range(most):
        arguments = (number, dict(values), str(place), tuple(levels), seconds, barrier, counts)
        processes.append(context.Process(target=_work, args=arguments, daemon=True))
        processes[-1].start()
    found: dict[int, list[float]] = {}
    try:
        for level in levels:
            left = patience - (time.monotonic() - started)
            if left < 2 * seconds:
                break
            barrier.wait(left)
            barrier.wait(left)
            found[level] = [counts.get(timeout=seconds) for _ in range(level)]
    except (threading.BrokenBarrierError, queue.Empty):  # one is too slow, or has failed and has said why
        pass
    finally:
        barrier.abort()
        for process in processes:
            process.join(1.0)
            process.kill()
            process.join()
    return {level: sum(each) / level for level, each in found.items()}


def _queue(context: SpawnContext) -> Queue[float]:
    return context.Queue()


def _work(
    number: int,
    values: dict[str, Any],
    device: str,
    levels: Sequence[int],
    seconds: float,
    barrier: Barrier,
    counts: Queue[float],
) -> None:
    """One of the processes: it has warmed up before the first of the levels, and takes part in those that need it."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, available_cpus() // max(levels)))
    try:
        config = RunConfig.parse(values)
        sides = gpu.sides(config, gpu.shares(config), torch.device(device))
        plan = assembly.plan(config, 1)
        sides.step_seconds(plan)
        for level in levels:
            barrier.wait()
            if number < level:
                steps, started, taken = 0, time.perf_counter(), 0.0
                while taken < seconds:
                    steps += len(sides.step_seconds(plan))
                    taken = time.perf_counter() - started
                counts.put(steps / taken)
            barrier.wait()
    except threading.BrokenBarrierError:  # it is over
        return
    except BaseException:  # the others need not wait for this one; why is printed as it ends
        barrier.abort()
        raise
