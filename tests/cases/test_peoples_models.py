"""What people's own networks and methods are like: tried before anything starts, and each mistake is one sentence."""

from __future__ import annotations

import functools
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import case_models
import pytest
import torch
from integration.runs import final_weights, largest_difference
from reference_parts import Parts, plain_loop
from safetensors.torch import load_file
from torch import nn

import sglr_flower as sglr
from sglr_flower.errors import UserError
from sglr_flower.run import assembly, checks, inprocess
from sglr_flower.run.config import RunConfig
from sglr_flower.split import methods
from sglr_flower.studies.trained import export
from sglr_flower.studies.trained import network as trained

SOURCE = Path(case_models.__file__).read_text().splitlines()
SMALL: dict[str, Any] = {"num-clients": 2, "samples-per-client": 16, "num-server-rounds": 1, "evaluate-samples": 20}


def line_of(name: str) -> int:
    (line,) = (number for number, text in enumerate(SOURCE, 1) if f"# line of {name}" in text)
    return line


def config_of(name: str, **changes: Any) -> RunConfig:
    values = {"model": f"case_models:{name}", "cut": "first", **SMALL}
    return RunConfig.parse(values | {key.replace("_", "-"): value for key, value in changes.items()})


@pytest.mark.parametrize(
    ("name", "said"),
    {
        "typo": "calling it fails with AttributeError: 'Sequential' object has no attribute 'frist'",
        "two_outputs": "its client segment must give one floating point tensor at the cut, with a row for each of 2 "
        "samples, and gives a tuple in stage 'first'",
        "detached": "its client segment gives a tensor without a graph (a detach or no_grad in stage 'first')",
        "only_in_training": "its client segment is tried, and its stage 'first' fails in training mode with IndexError",
        "asserts": "its server segment is tried, and its stage 'head' fails in training mode with AssertionError",
        "grey": "it must map images (1, 3, 16, 16) to logits (1, 10), and its stage 'first' fails with RuntimeError",
        "frozen_client": "its client segment must have a weight that is trained (all are frozen: requires_grad = ",
        "tied_across": "its server segment has a weight that its client segment has too (up.0.weight)",
    }.items(),
)
def test_a_mistake_is_a_sentence_with_the_stage_and_the_line(name: str, said: str) -> None:
    config = config_of(name, cut={"tied_across": "low"}.get(name, "first"))
    with pytest.raises(UserError) as caught:
        checks.check_parts(config)

    sentence = str(caught.value)
    assert sentence.startswith(f"run-config key model = 'case_models:{name}': {said}")
    assert f"case_models.py:{line_of(name)})" in sentence
    assert "\n" not in sentence


def test_a_server_segment_without_a_graph_is_refused() -> None:
    with pytest.raises(UserError, match=r"its server segment gives a tensor without a graph|does not use the smashed"):
        checks.check_parts(config_of("detached_server"))


def test_a_network_for_grey_images_is_told_of_the_key() -> None:
    with pytest.raises(UserError, match=r"it is made for images of 1 channel.*set channels = 1$"):
        checks.check_parts(config_of("grey"))


def test_a_network_for_grey_images_trains_with_the_key_and_is_exported(tmp_path: Path) -> None:
    config = config_of("grey", channels=1, run_dir=str(tmp_path))
    checks.check(config)
    assert inprocess.run(config)["steps"] == 2
    folder = export.export(trained.load(tmp_path), 0)
    assert torch.export.load(folder / "model.pt2").module()(torch.zeros(3, 1, 16, 16)).shape == (3, 10)


def test_a_mistake_in_a_method_is_a_sentence_with_the_line() -> None:
    config = RunConfig.parse({**SMALL, "method": "case_models:misspelt", "model": "case_models:tied", "cut": "low"})
    with pytest.raises(
        UserError, match=r"method = 'case_models:misspelt': a step of training fails with NameError"
    ) as e:
        checks.check_parts(config)
    assert str(e.value).endswith(f"case_models.py:{line_of('misspelt')})")


