"""The benchmark of the start: each of what takes turns runs and makes its first step, and the figures are of pairs."""

from __future__ import annotations

import importlib
import io
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import psutil
import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional as F

from benchmarks import start
from benchmarks.observed import FIRST_STEP, Cost, is_alive
from sglr_flower.errors import UserError


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The peers' networks, as they lie in the folder of a run."""
    monkeypatch.setenv(FIRST_STEP, str(tmp_path / "first-step"))
    with start.folder() as home:
        monkeypatch.syspath_prepend(str(home))
        yield importlib.import_module("networks")
    for name in ("networks", "resnet16"):
        del sys.modules[name]


def test_a_network_tells_of_its_first_step(networks: ModuleType, tmp_path: Path) -> None:
    told, network = tmp_path / "first-step", networks.resnet16(10, 16)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    images, labels = torch.rand(2, 3, 16, 16), torch.tensor([0, 1])
    network.eval()(images)
    F.cross_entropy(network.train()(images), labels).backward()
    time.sleep(0.05)
    assert not told.exists()  # no weight has changed

    before = time.monotonic()
    optimizer.step()
    while not told.exists():
        time.sleep(0.01)
    first = float(told.read_text())
    assert before < first < time.monotonic()
    F.cross_entropy(network(images), labels).backward()
    optimizer.step()
    assert float(told.read_text()) == first


def test_the_network_of_nvflares_example(networks: ModuleType) -> None:
    network = networks.moderate_cnn(10, 32)
    assert network[:1](torch.zeros(2, 3, 32, 32)).shape == (2, 4096)
    convolutions = [layer.out_channels for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert convolutions == [32, 64, 128, 128, 256, 256]
    linear = [layer.out_features for layer in network.modules() if isinstance(layer, nn.Linear)]
    assert linear == [512, 512, 10]


@pytest.mark.parametrize("settings", [start.FEDAVG, start.SPLIT], ids=["fedavg", "split"])
def test_a_run_in_one_process(settings: dict[str, object]) -> None:
    cost = start.sglr({**settings, "num-server-rounds": 1}, None, memory=True)
    assert 0 < cost.seconds_to_first_step < cost.seconds
    assert 0 < cost.processor_seconds_to_first_step < cost.processor_seconds
    assert cost.processes in (1, 2)  # git is asked for the commit meanwhile
    assert cost.pss_bytes > 0


def command_line(process: psutil.Process) -> str:
    """A process's; empty where it has ended meanwhile, as those of Ray may have."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.mark.flower
def test_bare_flower_on_a_superlink_that_it_starts_and_on_the_one_that_is_there() -> None:
    with start.BareFlower() as flower:
        cold = flower.cold(memory=False)
        superlink = [process for process in flower.processes.find() if "superlink" in command_line(process)]
        assert superlink
        warm = flower.warm(memory=False)
    assert not any(is_alive(process) for process in superlink)
    assert min(cold.processor_seconds_to_first_step, warm.processor_seconds_to_first_step) > 0


def test_figures_are_of_pairs_that_are_complete() -> None:
    first = {name: cost(1.0, memory=3) for name in (start.OURS, start.COLD, start.BEFORE)}
    timed = {start.OURS: [cost(2.0), cost(3.0)], start.COLD: [cost(4.0), cost(4.0)], start.BEFORE: [cost(8.0)]}

    found = start.figures(first, timed)

    ratios = {pair: of["seconds"]["repetitions"] for pair, of in found["ratios"].items()}
    assert ratios == {"sglr run / flwr run, cold": [0.5, 0.75], "sglr run / sglr run before": [0.25]}
    assert found["costs"][start.OURS]["pss_bytes"] == 3_000_000  # of the turn in which memory was looked at
    assert found["costs"][start.OURS]["processor_seconds"]["repetitions"] == [4.0, 6.0]
    shown = io.StringIO()
    console = Console(file=shown, width=160)
    console.print(start.cost_table(found, "abc123"))
    console.print(start.ratio_table(found, "abc123"))
    assert "sglr run / sglr run of abc123" in shown.getvalue()
    assert "0.625 (0.5-0.75)" in shown.getvalue()


def cost(seconds: float, memory: int = 0) -> Cost:
    """One in which all else follows from the whole time."""
    return Cost(
        seconds=seconds,
        seconds_to_first_step=seconds / 2,
        processor_seconds=2 * seconds,
        processor_seconds_to_first_step=seconds,
        processes=8,
        pss_bytes=memory * 10**6,
        rss_bytes=2 * memory * 10**6,
        processor_seconds_of={"python": 2 * seconds},
    )


def test_what_cannot_be_run_here_is_passed_over_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    names = [start.OURS, start.BEFORE, start.THEIRS_SPLIT]
    with start.contenders(names, "no-such-revision", tmp_path / "file" / "nvflare") as (takes, passed_over):
        assert list(takes) == [start.OURS]
    assert "must be a commit, tag or branch" in passed_over[start.BEFORE]
    assert "-m venv" in passed_over[start.THEIRS_SPLIT]


def test_a_case_that_there_is_not_is_refused() -> None:
    with pytest.raises(
        UserError, match="--only 'torchslicer': it must be one of flower, revision, in-process, nvflare"
    ):
        start.main(only=["torchslicer"])
