"""What is spent: epsilon against published figures, the ledger, and runs that end at their budget."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
from scipy.stats import norm

from sglr_flower.errors import TooFewClients, UserError
from sglr_flower.run import accounting, assembly, attempts, checks, inprocess
from sglr_flower.run.accounting import LEDGER, Ledger, epsilon
from sglr_flower.run.config import RunConfig
from sglr_flower.run.view import closing_table
from sglr_flower.studies.report import runs

# What one round of 20 images in batches of 8 releases of each client: three steps, each with an average.
RUN = {
    "num-clients": 3,
    "samples-per-client": 20,
    "num-server-rounds": 6,
    "evaluate-every": 0,
    "evaluate-samples": 10,
    "dp-noise": 20.0,
}


def config(path: Path, **values) -> RunConfig:
    return RunConfig.parse({**RUN, "run-dir": str(path), **{key.replace("_", "-"): v for key, v in values.items()}})


# Epsilon --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("releases", [1, 6, 4000])
@pytest.mark.parametrize("noise", [0.8, 5.0, 60.0])
def test_epsilon_is_the_gaussian_mechanisms(noise: float, releases: int) -> None:
    """Balle & Wang's theorem 8, with composition as the sum of the squared sensitivities."""
    found = epsilon(noise, releases, 1e-5)
    mu = math.sqrt(releases) / noise
    left, right = norm.logcdf(mu / 2 - found / mu), found + norm.logcdf(-mu / 2 - found / mu)
    assert math.exp(left) - math.exp(right) == pytest.approx(1e-5, rel=1e-3)


def test_epsilon_against_published_figures() -> None:
    # Dwork & Roth, theorem A.1: sigma = sqrt(2 ln(1.25 / delta)) / epsilon suffices for epsilon < 1, and is not tight.
    classic = math.sqrt(2 * math.log(1.25 / 1e-5)) / 0.5
    assert epsilon(classic, 1, 1e-5) < 0.5
    # Mironov, arXiv 1702.07476, proposition 3 and corollary 3: RDP of k Gaussians is alpha k / (2 z^2), and
    # epsilon = k / (2 z^2) + sqrt(2 k ln(1 / delta)) / z at the best alpha.
    for noise, releases in ((4.0, 1), (10.0, 100), (50.0, 1000)):
        renyi = releases / (2 * noise**2) + math.sqrt(2 * releases * math.log(1e5)) / noise
        assert 0.7 * renyi < epsilon(noise, releases, 1e-5) < renyi
    # Dong, Roth & Su, arXiv 1905.02383, corollary 2.13: a 1-GDP mechanism has delta(1) = 0.1269.
    assert epsilon(1.0, 1, norm.cdf(-0.5) - math.e * norm.cdf(-1.5)) == pytest.approx(1.0, rel=1e-6)
    assert norm.cdf(-0.5) - math.e * norm.cdf(-1.5) == pytest.approx(0.1269, abs=1e-4)


def test_the_librarys_renyi_accountant_says_a_little_more() -> None:
    import dp_accounting

    for noise, releases in ((1.0, 1), (20.0, 600)):
        accountant = dp_accounting.rdp.RdpAccountant()
        accountant.compose(dp_accounting.GaussianDpEvent(noise), releases)
        upper = accountant.get_epsilon(1e-5)
        assert epsilon(noise, releases, 1e-5) <= upper < 1.25 * epsilon(noise, releases, 1e-5)


def test_nothing_released_is_nothing_spent_and_more_is_more() -> None:
    assert epsilon(1.0, 0, 1e-5) == 0
    spent = [epsilon(5.0, count, 1e-5) for count in (1, 2, 10, 100)]
    assert spent == sorted(spent)
    assert epsilon(10.0, 10, 1e-5) < epsilon(5.0, 10, 1e-5)


# The ledger -----------------------------------------------------------------------------------------------------------


def test_a_client_pays_for_the_steps_it_may_be_seen_in(tmp_path: Path) -> None:
    partial = config(tmp_path, fraction_train=0.34, splitavg_phase="first:0.5")
    sizes = {0: 20, 1: 4, 2: 8}
    ledger = Ledger.open(partial, tmp_path, 0)
    assert ledger is not None
    expected = dict.fromkeys(range(3), 0)
    for server_round in range(1, 7):
        plan = assembly.plan(partial, server_round)
        ledger.charge(plan, sizes)
        for client in plan.clients:  # two releases while SplitAvg acts, then the server's steps alone
            expected[client] += {0: 3, 1: 1, 2: 1}[client] * (2 if server_round <= 3 else 1)

    assert ledger.releases == {client: count for client, count in expected.items() if count}
    assert ledger.epsilon == epsilon(20.0, max(expected.values()), 1e-5)
    assert Ledger.open(partial, tmp_path, 6) == ledger


