"""The start of a run beside those of its peers: until the first step, and until a tiny run is done.

``sglr bench start`` or ``python -m benchmarks.start``; half an hour on two cores, with ``--quick`` a quarter of one.
What is compared takes turns, so that a machine that gets slower or faster meanwhile does so for all:

- `sglr run` of three rounds of FedAvg, two clients of eight digits on two nodes, and the same ``--in-process``, and of
  an older revision;
- ``flwr run`` of Flower's own FedAvg (`benchmarks/peers/flower`) on the same network, on a local SuperLink that it
  starts (*cold*, as on its first use) and on the one that is then there (*warm*);
- `sglr run` of split learning with one client, and the same network, cut at the same place, in NVFlare's simulator
  (`benchmarks/peers/nvflare_job.py`), which is installed into a folder of its own.

The peers train on random tensors of the same shape, which they need not load. All have the settings of the allocator
and of idle threads that a run makes for itself. A first turn, which is not timed, reads everything from the disk once,
and in it memory is looked at, which takes time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol

import tomli_w
import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.observed import Cost, Marked
from benchmarks.progress import Progress
from benchmarks.revision import checked_out
from benchmarks.simulation import environment
from sglr_flower.errors import UserError
from sglr_flower.federation.processes import free_port, script
from sglr_flower.run.machine import steady_memory

PEERS = Path(__file__).parent / "peers"
NVFLARE = "2.9.0"
NODES = 2
FEDAVG = {
    "model": "networks:resnet16",
    "dataset": "digits",
    "method": "fedavg",
    "num-clients": 2,
    "samples-per-client": 8,
    "batch-size": 8,
    "num-server-rounds": 3,
}
SPLIT = {
    "model": "networks:moderate_cnn",
    "dataset": "digits",
    "image-size": 32,
    "num-clients": 1,
    "samples-per-client": 64,
    "batch-size": 64,
    "num-server-rounds": 3,
    "evaluate-every": 0,  # NVFlare's makes none; one at the end has to be
    "evaluate-samples": 64,
}
OURS, COLD, WARM, BEFORE, ALONE = (
    "sglr run",
    "flwr run, cold",
    "flwr run, warm",
    "sglr run before",
    "sglr run --in-process",
)
OURS_SPLIT, THEIRS_SPLIT = "sglr run, split learning", "NVFlare, split learning"
CASES: dict[str, tuple[str, ...]] = {
    "flower": (OURS, COLD, WARM),
    "revision": (OURS, BEFORE),
    "in-process": (OURS, ALONE),
    "nvflare": (OURS_SPLIT, THEIRS_SPLIT),
}
"""What can be chosen -> what then takes turns."""
RATIOS = ((OURS, COLD), (OURS, WARM), (OURS, BEFORE), (ALONE, OURS), (OURS_SPLIT, THEIRS_SPLIT))
QUANTITIES = ("seconds", "seconds_to_first_step", "processor_seconds", "processor_seconds_to_first_step")


class Take(Protocol):
    """Runs one of what is compared to its end."""

    def __call__(self, *, memory: bool) -> Cost:
        """Its cost, with its memory or without."""


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Two repetitions.")] = False,
    only: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(CASES)}.")] = None,
    repetitions: Annotated[int, typer.Option(min=1, help="Turns that are timed.")] = 5,
    revision: Annotated[str, typer.Option(help="The older revision.")] = "251e62d",
    nvflare: Annotated[Path, typer.Option(help="Folder in which NVFlare is, or is to be, installed.")] = machine.ROOT
    / "build"
    / f"nvflare-{NVFLARE}",
    out: Annotated[Path, typer.Option(help="The JSON file to write.")] = machine.RESULTS / "start.json",
) -> None:
    """Compare the start of a run with those of its peers."""
    machine.choose(only or (), CASES)
    repetitions = 2 if quick else repetitions
    names = list(dict.fromkeys(name for case in only or CASES for name in CASES[case]))
    os.environ.update(steady_memory())
    described = machine.describe()
    first, timed = dict[str, Cost](), defaultdict[str, list[Cost]](list)
    with ExitStack() as opened:
        takes, passed_over = opened.enter_context(contenders(names, revision, nvflare))
        for name, reason in passed_over.items():
            print(f"{named(name, revision)} is passed over: {reason}", flush=True)
        turns = [(turn, name) for turn in range(repetitions + 1) for name in takes]
        progress = opened.enter_context(Progress([_part(*one) for one in turns], out))
        for turn, name in turns:
            cost = progress.measure(_part(turn, name), partial(takes[name], memory=not turn), told)
            if turn:
                timed[name].append(cost)
            else:
                first[name] = cost
            finished = all(len(timed[one]) == repetitions for one in takes)
            result = {"machine": described, "finished": finished, "revision": revision, "nodes": NODES}
            result |= {"runs": {"fedavg": FEDAVG, "split": SPLIT}, "passed_over": passed_over}
            machine.save(out, result | figures(first, timed))
    found = figures(first, timed)
    console = Console()
    console.print(f"{described['processor']}, {described['cores']} cores", soft_wrap=True)
    console.print(cost_table(found, revision))
    console.print(ratio_table(found, revision))
    console.print(f"written: {out}", soft_wrap=True)


def _part(turn: int, name: str) -> str:
    return name if turn else f"{name}, not timed"


def told(cost: Cost) -> str:
    """What a run cost, in a line."""
    return (
        f"{cost.seconds:.1f} s, first step after {cost.seconds_to_first_step:.1f} s and "
        f"{cost.processor_seconds_to_first_step:.1f} s of processor time"
    )


def figures(first: Mapping[str, Cost], timed: Mapping[str, Sequence[Cost]]) -> dict[str, Any]:
    """All that was measured, as far as it is.

    Parameters
    ----------
    first : Mapping[str, Cost]
        What took turns -> its cost in the turn that is not timed, with its memory.
    timed : Mapping[str, Sequence[Cost]]
        Its costs in the others.
    """
    costs = {
        name: {
            **{quantity: machine.spread([getattr(cost, quantity) for cost in of]) for quantity in QUANTITIES},
            "processes": max(cost.processes for cost in of),
            **{quantity: getattr(first[name], quantity) for quantity in ("pss_bytes", "rss_bytes")},
            "turns": [asdict(cost) for cost in of],
        }
        for name, of in timed.items()
        if of
    }
    ratios = {
        f"{ours} / {theirs}": {quantity: _ratio(timed[ours], timed[theirs], quantity) for quantity in QUANTITIES}
        for ours, theirs in RATIOS
        if costs.keys() >= {ours, theirs}
    }
    return {"costs": costs, "ratios": ratios}


def _ratio(ours: Sequence[Cost], theirs: Sequence[Cost], quantity: str) -> dict[str, Any]:
    turns = min(len(ours), len(theirs))
    pair = [[getattr(cost, quantity) for cost in of[:turns]] for of in (ours, theirs)]
    return machine.spread(machine.ratios(*pair))


def cost_table(found: Mapping[str, Any], revision: str) -> Table:
    """A line for each of what took turns."""
    shown = Table("", title="A tiny run, from its command to its end")
    headings = ("whole (s)", "to first step (s)", "CPU (s)", "CPU to first step (s)")
    for heading in (*headings, "processes", "PSS (MB)", "RSS (MB)"):
        shown.add_column(heading, justify="right")
    for name, of in found["costs"].items():
        memory = [f"{of[quantity] / 1e6:,.0f}" for quantity in ("pss_bytes", "rss_bytes")]
        times = [machine.ratio(of[quantity]) for quantity in QUANTITIES]
        shown.add_row(named(name, revision), *times, str(of["processes"]), *memory)
    return shown


def ratio_table(found: Mapping[str, Any], revision: str) -> Table:
    """A line for each pair."""
    shown = Table("", title="Ratios of each turn")
    for heading in ("whole", "to first step", "CPU", "CPU to first step"):
        shown.add_column(heading, justify="right")
    for pair, of in found["ratios"].items():
        shown.add_row(named(pair, revision), *(machine.ratio(of[quantity]) for quantity in QUANTITIES))
    return shown


def named(name: str, revision: str) -> str:
    """A name, or a pair of them, with the revision."""
    return name.replace(BEFORE, f"sglr run of {revision}")


@contextmanager
def contenders(names: Sequence[str], revision: str, nvflare: Path) -> Iterator[tuple[dict[str, Take], dict[str, str]]]:
    """Those of the names that can be run here, and why the others cannot."""
    passed_over, older = dict[str, str](), machine.ROOT
    with ExitStack() as opened:
        flower = opened.enter_context(BareFlower())
        if BEFORE in names:
            try:
                older = opened.enter_context(checked_out(revision))
            except UserError as error:  # a clone may not have all of the history
                passed_over[BEFORE] = str(error)
        if THEIRS_SPLIT in names and (reason := installed(nvflare)):
            passed_over[THEIRS_SPLIT] = reason
        takes: dict[str, Take] = {
            OURS: partial(sglr, FEDAVG, NODES),
            COLD: flower.cold,
            WARM: flower.warm,
            BEFORE: partial(sglr, FEDAVG, NODES, checkout=older),
            ALONE: partial(sglr, FEDAVG, None),
            OURS_SPLIT: partial(sglr, SPLIT, 1),
            THEIRS_SPLIT: partial(split_in_nvflare, nvflare),
        }
        yield {name: takes[name] for name in names if name not in passed_over}, passed_over


@contextmanager
def folder() -> Iterator[Path]:
    """A folder with the networks, which is removed with the block."""
    with tempfile.TemporaryDirectory(prefix="sglr-bench-", dir="/tmp", ignore_cleanup_errors=True) as home:
        for file in (PEERS / "networks.py", machine.ROOT / "sglr_flower" / "models" / "resnet16.py"):
            shutil.copy(file, home)
        yield Path(home)


def sglr(settings: Mapping[str, Any], nodes: int | None, *, memory: bool, checkout: Path = machine.ROOT) -> Cost:
    """`sglr run` of a checkout; ``nodes`` is None: ``--in-process``."""
    with folder() as home, Marked(home) as processes:
        config = home / "run.toml"
        config.write_text(tomli_w.dumps({**settings, "run-dir": str(home / "run")}), encoding="utf-8")
        where = ["--in-process"] if nodes is None else ["--nodes", str(nodes)]
        command = [sys.executable, "-m", "sglr_flower.cli", "run", str(config), *where]
        return processes.run(command, home, environment(checkout), memory=memory)


class BareFlower:
    """``flwr run`` of Flower's own FedAvg, with a folder of its own for Flower's settings and its local SuperLink."""

    def __init__(self) -> None:
        self._opened = ExitStack()

    def __enter__(self) -> BareFlower:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def cold(self, *, memory: bool) -> Cost:
        """Run it where no SuperLink is up yet; the run leaves it behind for `warm`."""
        self._opened.close()
        self._home = self._opened.enter_context(folder())
        self.processes = self._opened.enter_context(Marked(self._home))
        app = shutil.copytree(PEERS / "flower", self._home / "app")
        for module in self._home.glob("*.py"):
            shutil.copy(module, app)
        settings = {"superlink": {"default": "local", "local": {"address": ":local:"}}}
        (self._home / "config.toml").write_text(tomli_w.dumps(settings), encoding="utf-8")
        self._env = environment() | {
            "FLWR_HOME": str(self._home),
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        }
        return self._run(memory)

    def warm(self, *, memory: bool) -> Cost:
        """Run it on the SuperLink that is there, and end that."""
        with self._opened:
            return self._run(memory)

    def _run(self, memory: bool) -> Cost:
        command = [script("flwr"), "run", ".", "--stream"]
        command += ["--federation-config", f"num-supernodes={NODES} client-resources-num-cpus=1"]
        cost = self.processes.run(command, self._home / "app", self._env, memory=memory)
        _check_done(self.processes.log, "ALL ROUNDS DONE")
        return cost


def split_in_nvflare(environment_folder: Path, *, memory: bool) -> Cost:
    """Split learning in NVFlare's simulator."""
    with folder() as home, Marked(home) as processes:
        shutil.copy(PEERS / "nvflare_job.py", home)
        env = environment() | {"PYTHONPATH": str(home)}
        steps = str(SPLIT["num-server-rounds"])
        command = [str(environment_folder / "bin" / "python"), "nvflare_job.py", str(home / "workspace"), steps]
        cost = processes.run(command, home, env, memory=memory)
        _check_done(processes.log, "ALL STEPS DONE")
        return cost


