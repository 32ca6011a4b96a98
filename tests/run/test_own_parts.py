"""One's own loss, optimizer, codec, defence and server behaviour train as in a plain loop; mistakes are sentences."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from integration.runs import final_weights, largest_difference
from own_cases import CASES, SETTINGS
from reference_parts import plain_loop

from sglr_flower import choices
from sglr_flower.errors import UserError
from sglr_flower.run import checks, inprocess
from sglr_flower.run.config import RunConfig
from sglr_flower.run.rundir import RunDirectory
from sglr_flower.split import loss, methods, optimizers


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_trains_as_a_plain_loop_and_goes_on_in_the_middle(case: str, nodes: int, tmp_path: Path) -> None:
    values, parts = CASES[case]
    where = {"run-dir": str(tmp_path / "run")}
    config = RunConfig.parse({**SETTINGS, **values, **where})
    expected = plain_loop(config, parts)
    if nodes == 1:
        inprocess.run(config, nodes)
    else:  # over two nodes: stopped after its first round, and resumed
        inprocess.run(config.replace(num_server_rounds=1), nodes)
        (tmp_path / "run" / "config.toml").write_text(config.to_toml())
        (tmp_path / "run" / "summary.json").unlink()
        inprocess.run(config.replace(resume=True), nodes)

    assert largest_difference(final_weights(tmp_path / "run"), expected) < 1e-9


@pytest.mark.parametrize("case", ["adamw", "momentum"])
@pytest.mark.parametrize("cohort", ["stacked", "graph"])
def test_stacked_and_recorded_steps_do_the_same(case: str, cohort: str, tmp_path: Path) -> None:
    values, parts = CASES[case]
    config = RunConfig.parse({**SETTINGS, **values, "cohort": cohort, "run-dir": str(tmp_path / "run")})
    inprocess.run(config)

    assert largest_difference(final_weights(tmp_path / "run"), plain_loop(config, parts)) < 1e-9


def test_a_stacked_cohort_falls_back_to_the_loop_and_says_so(tmp_path: Path, caplog) -> None:
    values, parts = CASES["rmsprop"]
    config = RunConfig.parse({**SETTINGS, **values, "cohort": "stacked", "run-dir": str(tmp_path / "run")})
    with caplog.at_level("INFO", "flwr.sglr"):
        inprocess.run(config)

    assert caplog.text.count("not stacked: torch.optim:RMSprop is for one client at a time") == 1
    assert largest_difference(final_weights(tmp_path / "run"), plain_loop(config, parts)) < 1e-9


def test_another_part_ends_with_other_weights() -> None:
    """Otherwise agreement with the plain loop would say nothing about it."""
    base = RunConfig.parse(SETTINGS)
    plain = plain_loop(base, CASES["loss"][1])
    for case in ("loss of torch", "adamw", "rmsprop", "codec", "defence", "server"):
        assert largest_difference(plain_loop(base, CASES[case][1]), plain) > 1e-6, case
    for part in ("codec", "defence", "cautious"):
        without = replace(CASES["all"][1], **{part: False})
        assert largest_difference(plain_loop(base, without), plain_loop(base, CASES["all"][1])) > 1e-6, part


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("loss", "own_parts:per_sample", "it must give a scalar tensor, the mean over the samples, not shape (2,)"),
        ("loss", "own_parts:Learned", "without weights of its own that would have to be trained"),
        ("loss", "own_parts:nothing", "module 'own_parts' has no 'nothing'"),
        ("loss", "mse", "targets (2,) do not fit outputs (2, 10)"),
        ("optimizer", "torch.optim:LBFGS", "its step needs a closure"),
        ("optimizer", "torch.optim:SparseAdam", "a step of it fails: SparseAdam does not support dense gradients"),
        (
            "optimizer",
            "torch.optim:Muon",
            "cannot be made for the model's weights: Muon only supports 2D parameters",
        ),
        ("optimizer", "own_parts:two_groups", "it has 2 groups of parameters"),
        ("optimizer", "own_parts:Forgetful", "it keeps something beside the state of its parameters"),
        ("server-optimizer", "own_parts:Forgetful", "it keeps something beside the state of its parameters"),
        ("optimizer", "own_parts:smooth", "it cannot be made for the model's weights"),
        ("optimizer", "math:pi", "it must be called with parameters, which a float cannot be"),
        ("wire-up", "own_parts:Undeclared", "it makes "),
        ("wire-down", "own_parts:Together", "depends on the samples beside it"),
        ("wire-up", "own_parts:Squashed", "it must be a sglr_flower.split.codecs.Codec"),
        ("defence", "own_parts:Shrinking", "it must make such, not (2, 1, 8, 8)"),
        ("defence", "own_parts:Halves", "it must be a sglr_flower.split.defences.Defence"),
        ("method", "own_parts:Halves", "it must be a sglr_flower.methods.Method"),
    ],
)
def test_what_cannot_train_is_a_sentence_before_anything_starts(
    key: str, value: str, said: str, tmp_path: Path
) -> None:
    config = RunConfig.parse({**SETTINGS, key: value, "run-dir": str(tmp_path / "run")})
    with pytest.raises(UserError) as raised:
        checks.check(config)

    assert str(raised.value).startswith(f"run-config key {key} = {value!r}: ")
    assert said in str(raised.value)
    if key != "loss" or value == "own_parts:nothing":
        with pytest.raises(UserError, match="run-config key"):
            inprocess.run(config)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["method", "model", "loss", "optimizer", "server-optimizer"])
@pytest.mark.parametrize("value", ["adm", ":", "own.:x", ".own:x", "own parts:x", "a:b:c"])
def test_a_name_that_is_none_is_refused_where_it_enters(key: str, value: str) -> None:
    with pytest.raises(UserError) as raised:
        RunConfig.parse({key: value})

    assert str(raised.value).startswith(f"run-config key {key} = {value!r}: it must be one of ")
    assert str(raised.value).endswith(", or package.module:name")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"momentum": 0.9}, "momentum = 0.9: it must be 0 where neither optimizer nor server-optimizer is sgd"),
        ({"optimizer": "torch.optim:SGD", "weight-decay": 0}, "weight-decay = 0: it must be -1 where no optimizer"),
        ({"weight-decay": -0.5}, "weight-decay = -0.5: it must be -1, or from 0"),
        ({"method": "fedavg", "defence": "a:b"}, "defence = 'a:b': it must be empty with method fedavg"),
        ({"method": "fedavg", "server-optimizer": "sgd"}, "server-optimizer = 'sgd': it must be empty with method"),
        ({"method": "fedavg", "wire-up": "a:b"}, "wire-up = 'a:b': it must be none with method fedavg"),
        ({"smashed-clip": 1, "defence": "a:b"}, "defence = 'a:b': it must be empty with nopeek-weight"),
        ({"defence": "noise"}, "defence = 'noise': it must be empty, or package.module:name"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_a_sentence(values: dict[str, object], said: str) -> None:
    with pytest.raises(UserError) as raised:
        RunConfig.parse(values)

    assert f"run-config key {said}" in str(raised.value)


def test_what_an_own_method_has_no_use_for_is_refused_once_it_is_imported() -> None:
    config = RunConfig.parse({"method": "own_parts:cautious", "dp-noise": 1.0})
    with pytest.raises(UserError, match=r"dp-noise = 1\.0: it must be 0 with method own_parts:cautious"):
        checks.check(config)


def test_the_servers_old_names_stand_for_the_same() -> None:
    assert methods.Method(server="in-turn", average=True) == methods.METHODS["sfl-v2"]
    assert methods.Method(server="none", average=True) == methods.METHODS["fedavg"]
    with pytest.raises(UserError, match=r"Method.server = 'jont': it must be one of joint, in-turn, copies, none"):
        methods.Method(server="jont")


def test_the_names_offered_are_those_there_are() -> None:
    assert tuple(loss.LOSSES) == choices.LOSSES
    assert tuple(sorted(optimizers.WEIGHT_DECAY)) == choices.OPTIMIZERS


def test_losses_of_numbers_and_labels_by_hand() -> None:
    outputs, targets = torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 1.0])
    assert float(loss.mse(outputs, targets)) == pytest.approx((1 + 4) / 2)
    assert float(loss.l1(outputs, targets)) == pytest.approx((1 + 2) / 2)
    several = loss.bce_with_logits(torch.tensor([[0.0, 2.0]]), torch.tensor([[1, 0]]))
    assert float(several) == pytest.approx(-(torch.tensor(0.5).log() + (1 - torch.tensor(2.0).sigmoid()).log()) / 2)


READ = """
import sys
from pathlib import Path
from sglr_flower.run.rundir import RunDirectory
from sglr_flower.studies.report import page, runs
folder = Path(sys.argv[1])
RunDirectory(folder).read_config()
from sglr_flower.run import view, plots
(run,) = runs.read_all([folder])
from sglr_flower.studies.report import groups, tables
from sglr_flower.cli.app import app
sys.argv = ["sglr", "report", str(folder), "--out", str(folder / "page.html")]
try:
    app()
