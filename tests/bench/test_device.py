"""What measures a GPU in a limited time is rehearsed here: a typo must not cost it."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from importlib.machinery import SourceFileLoader
from importlib.metadata import requires
from pathlib import Path
from types import ModuleType

import numpy as np
import psutil
import pytest
import torch
from bench.installed import environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks import gpu
from benchmarks.apart import Apart
from benchmarks.device import cells, keel, memory, part
from benchmarks.device.packages import CARRIED, there
from sglr_flower.data import datasets
from sglr_flower.run.config import RunConfig
from sglr_flower.split.recording import Recorder
from sglr_flower.studies.paper import ledger, results, sweep

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
FORMS = [form for form in gpu.FORMS if form != gpu.PLAIN]


def tool(name: str) -> ModuleType:
    loader = SourceFileLoader(name.replace("-", "_"), str(ROOT / "tools" / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module  # where dataclasses look for it
    loader.exec_module(module)
    return module


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_whole_of_it_without_flower(tmp_path: Path) -> None:
    """In an environment that has what a PyTorch image has and what is carried: neither Flower nor Ray nor pip."""
    python, out = environment(tmp_path / "env", [*there(), *CARRIED]), tmp_path / "out"
    probe = (
        "import importlib.util as u; print([name for name in ('flwr', 'ray', 'flwr_datasets') if u.find_spec(name)])"
    )
    assert subprocess.run([python, "-I", "-c", probe], capture_output=True, text=True, check=True).stdout == "[]\n"
    command = [python, ROOT / "tools" / "gpu", "--rehearse", "--minutes", "30", "--out", out, "--carried", tmp_path]
    keys = os.environ.keys() - {"PYTHONPATH", "VIRTUAL_ENV"}
    done = subprocess.run(
        command, cwd=tmp_path, env={key: os.environ[key] for key in keys}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    names = {"keel.json", "floors.json", "steps.json", "variants.json", "cells.json", cells.FINISHED, "log.txt"}
    assert {path.name for path in out.iterdir()} == names

    keel = read(out / "keel.json")
    assert keel["run"]["dataset"] == ("fashion-mnist" if "SGLR_DATA_DIR" in os.environ else "digits")
    assert keel["machine"]["flwr"] is None
    double = [one for one in keel["comparisons"] if one["dtype"] == "float64"]
    assert [one.get("form") for one in double] == [*FORMS, None]
    assert max(one["largest_difference"] for one in double) < 1e-9
    single = [one for one in keel["comparisons"] if one["dtype"] == "float32"]
    assert [one["form"] for one in single] == FORMS
    assert max(one["relative_distance_of_gradients"] for one in single) < 1e-4

    floors = read(out / "floors.json")
    assert [one["form"] for one in floors["steps"]] == list(gpu.FORMS)
    for one in floors["steps"]:
        assert min(one["kernels"], one["launch_floor_seconds"], one["arithmetic_floor_seconds"]["float32"]) > 0
    assert all("convolution" in profile for profile in floors["profiles"])
    steps = read(out / "steps.json")
    assert steps["finished"]
    assert steps["failed"] == []
    assert steps["steps"][0]["seconds"].keys() == gpu.FORMS.keys()

    variants = read(out / "variants.json")
    assert not [one for one in variants["variants"] if "error" in one]
    exact = {one["name"]: one["exact"] for one in variants["variants"]}
    assert all(exact[form] for form in FORMS)
    assert not exact["stacked, autocast = bfloat16"]
    assert [*variants["memory"]] == [*FORMS, "loop, recompute"]
    assert variants["memory"][FORMS[-1]]["tried"] == {"4": "fit"}

    trained = read(out / "cells.json")
    assert trained["form"] in FORMS
    assert [one["labels"]["method"] for one in trained["cells"]] == ["psl", "sglr"]
    for one in trained["cells"]:
        assert one["finished"]
        assert one["failure"] is None
        assert [row["round"] for row in one["curve"]] == [1, 2]
        assert 0 < one["curve"][-1]["test_accuracy_mean"] <= 1
        assert one["summary"]["test_accuracy_mean"] > 0
    log = (out / "log.txt").read_text(encoding="utf-8")
    assert log in done.stdout or done.stdout in log
    assert "what there is:" in log


def test_what_is_carried_needs_nothing_that_is_not_there() -> None:
    known = {canonicalize_name(name) for name in (*CARRIED, *there())}
    for name in CARRIED:
        for text in requires(name) or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": "", "python_version": "3.12"}):
                assert canonicalize_name(needed.name) in known, f"{name} needs {text}"


@pytest.fixture
def tools_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with parts of our own in place of its parts."""
    module = tool("gpu")
    folder = tmp_path / "benchmarks" / "device"
    folder.mkdir(parents=True)
    for package in (folder.parent, folder):
        (package / "__init__.py").touch()
    (folder / "fails.py").write_text("print('about to fail', flush=True)\nraise SystemExit(3)\n")
    (folder / "hangs.py").write_text(
        "import pathlib, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "pathlib.Path(sys.argv[2], 'child').write_text(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "GRACE", 0.5)
    return module


def test_a_part_that_fails_or_hangs_does_not_keep_the_others_from_running(
    tools_gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools_gpu, "PARTS", {"a": "hangs", "b": "fails"})
    chosen = argparse.Namespace(out=tmp_path, rehearse=False, resume=None)
    log = tools_gpu.Log(tmp_path / "log.txt")
    variables = {**os.environ, "PYTHONPATH": str(tmp_path)}

    done = [tools_gpu.run(letter, seconds, chosen, variables, log) for letter, seconds in (("a", 3.0), ("b", 60.0))]

    assert [one.status for one in done] == [None, 3]
    assert "about to fail" in (tmp_path / "log.txt").read_text()
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 30
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert tools_gpu.summary(tmp_path, done) == [
        f"  a hangs     its time was over  {done[0].seconds:6.1f} s",
        f"  b fails     exit status 3      {done[1].seconds:6.1f} s",
    ]


def test_cells_that_are_cut_off_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "AT_ONCE", (1,))
    monkeypatch.setattr(cells, "TINY", {**cells.TINY, "dataset": "digits", "num_server_rounds": 60})
    monkeypatch.setattr(cells, "METHODS", ("psl",))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "")  # which main sets, so that it is restored
    first, second = tmp_path / "first", tmp_path / "second"

    def stop(watcher: cells.Watcher, running: Sequence[cells.Running]) -> None:
        if running and (running[0].run_dir / "checkpoints" / "round-0002").exists():
            raise cells.TimeIsUp

    with monkeypatch.context() as patched:
        patched.setattr(cells.Watcher, "update", stop)
        cells.main(first, seconds=300, rehearse=True)
    before = read(first / "cells.json")["cells"][0]
    assert not before["finished"]
    assert 2 <= len(before["curve"]) < 60
    assert (first / "cell-psl.tar.xz").exists()

    cells.main(second, seconds=300, rehearse=True, resume=first)
    after = read(second / "cells.json")["cells"][0]
    assert after["finished"]
    assert [row["round"] for row in after["curve"]] == list(range(1, 61))
    losses = [[row["train_loss"] for row in one["curve"][:2]] for one in (before, after)]
    assert losses[0] == losses[1]  # it was not begun again: another process would not have the same times either
    assert before["curve"][0]["step_seconds_median"] == after["curve"][0]["step_seconds_median"]
    assert {path.name for path in second.iterdir()} == {"cells.json", cells.FINISHED}

    monkeypatch.setattr(cells, "METHODS", ("psl", "sglr"))
    third = tmp_path / "third"
    cells.main(third, seconds=300, rehearse=True, resume=second)
    assert read(third / "cells.json")["cells"][0] == after  # what is finished stays as it was brought back
    assert read(third / "cells.json")["cells"][1]["finished"]

    # And a sweep of `sglr paper`, whose cells are computed in another form, can record them.
    with tarfile.open(third / cells.FINISHED) as file:
        assert not [name for name in file.getnames() if "checkpoints" in name]
        file.extractall(tmp_path / "sweep" / "cells", filter="data")
    same = [
        dataclasses.replace(cell, config=cell.config.replace(cohort="auto", checkpoint_every=5))
        for cell in cells.cells("stacked", rehearse=True)
    ]
    sweep.check_same(tmp_path / "sweep", same)
    ledger.add(tmp_path / "full.csv", results.read(tmp_path / "sweep", same))
    rows = ledger.read(tmp_path / "full.csv")
    assert [row.fields["method"] for row in rows] == ["psl", "sglr"]
    assert all(row.fields["engine"] and row.fields["finished"] and row.curve for row in rows)


