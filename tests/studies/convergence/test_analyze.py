"""`sglr analyze` on tiny real runs."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from pathlib import Path

import pytest
import torch
import trained_runs
from PIL import Image
from typer.testing import CliRunner

from sglr_flower.cli.app import app
from sglr_flower.data.inputs import to_input
from sglr_flower.errors import UserError
from sglr_flower.run import assembly, checkpoint
from sglr_flower.split import optimizers
from sglr_flower.split.optimizers import StandardOptimizer
from sglr_flower.studies.convergence import analyze, convergence
from sglr_flower.studies.convergence.point import update
from sglr_flower.studies.convergence.smoothness import MULTIPLES


def train(run_dir: Path, **changes: object) -> None:
    """A run that is scored once and on few images: it is measured afterwards."""
    trained_runs.run(run_dir, **{"evaluate_every": 0, "evaluate_samples": 10, **changes})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[float, Path]:
    """Phi -> a run of four clients with five checkpoints."""
    root, found = tmp_path_factory.mktemp("analyze"), {}
    for phi in (0.0, 0.5, 1.0):
        found[phi] = root / f"phi-{phi:g}"
        train(
            found[phi],
            num_clients=4,
            num_server_rounds=5,
            splitavg_phi=phi,
            checkpoints_kept=0,
        )
    return found


def digest(run_dir: Path) -> dict[str, str]:
    files = (path for path in run_dir.rglob("*") if path.is_file() and "analysis" not in path.parts)
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def invoke(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["analyze", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_runs_checkpoints_are_measured_and_nothing_of_it_is_changed(runs: dict[float, Path]) -> None:
    before = digest(runs[0.5])
    invoke(runs[0.5], "--batches", 4)

    assert digest(runs[0.5]) == before
    folder = runs[0.5] / "analysis"
    rows = list(csv.DictReader((folder / "convergence.csv").open()))
    written = json.loads((folder / "convergence.json").read_text())
    assert [int(row["round"]) for row in rows] == [1, 2, 3, 4, 5]
    assert written["multiples"] == list(MULTIPLES)
    for row, values in zip(rows, written["checkpoints"], strict=True):
        assert (values["clients"], values["active"], values["alpha"], values["phi"]) == (4, 2, 0.5, 0.5)
        assert float(row["cosine"]) == values["cosine"]
        assert float(row["loss_at_0"]) == values["losses"][0]
        assert -1 <= values["cosine"] <= 1
        # The average of two is the longer the more they agree, and no longer than their mean length.
        assert 0 < values["average_norm"] <= values["own_norm"] * 1.5
        assert values["variance"] > 0
        assert 0 < values["weights_spread"] <= math.sqrt(3 / 4) * 1.01
        assert 0 < values["function_spread"] <= 1
        assert values["rate_smoothness"] > 0
    with Image.open(folder / "convergence.png") as picture:
        assert picture.size[0] > 1000


def test_runs_are_compared_by_what_differs(runs: dict[float, Path], tmp_path: Path) -> None:
    invoke(*runs.values(), "--batches", 3, "--out", tmp_path)
    rows = list(csv.DictReader((tmp_path / "convergence.csv").open()))

    assert list(dict.fromkeys(row["name"] for row in rows)) == ["phi 0", "phi 0.5", "phi 1"]
    by_phi = {phi: [row for row in rows if float(row["phi"]) == phi] for phi in (0.0, 0.5, 1.0)}
    for row in by_phi[0.0]:
        assert (row["active"], row["cosine"]) == ("0", "")
        assert (float(row["bias2"]), float(row["kept"]), float(row["kept_error"])) == pytest.approx((0, 1, 0))
        assert row["variance"] == row["own_variance"]
    assert [row["active"] for row in by_phi[1.0]] == ["4"] * 5
    # The first point of all runs is not the same, as they have trained a round; but the own gradients' sizes are alike.
    cosines = {phi: sum(float(row["cosine"]) for row in by_phi[phi]) for phi in (0.5, 1.0)}
    assert cosines[1.0] < cosines[0.5]


def test_another_phi_may_be_asked_for(runs: dict[float, Path], tmp_path: Path) -> None:
    invoke(runs[0.0], "--batches", 3, "--phi", 1, "--out", tmp_path)
    rows = list(csv.DictReader((tmp_path / "convergence.csv").open()))
    assert {row["active"] for row in rows} == {"4"}
    assert all(float(row["bias2"]) != 0 for row in rows)


def test_the_update_is_that_of_the_checkpoints_optimizers(runs: dict[float, Path]) -> None:
    run = analyze.read(runs[0.5])
    here = analyze.point(run, run.checkpoints[1])
    state = run.checkpoints[1].client_states([2])[2]
    flat = optimizers.flat_state(here.clients[2].segment, _Kept(here.clients[2].slots))
    assert flat.keys() == state.keys()
    assert all((flat[name] == tensor).all() for name, tensor in state.items())
    assert int(here.clients[2].slots[0]["step"]) == 2 * 4  # rounds of 16 images in batches of 4


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("scale", ["own", "joint"])
def test_a_step_from_a_checkpoint_is_the_one_that_the_run_itself_made(
    tmp_path: Path, optimizer: str, scale: str
) -> None:
    """Rounds of one step, all clients active: from checkpoint 1, with the batches of round 2, to checkpoint 2."""
    train(
        tmp_path / "run",
        num_clients=3,
        samples_per_client=5,
        batch_size=5,
        num_server_rounds=2,
        splitavg_phi=1.0,
        splitlr_alpha=1.0,
        optimizer=optimizer,
        cut_gradient_scale=scale,
        dtype="float64",
    )
    run = analyze.read(tmp_path / "run")
    here, then = (analyze.point(run, at) for at in run.checkpoints)
    plan = assembly.plan(run.config, 2)
    batches = {}
    for client, share in assembly.client_data(run.config, plan.clients).items():
        batch = share.take(plan.batches(client, len(share))[0])
        batches[client] = to_input(batch.images, torch.float64), batch.labels
    made = convergence._step(here, batches, 0)

    gradients = {**made.received, "server": made.server}
    sides = {**here.clients, "server": here.server}
    after = {**then.clients, "server": then.server}
    rates = {**dict.fromkeys(here.clients, 0.003), "server": 0.003 * 3}
    for who, side in sides.items():
        added = update(side, StandardOptimizer(optimizer), gradients[who], rates[who])
        for change, before, now in zip(added, side.parameters, after[who].parameters, strict=True):
            torch.testing.assert_close(before.detach() + change, now.detach(), rtol=0, atol=1e-12)


class _Kept(optimizers.Sgd):
    def __init__(self, slots: object) -> None:
        super().__init__([])
        self._slots = dict(slots)


def test_methods_that_share_a_segment_have_no_spread(tmp_path: Path) -> None:
    train(tmp_path / "run", method="sfl")
    invoke(tmp_path / "run", "--batches", 3)
    (row,) = csv.DictReader((tmp_path / "run" / "analysis" / "convergence.csv").open())
    assert float(row["weights_spread"]) == float(row["function_spread"]) == 0.0


def test_clients_that_have_not_trained_yet_are_where_they_began(tmp_path: Path) -> None:
    train(tmp_path / "run", num_clients=6, fraction_train=0.5, num_server_rounds=2)
    run = analyze.read(tmp_path / "run")
    assert [at.server_round for at in run.checkpoints] == [1, 2]
    for at in run.checkpoints:
        assert len(analyze.point(run, at).clients) == 3


def test_a_damaged_checkpoint_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tmp_path / "run", num_server_rounds=3)
    damaged = tmp_path / "run" / "checkpoints" / "round-0002" / "server.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    found = checkpoint.whole(tmp_path / "run" / "checkpoints")
    assert [at.server_round for at in found] == [1, 3]
    assert "round-0002 is damaged" in caplog.text


def test_how_many_checkpoints_are_kept_can_be_chosen(tmp_path: Path) -> None:
    for kept, rounds in ((2, [5, 4]), (0, [5, 4, 3, 2, 1])):
        folder = tmp_path / f"kept-{kept}"
        train(folder, num_server_rounds=5, checkpoints_kept=kept)
        assert checkpoint.rounds(folder / "checkpoints") == rounds


@pytest.mark.parametrize("method", ["fedavg", "ssl", "sfl-v1", "sfl-v2"])
def test_a_method_without_a_joint_step_is_refused(tmp_path: Path, method: str) -> None:
    train(tmp_path / "run", method=method)
    with pytest.raises(UserError, match=re.escape(f"method {method} makes no step of all clients together")):
        analyze.read(tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"smashed_clip": 5.0}, "a defence of smashed data"),
        ({"wire_down": "int8"}, "a codec"),
        ({"dp_noise": 1.0}, "differential privacy"),
    ],
)
def test_a_run_whose_steps_are_others_is_refused(tmp_path: Path, changes: dict[str, object], named: str) -> None:
    train(tmp_path / "run", **changes)
    with pytest.raises(UserError, match=re.escape(named)):
        analyze.read(tmp_path / "run")


def test_mistakes_are_sentences(tmp_path: Path, runs: dict[float, Path]) -> None:
    with pytest.raises(UserError, match="is not a run directory"):
        analyze.read(tmp_path)
    with pytest.raises(UserError, match="a run directory is given twice"):
        invoke(runs[0.5], runs[0.5])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out .*file cannot be written"):
        invoke(runs[0.5], "--out", tmp_path / "file")
