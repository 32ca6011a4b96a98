"""Four devices with uneven shares of the classes over a real federation, strict and tolerant; and one that cannot.

One SuperLink and four SuperNodes on loopback, with TLS and keys; the nodes are on before the server is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w
from integration.test_federation import UP_SECONDS, Lab, end, wait_until
from uneven import write

from sglr_flower.run.rundir import read_json

DEVICES = {
    "all": {"disc": 12, "stripe": 12, "ring": 12},
    "lacking": {"disc": 12, "stripe": 12},
    "one": {"ring": 9},
    "few": {"stripe": 3, "ring": 2},
}
SETTINGS = {
    "dataset": "folder",
    "classes": "disc,ring,stripe",
    "partition": "own",
    "image-size": 16,
    "num-clients": len(DEVICES),
    "samples-per-client": 0,
    "batch-size": 8,
    "num-server-rounds": 1,
    "evaluate": "client",
    "exchange": "stream",
    "start-timeout": 600,
    "step-timeout": 600,
}

pytestmark = [pytest.mark.flower, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("uneven"))
    try:
        names = [part for name in DEVICES for part in ("--node", name)]
        ports = ["--port", str(lab.port), "--stream-port", str(lab.stream_port)]
        assert lab.start("init", "federation", "init", "lab", "--host", "127.0.0.1", *names, *ports).wait(600) == 0
        for name, train in DEVICES.items():
            data = write(lab.home / "data" / name, train)
            folder = lab.directory / "nodes" / name
            lab.start(name, "federation", "node", str(folder), "--data-dir", str(data))
        for name in DEVICES:
            wait_until(lambda name=name: "waiting for the SuperLink" in lab.output(name))  # type: ignore[misc]
        lab.server()
        for name in DEVICES:
            wait_until(lambda name=name: "is connected" in lab.output(name))  # type: ignore[misc]
        yield lab
    finally:
        for process in lab.started[::-1]:
            end(process)


def run(lab: Lab, name: str, **settings: object) -> tuple[int, Path]:
    config = lab.home / f"{name}.toml"
    config.write_text(tomli_w.dumps({**SETTINGS, **settings}))
    process = lab.start(name, "run", str(config), "--federation", "lab", "--run-dir", str(lab.home / "runs" / name))
    return process.wait(UP_SECONDS), lab.home / "runs" / name


def test_nodes_that_are_on_before_the_server_connect_at_the_first_try(lab: Lab) -> None:
    for name in DEVICES:
        assert "it starts again" not in lab.output(name)
        assert "does not take the key" not in lab.output(name)


@pytest.mark.parametrize("tolerant", [{}, {"min-clients": 1, "round-retries": 1}])
def test_any_part_of_the_classes_takes_part(lab: Lab, tolerant: dict[str, int]) -> None:
    name = "tolerant" if tolerant else "strict"
    status, run_dir = run(lab, name, **tolerant)
    assert status == 0, lab.output(name)
    partition, summary = read_json(run_dir / "partition.json"), read_json(run_dir / "summary.json")
    assert partition["classes"] == ["disc", "ring", "stripe"]
    assert [sum(row) for row in partition["counts"]] == [24, 16, 6, 5]
    assert partition["counts"][1][1] == partition["counts"][2][0] == partition["counts"][3][0] == 0
    assert (run_dir / "partition.png").stat().st_size > 1000
    assert (summary["nodes"], summary["clients"], summary["exchange"]) == (4, 4, "stream")
    assert 0 <= summary["test_accuracy_mean"] <= 1


def test_a_strict_run_ends_with_the_sentence_of_the_device_that_cannot(lab: Lab) -> None:
    """Without waiting for the others: it ends long before a timeout."""
    status, _ = run(lab, "refused", classes="disc,stripe")
    assert status == 1
    said = " ".join(lab.output("refused").split())
    assert "sglr: the run failed: node " in said
    assert "has the class 'ring', which is none of the run's: disc, stripe" in said