def test_as_many_at_once_as_finish_most() -> None:
    assert cells.most_done({}, 300, 31_250, 5) == 2
    # 280 s: one at a time finishes 2 of 100 s each, two at once none of 300 s.
    assert cells.most_done({1: 312.5, 2: 104.0}, 300, 31_250, 5) == 1
    # None finishes: who makes most steps.
    assert cells.most_done({1: 60.0, 2: 50.0, 4: 20.0}, 300, 31_250, 5) == 2


def test_the_fastest_exact_form_is_taken(tmp_path: Path) -> None:
    def variant(name: str, seconds: float, clients: int = 20, exact: bool = True, form: str = "") -> dict:
        return {"name": name, "form": form or name, "seconds": seconds, "clients": clients, "exact": exact}

    assert cells.fastest(tmp_path, None) == "stacked"
    found = [
        *(variant("loop", 0.1), variant("stacked", 0.02), variant("loop", 0.001, clients=100)),
        variant("stacked, TensorFloat-32 everywhere", 0.01, form="stacked"),
    ]
    (tmp_path / "variants.json").write_text(json.dumps({"variants": found}))
    assert cells.fastest(tmp_path, None) == "stacked"
    found[1]["exact"] = False
    (tmp_path / "variants.json").write_text(json.dumps({"variants": found}))
    assert cells.fastest(None, tmp_path) == "loop"