@pytest.mark.parametrize(
    ("clients", "samples", "method", "refused"),
    [
        (1, 17, "psl", True),
        (2, 17, "psl", False),  # the server's last step has a sample of each
        (2, 17, "sfl-v2", True),
        (2, 17, "ssl", True),
        (1, 16, "psl", False),
        (1, 1, "psl", True),
    ],
)
def test_batch_norm_on_a_batch_of_one_is_refused_where_there_will_be_one(
    clients: int, samples: int, method: str, refused: bool, tmp_path: Path
) -> None:
    config = config_of(
        "batch_norm_1d", num_clients=clients, samples_per_client=samples, method=method, run_dir=str(tmp_path / "run")
    )
    if not refused:
        checks.check(config)
        assert inprocess.run(config)["rounds"] == 1
        return
    said = rf"client 0's {samples} sample\(s\) leave a batch of one with batch-size = 8.*stage 'head' fails in training"
    for check in (checks.check, inprocess.run):
        with pytest.raises(UserError, match=said) as caught:
            check(config)
        assert f"case_models.py:{line_of('batch_norm_1d')}" in str(caught.value)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_batch_norm_over_feature_maps_takes_a_batch_of_one() -> None:
    checks.check(config_of("batch_norm_2d", num_clients=1, samples_per_client=17))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("probabilities", ["its outputs are probabilities (each sample's sum to one), but the loss takes logits"]),
        ("log_probabilities", []),  # of which cross-entropy is the same
        ("frozen_server", ["its server segment has no weight that is trained, so the server learns nothing"]),
        ("channels_last", []),
    ],
)
def test_what_may_not_be_meant_is_said(name: str, said: list[str]) -> None:
    found = checks.remarks(config_of(name), {0: 16})

    assert len(found) == len(said)
    for sentence, words in zip(found, said, strict=True):
        assert sentence.startswith(f"run-config key model = 'case_models:{name}': {words}")


def test_probabilities_are_said_of_a_loss_that_takes_logits_only() -> None:
    assert not checks.remarks(config_of("probabilities", loss="mse"), {0: 16})
    assert checks.remarks(config_of("probabilities", loss="torch.nn:CrossEntropyLoss"), {0: 16})
    assert not checks.remarks(config_of("probabilities", loss="torch.nn:NLLLoss"), {0: 16})


def test_clients_with_batches_of_one_sample_and_batch_norm_are_named() -> None:
    (said,) = checks.remarks(config_of("batch_norm_2d"), {0: 16, 3: 1, 5: 1})
    assert said.startswith("client(s) 3, 5: all batches are of one sample, of which batch norm (first.1)")
    assert not checks.remarks(config_of("tied", cut="low"), {0: 16, 3: 1})


def test_trying_leaves_no_trace() -> None:
    """Random numbers go on as if nothing had been, and no network is another one than without."""
    config = config_of("batch_norm_2d", num_clients=1, samples_per_client=17)
    before = assembly.model(config).whole().state_dict()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    checks.check(config)
    checks.remarks(config, {0: 17})
    assert torch.equal(torch.rand(4), expected)
    after = assembly.model(config).whole().state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


TIED = {
    **{"model": "case_models:tied", "cut": "low", "method": "psl", "dtype": "float64", "num-server-rounds": 2},
    **{"num-clients": 2, "samples-per-client": 16, "evaluate-samples": 20},
}