except SystemExit as ended:
    assert not ended.code, ended.code
assert "own_parts" not in sys.modules
"""


def test_a_finished_run_is_read_without_its_code(tmp_path: Path) -> None:
    config = RunConfig.parse({**SETTINGS, **CASES["all"][0], "run-dir": str(tmp_path / "run"), "evaluate-every": 1})
    inprocess.run(config)
    (tmp_path / "own_parts.py").write_text("raise RuntimeError('imported')\n")
    read = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / "run")], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert read.returncode == 0, read.stderr
    assert RunDirectory(tmp_path / "run").read_config().imports_code


def test_the_parts_in_the_documents_are_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text.partition("## Adding a method")[2], re.DOTALL)
    (tmp_path / "documented_parts.py").write_text("\n".join(blocks))
    monkeypatch.syspath_prepend(tmp_path)
    values = {
        "method": "documented_parts:cautious",
        "wire-up": "documented_parts:Signs",
        "wire-down": "documented_parts:Signs",
        "defence": "documented_parts:Squashed",
    }
    done = inprocess.run(RunConfig.parse({**SETTINGS, **values, "run-dir": str(tmp_path / "run")}))

    assert done["steps"] == 4
    sample = 32 * 8 * 8 + 8  # int8 values of ResNet16's cut of the 16-pixel digits, and a scale
    assert done["bytes_smashed"] == 2 * 3 * 16 * sample