def test_full_length_cells_are_those_of_the_paper() -> None:
    chosen = cells.cells("stacked", rehearse=False)
    assert [cell.labels["method"] for cell in chosen] == ["psl", "sglr", "slr", "sgl", "sfl"]
    assert {cells.rounds_steps(cell) for cell in chosen} == {31_250}
    assert {(cell.config.num_clients, cell.config.seed, cell.config.cohort) for cell in chosen} == {(20, 0, "stacked")}


@pytest.mark.parametrize("real", [1, 70, 100, 104, 999])
def test_the_most_clients_that_fit_are_found_from_a_guess(real: int) -> None:
    tried: list[int] = []

    def fits(clients: int) -> bool:
        tried.append(clients)
        return clients <= real

    low, high = memory.approach(fits, 100, 1_000, part.Clock(60))
    assert low <= real < high
    assert high - low <= max(1, memory.NEAR * low) or low == 0
    assert len(set(tried)) == len(tried)


def test_a_try_that_would_take_too_long_is_not_begun() -> None:
    def slow(clients: int) -> bool:
        time.sleep(0.2)
        return True

    assert memory.approach(slow, 100, 1_000, part.Clock(0.3))[0] == 100
    assert memory.approach(slow, 100, 1_000, part.Clock(0.0)) == (0, 1_001)


def test_memory_grows_with_the_clients() -> None:
    assert memory.predicted({50: 1_500.0, 150: 2_500.0}, 11_000.0) == 1_000
    assert memory.predicted({50: 0.0, 150: 0.0}, 0.0) == 0  # a CPU's is not counted


def test_too_little_memory_is_known_by_what_torch_says() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**50)
    assert memory.is_out_of_memory(raised.value)
    assert not memory.is_out_of_memory(RuntimeError("no kernel for this"))


def test_a_form_that_cannot_be_had_is_said_and_passed_over() -> None:
    config = RunConfig.parse({**gpu.RUN, "image-size": 8, "num-clients": 2, "recompute": True})
    with Apart() as apart:
        assert "not computed as stacked says" in str(gpu.attempt("stacked", config, torch.device("cpu"), apart))
        # In the process of its own.
        assert "failed: RuntimeError: steps are not recorded" in str(gpu.attempt("graph", config, CPU, apart))


def test_without_a_plain_loop_there_are_no_ratios() -> None:
    seconds, peaks = {(2, "loop"): [0.1]}, {(2, "loop"): [1.0]}
    assert gpu.cell(2, seconds, peaks)["ratio_to_plain_loop"] == {}
    assert gpu.cell(2, seconds, peaks)["seconds"]["loop"]["median"] == 0.1


