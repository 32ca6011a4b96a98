"""What of this machine a run may use."""

from __future__ import annotations

import math
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")
_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}
"""Flags of x86 CPUs, and the feature of ARM's, by which Linux names instructions that multiply in bfloat16."""
_KEEP_MEMORY = (
    "glibc.malloc.hugetlb=1",
    "glibc.malloc.arena_max=1",  # what one thread has freed is there for another
    # Larger blocks go back at once: kept they are faster, but a heap of them has holes (docs/performance.md).
    "glibc.malloc.mmap_threshold=33554432",
    "glibc.malloc.trim_threshold=17179869184",
    "glibc.malloc.top_pad=67108864",
)


def available_cpus() -> int:
    """CPUs that this process may run on: fewer than the machine has under taskset, SLURM or a cpuset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Place:
    """What a simulated node may use in a simulation without Ray.

    Attributes
    ----------
    cpus : int
        CPUs set aside for a node.
    at_once : int
        Nodes that run at the same time.
    """

    cpus: int
    at_once: int


_place: Place | None = None  # a fact of this process, as Ray's answers are


def take_place(place: Place) -> None:
    """Make this process one that simulated nodes run in; its threads are as many as the node's CPUs."""
    global _place
    _place = place
    if "OMP_NUM_THREADS" not in os.environ:  # what Ray sets, too late for a process that is forked
        sys.modules["torch"].set_num_threads(place.cpus)


def has_bfloat16() -> bool:
    """Whether this CPU has instructions that multiply in bfloat16; where Linux does not tell, that it has."""
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return True
    flags = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    return not _BFLOAT16.isdisjoint(next(flags, _BFLOAT16))


def processor() -> str:
    """The CPU's name as Linux tells it, else the name of its architecture."""
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.machine()


def slow_autocast(autocast: str, *, on_cpu: bool) -> str:
    """What a person should know of the run-config's ``autocast`` on this machine, in a sentence; empty: nothing."""
    if autocast != "bfloat16" or not on_cpu or has_bfloat16():
        return ""
    return (
        "run-config key autocast = 'bfloat16': this machine's CPU has no instructions for bfloat16, so that a step may "
        "take ten times as long as with 'none'"
    )


def simulated() -> bool:
    """Whether this process is a node of Flower's simulation, and not a device with a disk of its own."""
    return _place is not None or _on_ray()


def _on_ray() -> bool:
    ray = sys.modules.get("ray")  # a SuperNode has not imported it
    return ray is not None and ray.is_initialized()


def concurrent_nodes() -> int:
    """How many nodes like this one can run at the same time in this simulation; 0 outside of one (no limit).

    Ray gives every node's message an actor with the resources of this one, and Flower handles at most
    ``min(32, cpus + 4)`` messages at once, whatever the number of actors (its thread pool's default size).
    """
    if _place is not None:
        return _at_once(_place.at_once)
    if not _on_ray():
        return 0
    ray = sys.modules["ray"]
    total: dict[str, float] = ray.cluster_resources()
    own: dict[str, float] = ray.get_runtime_context().get_assigned_resources()
    places = {kind: math.floor(total[kind] / amount) for kind, amount in own.items() if amount > 0}
    if "GPU" in places:
        places["GPU"] = gpu_places(total["GPU"], own["GPU"])
    return _at_once(min(places.values(), default=32))


def _at_once(workers: int) -> int:
    return max(1, min(workers, 32, (os.cpu_count() or 1) + 4))


def available_gpus() -> int:
    """GPUs that torch can compute on here: none where the driver or the GPU does not suit it.

    In a simulated node that Ray has set none aside for there is none either: what such a process sees differs from one
    version of Ray to another (none in 2.55, all of the machine's in 2.60).
    """
    import torch  # two seconds, which not everybody who asks about this machine has to wait

    if _simulated_without_gpu() or not torch.cuda.is_available():
        return 0
    return torch.cuda.device_count()


def _simulated_without_gpu() -> bool:
    """Whether this process handles a simulated node's messages and Ray has set no GPU aside for it."""
    if _place is not None:
        return True
    if not _on_ray():
        return False
    context = sys.modules["ray"].get_runtime_context()
    # Nodes are actors. The ServerApp's process is none; it takes what the user left visible.
    return context.get_actor_id() is not None and not context.get_accelerator_ids().get("GPU")


def gpu_places(gpus: float, share: float) -> int:
    """How many nodes with a share of a GPU fit at once: Ray never divides a share among two GPUs."""
    return int(gpus) * math.floor(1 / share + 1e-9) if share < 1 else math.floor(gpus / share)


def machines() -> int:
    """How many machines the nodes of this simulation are spread over: those of the user's Ray cluster."""
    if not _on_ray():
        return 1
    return len({entry["NodeManagerAddress"] for entry in sys.modules["ray"].nodes() if entry["Alive"]})


def assigned_gpus() -> list[str]:
    """The GPUs that Ray sets aside for this simulated node, each named with Ray's own word for its machine."""
    if not _on_ray():
        return []
    context = sys.modules["ray"].get_runtime_context()
    return [f"{context.get_node_id()[:8]}/{gpu}" for gpu in context.get_accelerator_ids().get("GPU", [])]


def assigned_cpus() -> int:
    """The CPUs that are set aside for this simulated node, at least one; 0 outside of a simulation."""
    if _place is not None:
        return _place.cpus
    if not _on_ray():
        return 0
    return max(1, int(sys.modules["ray"].get_runtime_context().get_assigned_resources().get("CPU", 1)))


def steady_memory() -> dict[str, str]:
    """Environment of training processes, which allocate and free the same memory in every step.

    glibc keeps blocks of up to 32 MB for the next step, in huge pages: else the kernel would clear pages each time.
    GNU OpenMP's idle threads wait for more work a thirtieth as long as they would, as waiting they keep a core from the
    other processes. What the user has set goes before: of two values of a tunable the last counts.
    """
    own = os.environ.get("GLIBC_TUNABLES")
    return {
        "GLIBC_TUNABLES": ":".join([*_KEEP_MEMORY, own] if own else _KEEP_MEMORY),
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "10000"),
    }