def _check_done(log: Path, words: str) -> None:
    """Both ``flwr run`` and NVFlare's simulator may exit with 0 where the app failed."""
    said = log.read_text(encoding="utf-8", errors="replace")
    if words not in said:
        raise RuntimeError(f"the run failed:\n{said[-3000:]}")


def installed(folder: Path) -> str:
    """Install NVFlare in an environment that has this one's torch, if it is not there: why it cannot be, or nothing."""
    python, done = folder / "bin" / "python", folder / "installed"
    if done.exists():
        return ""
    print(f"NVFlare {NVFLARE} is being installed in {folder}, some minutes", flush=True)
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", f"nvflare=={NVFLARE}"],
    ):
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            said = (ran.stderr or ran.stdout).strip().splitlines() or ["it said nothing"]
            return f"{' '.join(command[1:4])} failed: {said[-1]}"
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "torch-of-the-benchmark.pth").write_text(f"{Path(torch.__file__).parents[1]}\n", encoding="utf-8")
    ran = subprocess.run(
        [str(python), "-c", "import torch, nvflare.collab"], capture_output=True, text=True, check=False
    )
    if ran.returncode:
        return f"nvflare cannot be imported: {ran.stderr.strip().splitlines()[-1]}"
    done.touch()
    return ""


if __name__ == "__main__":
    machine.run(main)