def test_after_a_call_that_failed_the_next_is_in_a_fresh_process() -> None:
    with Apart() as apart:
        first = apart(os.getpid)
        assert first == apart(os.getpid) != os.getpid()
        with pytest.raises(ValueError, match="invalid literal"):
            apart(int, "x")
        assert apart(os.getpid) != first
        with pytest.raises(RuntimeError, match="terminated"):
            apart(os._exit, 1)
        assert apart(int, "3") == 3


@pytest.fixture
def unfit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be recorded, and all is computed in this process."""

    def record(*_: object) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(Recorder, "record", record)
    monkeypatch.setattr(gpu, "where", lambda form, apart: gpu._here)


@pytest.mark.usefixtures("unfit")
def test_weights_of_steps_that_were_not_recorded_are_not_taken_for_theirs() -> None:
    config = RunConfig.parse({**keel.RUN, "dataset": "digits", **keel.TINY, "dtype": "float64"})
    compared = dict(keel.comparisons(config, CPU))
    assert keel.holds(compared["stacked, float64"]())
    with pytest.raises(RuntimeError, match="steps are not recorded: no such luck"):
        compared["graph, float64"]()


@pytest.mark.usefixtures("unfit")
def test_memory_of_a_form_that_cannot_be_had_does_not_keep_the_others_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu.RUN, "image-size", 8)
    result: dict = {}
    memory.measure(result, CPU, part.Clock(600), lambda: None, most=2)
    assert [*result] == [*FORMS, "loop, recompute"]
    assert result["graph"]["error"] == "steps are not recorded: no such luck"
    assert [name for name, one in result.items() if "tried" in one] == ["stacked"]
    assert result["stacked"]["tried"] == {2: memory.FITS}


def test_a_try_is_written_down_before_it_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    result: dict = {}
    monkeypatch.setattr(gpu, "where", lambda form, apart: lambda *_: float(len(saved)))
    saved: list[dict] = []
    memory.measure(result, CPU, part.Clock(600), lambda: saved.append(copy.deepcopy(result)), most=2)
    tries = [one["graph"]["tried"] for one in saved if "tried" in one.get("graph", {})]
    assert tries == [{2: memory.UNFINISHED}, {2: memory.FITS}]


def test_the_first_try_has_no_more_clients_than_there_is_time_for() -> None:
    assert memory.affordable(150, seconds=3.0, left=40.0) == 1_000
    assert memory.affordable(150, seconds=3.0, left=0.1) == 150


def test_without_time_nothing_is_begun(tmp_path: Path) -> None:
    gpu.main(only=[2], device="cpu", out=tmp_path / "gpu.json", minutes=1e-9, picture=False)
    assert not (tmp_path / "gpu.json").exists()


def test_images_are_carried_with_gzip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carry = tool("gpu-carry")
    monkeypatch.setattr(carry, "FOLDER", tmp_path / "carried")
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in carry.FILES:
        shape = (60, 28, 28) if "images" in name else (60,)
        header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">i4").tobytes()
        (raw / name).write_bytes(header + (np.arange(np.prod(shape)) % 10).astype(np.uint8).tobytes())
    carry.images(tmp_path)
    found, expected = (datasets.load("fashion-mnist", str(root), 0) for root in (tmp_path / "carried/data", tmp_path))
    assert torch.equal(found.train.images, expected.train.images)
    assert torch.equal(found.test.labels, expected.test.labels)

    with pytest.raises(SystemExit, match="is not there"):
        carry.images(tmp_path / "elsewhere")


def test_a_checkout_with_more_than_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carry = tool("gpu-carry")
    monkeypatch.setattr(carry, "FOLDER", tmp_path / ".gpu")
    monkeypatch.setattr(carry, "wheels", lambda *_: None)  # which come from the network
    monkeypatch.setattr(carry, "images", lambda *_: None)
    for limit, refused in ((64, False), (0.1, True)):
        monkeypatch.setattr(sys, "argv", ["gpu-carry", "--limit", str(limit)])
        if refused:
            with pytest.raises(SystemExit, match=r"more than --limit 0\.1"):
                carry.main()
        else:
            carry.main()