def test_of_messages_a_client_pays_one_for_each(tmp_path: Path) -> None:
    messages = config(tmp_path, dp_protects="messages")
    ledger = Ledger.open(messages, tmp_path, 0)
    assert ledger is not None
    ledger.charge(assembly.plan(messages, 1), dict.fromkeys(range(3), 20))
    assert ledger.releases == dict.fromkeys(range(3), 3)


def test_without_differential_privacy_there_is_no_ledger(tmp_path: Path) -> None:
    assert Ledger.open(config(tmp_path, dp_noise=0.0), tmp_path, 3) is None


@pytest.mark.parametrize("content", [None, "", "{}", '{"releases": 3}', '{"releases": {"a": 1}}'])
def test_a_run_that_does_not_know_what_it_has_spent_does_not_go_on(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / LEDGER).write_text(content)
    with pytest.raises(UserError, match=r"privacy\.json does not say what the run has spent"):
        Ledger.open(config(tmp_path), tmp_path, 1)


def test_noise_that_can_be_drawn_again_has_no_epsilon(tmp_path: Path) -> None:
    summary = inprocess.run(config(tmp_path / "run", noise_seed=3, num_server_rounds=1))
    assert summary["epsilon"] is None
    assert [row["epsilon"] for row in rows(tmp_path / "run")] == [""]


def test_without_the_accountant_it_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^run-config key dp-noise: it needs the accountant: pip install"):
        checks.check(config(tmp_path))


# Runs -----------------------------------------------------------------------------------------------------------------


def rows(path: Path) -> list[dict[str, str]]:
    with (path / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_ends_before_the_round_that_its_budget_does_not_allow(tmp_path: Path) -> None:
    budget = epsilon(20.0, 6 * 3, 1e-5) * 1.01
    summary = inprocess.run(config(tmp_path / "run", dp_epsilon_budget=budget), 2)

    assert (summary["rounds"], summary["ended_by_privacy_budget"]) == (3, True)
    assert summary["epsilon"] == epsilon(20.0, 18, 1e-5) <= budget < epsilon(20.0, 24, 1e-5)
    assert summary["evaluated_images"] == 10  # evaluate-every = 0: the last round is, though it was not to be the last
    recorded = rows(tmp_path / "run")
    assert [float(row["epsilon"]) for row in recorded] == [epsilon(20.0, 6 * k, 1e-5) for k in (1, 2, 3)]
    assert (tmp_path / "run" / "checkpoints" / "round-0003").exists()
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"
    assert runs.read(tmp_path / "run").result is not None  # a finished run, and none that lacks rounds
    table = closing_table(summary, tmp_path / "run")
    assert any("the budget allowed no further round" in cell for cell in table.columns[1].cells)


def test_a_budget_that_suffices_ends_nothing(tmp_path: Path) -> None:
    enough = config(tmp_path / "run", num_server_rounds=2, dp_epsilon_budget=epsilon(20.0, 12, 1e-5) + 1e-9)
    summary = inprocess.run(enough)
    assert (summary["rounds"], summary["ended_by_privacy_budget"]) == (2, False)


def test_a_budget_for_no_round_at_all_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^run-config key dp-epsilon-budget = 0\.1: round 1 would bring epsilon to 0\.4"
    ):
        inprocess.run(config(tmp_path / "run", dp_epsilon_budget=0.1))
    assert not (tmp_path / "run" / LEDGER).exists()


class Killed(BaseException):
    """Ends a run as a signal would."""


def test_what_a_killed_run_has_sent_stays_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in its third round, before that was recorded: resumed, the round is trained and paid for once more."""
    train, seen = attempts._train_turns, []

    def killed(*arguments):
        seen.append(1)
        done = train(*arguments)
        if len(seen) == 3:
            raise Killed
        return done

    settings = config(tmp_path / "run", dp_epsilon_budget=epsilon(20.0, 6 * 5, 1e-5) * 1.001)
    with monkeypatch.context() as patch:
        patch.setattr(attempts, "_train_turns", killed)
        with pytest.raises(Killed):
            inprocess.run(settings)
    summary = inprocess.run(settings.replace(resume=True))

    assert summary["rounds"] == 4  # and not 5, for which the budget would have been
    assert summary["epsilon"] == epsilon(20.0, 6 * 5, 1e-5)


def test_every_attempt_of_a_round_is_paid_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, seen = attempts._train_turns, []

    def failing_once(*arguments):
        seen.append(1)
        if len(seen) == 2:
            raise TooFewClients("round 2: too few")
        return train(*arguments)

    monkeypatch.setattr(attempts, "_train_turns", failing_once)
    budget = epsilon(20.0, 6 * 4, 1e-5) * 1.001
    summary = inprocess.run(config(tmp_path / "run", round_retries=1, dp_epsilon_budget=budget))

    assert [row["attempts"] for row in rows(tmp_path / "run")] == ["1", "2", "1"]
    assert summary["epsilon"] == epsilon(20.0, 6 * 4, 1e-5)