@pytest.mark.parametrize("cohort", ["loop", "stacked"])
def test_a_weight_at_two_places_of_a_segment_trains_as_in_a_plain_loop(cohort: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    config = RunConfig.parse({**TIED, "cohort": cohort, "run-dir": str(run_dir)})
    inprocess.run(config.replace(num_server_rounds=1))  # stopped after its first round, and resumed
    (run_dir / "config.toml").write_text(config.to_toml())
    (run_dir / "summary.json").unlink()
    inprocess.run(config.replace(resume=True))

    expected = plain_loop(config, Parts(torch.optim.Adam, torch.optim.Adam))
    assert largest_difference(final_weights(run_dir), expected) < 1e-9
    assert {"low.0.weight", "low.2.weight"} < expected["client-0"].keys()

    model = trained.load(run_dir)
    folder = export.export(model, 1)
    images = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    outputs = torch.export.load(folder / "model.pt2").module()(images)
    assert torch.equal(outputs, model.network(1)(images))
    weights = load_file(folder / "model.safetensors")
    assert torch.equal(weights["low.0.weight"], weights["low.2.weight"])
    model.network(1).load_state_dict(weights)


@pytest.mark.parametrize("method", ["sfl", "fedavg"])
def test_a_weight_at_two_places_is_averaged_as_one(method: str, tmp_path: Path) -> None:
    config = RunConfig.parse({**TIED, "method": method, "run-dir": str(tmp_path / "run")})
    assert inprocess.run(config)["rounds"] == 2
    found = trained.load(tmp_path / "run").network(0)
    assert found.low[0] is found.low[2]  # type: ignore[union-attr, index]


def test_a_network_in_channels_last_is_exported(tmp_path: Path) -> None:
    inprocess.run(config_of("channels_last", run_dir=str(tmp_path / "run")))
    model = trained.load(tmp_path / "run")
    folder = export.export(model, 0)
    images = torch.rand(3, 3, 16, 16)
    outputs = torch.export.load(folder / "model.pt2").module()(images)
    torch.testing.assert_close(outputs, model.network(0)(images))


def images_of(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(count)
    return torch.rand(count, 3, 8, 8, generator=draw), torch.arange(count) % 10


def learning(name: str, *, counts: tuple[int, ...] = (16, 16), **changes: Any) -> sglr.SplitLearning:
    make = getattr(case_models, name)
    return sglr.SplitLearning(
        **{
            "lower": lambda: make(10, 8)[0],
            "upper": lambda: make(10, 8)[1],
            "clients": [images_of(count) for count in counts],
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("name", "said", "counts"),
    [
        ("typo", "lower: making a client segment fails with AttributeError: 'Sequential' object has no", (16, 16)),
        ("two_outputs", "lower: it must give one tensor, not a tuple", (16, 16)),
        ("detached", "lower and upper: lower gives a tensor without a graph", (16, 16)),
        (
            "only_in_training",
            "lower and upper: lower is tried, and it fails in training mode with IndexError",
            (16, 16),
        ),
        ("batch_norm_1d", "lower and upper: client 0's 17 sample(s) leave a batch of one with batch-size = 8", (17,)),
        ("frozen_client", "lower and upper: lower must have a weight that is trained (all are frozen", (16,)),
    ],
)
def test_from_python_a_mistake_is_a_sentence_too(name: str, said: str, counts: tuple[int, ...]) -> None:
    with pytest.raises(UserError) as caught:
        learning(name, counts=counts)
    assert str(caught.value).startswith(said)


def test_from_python_a_weight_in_both_segments_is_refused() -> None:
    both = nn.Conv2d(3, 3, 3, padding=1)
    upper = nn.Sequential(both, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 10))
    for given in (upper, lambda: upper):
        with pytest.raises(UserError, match=r"upper has a weight that lower has too \(0.weight\)"):
            sglr.SplitLearning(lambda: nn.Sequential(both, nn.Tanh()), given, [images_of(16)])


def test_from_python_a_mistake_in_a_method_is_a_sentence_too() -> None:
    with pytest.raises(UserError, match=r"method: a step of training fails with NameError.*case_models.py:"):
        learning("channels_last", method=case_models.misspelt)


def test_from_python_what_may_not_be_meant_is_a_warning() -> None:
    with pytest.warns(UserWarning, match="its outputs are probabilities"):
        learning("probabilities")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learning("channels_last")
        learning("batch_norm_1d", counts=(17, 17), method=methods.get("psl"))


@pytest.mark.parametrize("option", [[], ["--traceback"]])
def test_the_command_says_one_sentence_and_shows_the_traceback_when_asked(option: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sglr_flower.cli", "run", "-s", "model=case_models:typo", "-s", "num-clients=1"]
    run = functools.partial(subprocess.run, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[1])
    done = run([*command, *option, "--run-dir", str(tmp_path / "run")])

    lines = done.stderr.strip().splitlines()
    assert done.returncode == 1
    assert lines[-1].startswith("sglr: run-config key model = 'case_models:typo': calling it fails with AttributeError")
    assert lines[-1].endswith(f"case_models.py:{line_of('typo')})")
    assert ("Traceback (most recent call last):" in lines) is bool(option)
    assert (len(lines) == 1) is not bool(option)
    assert not (tmp_path / "run").exists()
