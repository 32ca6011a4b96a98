"""What a run does on a real Flower simulation besides the keel: fallbacks, participation, evaluation, errors."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from integration import failing_client_app
from integration.runs import distance, final_weights, largest_difference
from integration.simulation import simulate

from sglr_flower.errors import UserError
from sglr_flower.exchange.stream import ExchangeError
from sglr_flower.flower.server import serve
from sglr_flower.run import inprocess
from sglr_flower.run.config import RunConfig
from sglr_flower.run.metrics import RoundMetrics
from sglr_flower.run.rundir import RunDirectory

pytestmark = pytest.mark.flower

SMALL = {
    "num-clients": 3,
    "samples-per-client": 20,
    "num-server-rounds": 2,
    "evaluate-every": 0,
    "evaluate-samples": 40,
    "dtype": "float64",
}
SOME = {
    **SMALL,
    "num-clients": 5,
    "samples-per-client": 8,
    "fraction-train": 0.5,
    "num-server-rounds": 6,
    "checkpoint-every": 2,
}
# Partial participation of clients of different sizes, several epochs, averaging over samples, one shared order.
ODD = {
    **SMALL,
    "num-clients": 5,
    "fraction-train": 0.6,
    "partition": "linear",
    "samples-per-client": 0,
    "local-epochs": 1,
    "batch-size": 64,
    "splitavg-over": "clients-and-samples",
    "cut-gradient-scale": "joint",
    "sample-order": "once",
    "loss": "binary-cross-entropy",
    "initial-segments": "shared",
}


@pytest.fixture(scope="module")
def few_workers(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """Three nodes of which only one can run at a time."""
    root, outcome = tmp_path_factory.mktemp("few"), dict[str, str]()

    def body(grid):
        records: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: records.append(record.getMessage())
        logging.getLogger("flwr.sglr").addHandler(handler)
        serve(grid, {**SMALL, "exchange": "auto", "run-dir": str(root / "auto")})
        logging.getLogger("flwr.sglr").removeHandler(handler)
        outcome["log"] = "\n".join(records)
        try:
            serve(grid, {**SMALL, "exchange": "stream", "run-dir": str(root / "stream")})
        except UserError as error:
            outcome["stream"] = str(error)

    simulate(body, nodes=3, workers=1)
    return root, outcome


def test_auto_takes_the_grid_where_the_nodes_cannot_run_at_once(few_workers: tuple[Path, dict[str, str]]) -> None:
    root, outcome = few_workers
    assert json.loads((root / "auto" / "summary.json").read_text())["exchange"] == "grid"
    reason = "exchange auto: 3 nodes take part but only 1 can run at the same time"
    assert outcome["log"].count(reason) == 1


def test_insisting_on_the_stream_there_is_an_error(few_workers: tuple[Path, dict[str, str]]) -> None:
    root, outcome = few_workers
    assert outcome["stream"].startswith("run-config key exchange = 'stream': 3 nodes take part but only 1 can run")
    status = json.loads((root / "stream" / "status.json").read_text())
    assert (status["state"], status["error"]) == ("failed", outcome["stream"])


class Stopped(Exception):
    """What ends a run in the middle."""


@contextmanager
def stopping_after_round(last: int) -> Iterator[None]:
    """A ServerApp that ends when this round has been trained, and before it is recorded."""
    with pytest.MonkeyPatch.context() as patch:
        record = RunDirectory.record

        def stop(self: RunDirectory, row: RoundMetrics) -> None:
            if row.round == last:
                raise Stopped
            record(self, row)

        patch.setattr(RunDirectory, "record", stop)
        yield


def after_its_first_round(finished: Path, copy: Path) -> Path:
    """A copy of a finished run as it was after its first round."""
    shutil.copytree(finished, copy)
    shutil.rmtree(copy / "checkpoints" / "round-0002")
    (copy / "summary.json").unlink()
    return copy


@pytest.fixture(scope="module")
def enough_workers(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    root, outcome = tmp_path_factory.mktemp("enough"), dict[str, str]()

    def body(grid):
        for evaluate in ("server", "client"):
            for exchange in ("stream", "grid"):
                values = {**SMALL, "evaluate": evaluate, "exchange": exchange}
                serve(grid, {**values, "run-dir": str(root / f"{evaluate}-{exchange}")})
            resumed = after_its_first_round(root / f"{evaluate}-stream", root / f"{evaluate}-resumed")
            serve(grid, {**SMALL, "evaluate": evaluate, "exchange": "stream", "resume": True, "run-dir": str(resumed)})
            # Different clients in every round, and a checkpoint after every second one: stopped after the third.
            some = {**SOME, "evaluate": evaluate, "exchange": "stream"}
            serve(grid, {**some, "run-dir": str(root / f"{evaluate}-some")})
            stopped = root / f"{evaluate}-stopped"
            with pytest.raises(Stopped), stopping_after_round(3):
                serve(grid, {**some, "run-dir": str(stopped)})
            serve(grid, {**some, "resume": True, "run-dir": str(stopped)})
        for exchange in ("stream", "grid"):
            serve(grid, {**ODD, "exchange": exchange, "run-dir": str(root / f"odd-{exchange}")})
        # More checkpoints than are kept, from two nodes into one folder.
        often = {**SMALL, "num-server-rounds": 6, "evaluate": "client", "dtype": "float32"}
        serve(grid, {**often, "run-dir": str(root / "often")})
        try:
            serve(grid, {**SMALL, "num-clients": 300, "run-dir": str(root / "too-many")})
        except UserError as error:
            outcome["too-many"] = str(error)

    simulate(body, nodes=2, workers=2)
    return root, outcome


def summary(run_dir: Path) -> dict:
    return json.loads((run_dir / "summary.json").read_text())


@pytest.mark.parametrize("exchange", ["stream", "grid"])
def test_evaluation_on_the_clients_scores_as_on_the_server(enough_workers, exchange: str) -> None:
    root, _ = enough_workers
    server, client = summary(root / f"server-{exchange}"), summary(root / f"client-{exchange}")
    for figure in ("test_accuracy_mean", "test_accuracy_std", "last_round_test_accuracy_mean", "steps"):
        assert client[figure] == pytest.approx(server[figure])
    # Smashed test images go up (3 clients, 40 + 40 images of 32 x 8 x 8 doubles), and no client's weights.
    assert client["evaluation_bytes"] > 3 * 80 * 32 * 8 * 8 * 8
    assert server["evaluation_bytes"] == 0
    assert list((root / f"server-{exchange}" / "checkpoints").glob("round-*/clients/*"))
    assert not list((root / f"client-{exchange}" / "checkpoints").glob("round-*/clients/*"))


@pytest.mark.parametrize("exchange", ["stream", "grid"])
def test_odd_settings_are_the_same_training_as_in_process(enough_workers, tmp_path: Path, exchange: str) -> None:
    root, _ = enough_workers
    inprocess.run(RunConfig.parse({**ODD, "run-dir": str(tmp_path / "one")}), 1)
    expected = final_weights(tmp_path / "one")

    assert largest_difference(final_weights(root / f"odd-{exchange}"), expected) < 1e-9
    inprocess.run(RunConfig.parse({**ODD, "seed": 1, "run-dir": str(tmp_path / "other")}), 1)
    assert distance(final_weights(tmp_path / "other"), expected) > 0.1


@pytest.mark.parametrize("evaluate", ["server", "client"])
def test_resumed_clients_come_from_the_server_or_from_their_nodes(enough_workers, evaluate: str) -> None:
    """With client-side evaluation no client's weights are in the server's checkpoints: the nodes kept them."""
    root, _ = enough_workers
    whole, resumed = final_weights(root / f"{evaluate}-stream"), final_weights(root / f"{evaluate}-resumed")
    assert largest_difference(resumed, whole) == 0.0
    assert summary(root / f"{evaluate}-resumed")["bytes_up"] == summary(root / f"{evaluate}-stream")["bytes_up"]


@pytest.mark.parametrize("evaluate", ["server", "client"])
def test_clients_that_sat_out_go_on_from_their_own_last_round(enough_workers, evaluate: str) -> None:
    """The nodes had trained a round more than the newest checkpoint has when the run was stopped."""
    root, _ = enough_workers
    whole, resumed = final_weights(root / f"{evaluate}-some"), final_weights(root / f"{evaluate}-stopped")
    assert len(whole) == 6
    assert largest_difference(resumed, whole) == 0.0


def test_nodes_drop_their_oldest_checkpoints(enough_workers) -> None:
    root, _ = enough_workers
    kept = [sorted(path.stem for path in folder.iterdir()) for folder in (root / "often" / "nodes").iterdir()]
    # The round before the last is kept until the last is done; that its checkpoint is dropped is known a round later.
    assert kept == 3 * [["round-0003", "round-0004", "round-0005", "round-0006"]]


def test_nodes_leave_nothing_beside_checkpoints_that_have_all(enough_workers) -> None:
    root, _ = enough_workers
    assert not (root / "server-stream" / "nodes").exists()


def test_bytes_are_the_frames_on_both_exchanges(enough_workers) -> None:
    root, _ = enough_workers
    stream, grid = summary(root / "server-stream"), summary(root / "server-grid")
    assert (stream["bytes_up"], stream["bytes_down"]) == (grid["bytes_up"], grid["bytes_down"])
    payload = 2 * 3 * 20 * (32 * 8 * 8 * 8 + 8)  # rounds x clients x samples x (smashed data + label)
    assert payload < stream["bytes_up"] < 1.05 * payload


def test_a_node_that_fails_inside_a_round_ends_the_run_with_its_own_words(tmp_path: Path) -> None:
    outcome: dict[str, str] = {}

    def body(grid):
        try:
            serve(grid, {**SMALL, "exchange": "stream", "run-dir": str(tmp_path / "run")})
        except ExchangeError as error:
            outcome["error"] = str(error)

    simulate(body, nodes=2, workers=2, app_of_nodes=failing_client_app.app)

    assert "the device is out of memory" in outcome["error"]
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "failed"
    assert "the device is out of memory" in status["error"]


def test_more_samples_than_exist_is_one_sentence(enough_workers) -> None:
    _, outcome = enough_workers
    assert "num-clients" in outcome["too-many"]
    assert "\n" not in outcome["too-many"]
