"""The benchmark of a GPU runs on a CPU too, so that it does not rot where there is no GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from integration.runs import largest_difference

from benchmarks import gpu
from benchmarks.plain import PlainLoop, weights
from sglr_flower.cli import bench
from sglr_flower.errors import UserError
from sglr_flower.run import assembly
from sglr_flower.run.config import RunConfig


def test_it_measures_all_three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu.RUN, "image-size", 16)
    gpu.main(quick=True, only=[2], device="cpu", out=tmp_path / "gpu.json")

    written = json.loads((tmp_path / "gpu.json").read_text())
    assert [cell["clients"] for cell in written["steps"]] == [2]
    for cell in written["steps"]:
        assert cell["seconds"].keys() == gpu.FORMS.keys()
        assert cell["ratio_to_plain_loop"].keys() == gpu.FORMS.keys() - {gpu.PLAIN}
        assert all(len(found["repetitions"]) == 3 and found["median"] > 0 for found in cell["seconds"].values())
    assert written["machine"]["device"]["name"] == "the CPU"
    assert (tmp_path / "gpu.png").exists()


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "available_gpus", lambda: 0)
    with pytest.raises(UserError, match=r"needs the GPU 'cuda', and torch sees 0 GPU\(s\)"):
        gpu.main()


@pytest.mark.parametrize("device", ["gpu", "cudax", "cuda:x"])
def test_a_device_that_there_is_not_is_refused(device: str) -> None:
    with pytest.raises(UserError, match="it must be cpu, cuda or cuda:N"):
        gpu.main(device=device)


@pytest.mark.parametrize("gpus", [0, 1])
def test_all_benchmarks_pass_over_a_gpu_that_is_not_there(
    gpus: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[str] = []

    def run(command: list[str]) -> int:
        started.append(command[2])
        return 0

    monkeypatch.setattr(bench, "_run", run)
    monkeypatch.setattr(bench, "available_gpus", lambda: gpus)
    bench.command("", quick=True, out=None)

    others = [f"benchmarks.{name}" for name in ("step", "exchange", "scale", "start")]
    assert started == others + ["benchmarks.gpu"] * gpus
    assert ("benchmark gpu is passed over" in capsys.readouterr().out) == (not gpus)


def test_all_forms_train_the_same() -> None:
    """Else a ratio of times would say nothing."""
    config, cpu = (
        RunConfig.parse({**gpu.RUN, "num-clients": 3, "local-epochs": 2, "dtype": "float64"}),
        torch.device("cpu"),
    )
    data = gpu.shares(config)
    loop = PlainLoop(config, cpu, data)
    loop.round(1)
    expected = weights(loop)

    for cohort_key in filter(None, gpu.FORMS.values()):
        sides = gpu.sides(config.replace(cohort=cohort_key), data, cpu)
        assert len(sides.step_seconds(assembly.plan(config, 1))) == len(loop.step_seconds) == 4
        clients = {f"client-{i}": segment for i, segment in sides.cohort.segments.items()}
        segments = clients | {"server": sides.server.segment}
        ours = {name: segment.state_dict() for name, segment in segments.items()}
        assert largest_difference(ours, expected) < 1e-9
