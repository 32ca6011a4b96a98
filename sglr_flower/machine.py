"""What of this machine a run may use."""

from __future__ import annotations

import os


def available_cpus() -> int:
    """CPUs that this process may run on: fewer than the machine has under taskset, SLURM or a cpuset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
