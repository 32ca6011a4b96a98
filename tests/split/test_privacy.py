"""Differential privacy by construction.

No client moves a release further than its stated sensitivity, the noise is as large as that says, and a client's own
gradient knows nothing of the others but through what was noised.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import plans
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from integration.runs import distance, final_weights, largest_difference
from scipy import stats
from torch import Tensor, nn
from torch.testing import assert_close

from sglr_flower.errors import UserError
from sglr_flower.run import assembly, checks, inprocess
from sglr_flower.run.config import RunConfig
from sglr_flower.split import splitavg
from sglr_flower.split.messages import Upload
from sglr_flower.split.optimizers import ADAM, SGD
from sglr_flower.split.plan import RoundPlan
from sglr_flower.split.privacy import GaussianDp, average_sensitivity, refusal, within
from sglr_flower.split.server import PrivateServer, ServerSegment, distribute

DP = GaussianDp(noise=1.5, clip=0.7, server_clip=0.4, noise_seed=11)
PLAN = replace(plans.PLAN, batch_size=2, phi=1.0, privacy=DP)
OVER = ["clients", "clients-and-samples"]


def upload(sizes: list[int], smashed: Tensor | None = None, labels: Tensor | None = None) -> Upload:
    smashed = torch.zeros(sum(sizes), 3, dtype=torch.float64) if smashed is None else smashed
    labels = torch.zeros(len(smashed), dtype=torch.long) if labels is None else labels
    return Upload(1, 0, "train", tuple(range(len(sizes))), tuple(sizes), smashed, labels, last=True)


def random(seed: int, *shape: int) -> Tensor:
    """Numbers of very different sizes."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64) * 10 ** torch.randn(1, generator=draw)


# Bounds ---------------------------------------------------------------------------------------------------------------


def test_bounds_by_hand() -> None:
    gradient = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert_close(replace(DP, clip=2.5).bounded(gradient), gradient / 2)  # of norm 5
    assert_close(replace(DP, clip=3.5, per_sample=True).bounded(gradient), torch.tensor([[3.0, 0.0], [0.0, 3.5]]))
    assert_close(replace(DP, clip=9.0).bounded(gradient), gradient)


def test_what_is_not_finite_counts_as_nothing() -> None:
    """Else one client's overflow would be seen in everybody's average."""
    rows = torch.tensor([[math.inf, 1.0], [math.nan, 0.0], [3.0, 4.0]])
    assert_close(within(rows, 1.0), torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.6, 0.8]]))


def test_sensitivities_by_hand() -> None:
    # Equal batches: an average of 4 clients moves by 2 C / 4; of each sample bounded, by that in each of 9 positions.
    assert average_sensitivity([9] * 4, "clients", 0.5) == pytest.approx(0.25)
    assert average_sensitivity([9] * 4, "clients", 0.5, per_sample=True) == pytest.approx(0.25 * 3)
    # Over 36 samples too: 2 C sqrt(9) / 36, and 2 C 9 / 36.
    assert average_sensitivity([9] * 4, "clients-and-samples", 0.5) == pytest.approx(1 / 12)
    assert average_sensitivity([9] * 4, "clients-and-samples", 0.5, per_sample=True) == pytest.approx(0.25)
    # Ragged: client 0 alone has the third position, where its weight is one; at the others 3/5 and 3/6.
    assert average_sensitivity([3, 1, 2], "clients", 1.0) == pytest.approx(2)
    per_sample = 2 * math.sqrt(1 + (3 / 5) ** 2 + (3 / 6) ** 2)
    assert average_sensitivity([3, 1, 2], "clients", 1.0, per_sample=True) == pytest.approx(per_sample)


@settings(max_examples=300)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    who=st.integers(0, 4),
    over=st.sampled_from(OVER),
    per_sample=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_no_client_moves_the_average_further_than_its_sensitivity(
    sizes: list[int], who: int, over: str, per_sample: bool, seed: int
) -> None:
    dp = replace(DP, per_sample=per_sample)
    own = {i: dp.bounded(random(seed + i, size, 3)) for i, size in enumerate(sizes)}
    who %= len(sizes)
    other = {**own, who: dp.bounded(random(seed - 1, sizes[who], 3))}
    moved = splitavg.average(own, list(own), over) - splitavg.average(other, list(own), over)

    sensitivity = average_sensitivity(sizes, over, dp.clip, per_sample=per_sample)
    assert float(moved.norm()) <= sensitivity * (1 + 1e-9)


@pytest.mark.parametrize("over", OVER)
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("sizes", [[4], [2, 2, 2], [3, 1, 2], [4, 4, 1]])
def test_the_sensitivity_is_no_larger_than_it_must_be(sizes: list[int], per_sample: bool, over: str) -> None:
    """There are gradients that move the average as far: all of the bound where the largest client's weight is."""
    largest = sizes.index(max(sizes))
    gradient = torch.zeros(sizes[largest], 3, dtype=torch.float64)
    if per_sample or over == "clients-and-samples":
        gradient[:, 0] = 1.0
    else:
        gradient[-1, 0] = 1.0
    dp = replace(DP, per_sample=per_sample)
    own = {i: torch.zeros(size, 3, dtype=torch.float64) for i, size in enumerate(sizes)}
    ends = [
        splitavg.average({**own, largest: sign * dp.bounded(100 * gradient)}, list(own), over) for sign in (1.0, -1.0)
    ]

    sensitivity = average_sensitivity(sizes, over, dp.clip, per_sample=per_sample)
    assert float((ends[0] - ends[1]).norm()) == pytest.approx(sensitivity, rel=1e-9)


# Noise ----------------------------------------------------------------------------------------------------------------


def releases(plan: RoundPlan, gradients: dict[int, Tensor], repeat: int) -> dict[str, Tensor]:
    """What is sent in many steps with the same cut gradients: the average, and the unicast gradients."""
    asked = upload([len(gradient) for gradient in gradients.values()])
    downloads = [distribute(plan, step, {7: asked}, gradients)[7] for step in range(repeat)]
    sent = {name: [getattr(download, name) for download in downloads] for name in ("average", "own")}
    return {name: torch.stack(tensors) for name, tensors in sent.items() if tensors[0] is not None}


@pytest.mark.parametrize("over", OVER)
@pytest.mark.parametrize("per_sample", [False, True])
def test_the_average_has_noise_of_its_sensitivity(over: str, per_sample: bool) -> None:
    dp = replace(DP, per_sample=per_sample, noise_seed=-1)
    plan = replace(PLAN, average_over=over, privacy=dp)
    gradients = {i: random(i, size, 3) for i, size in enumerate([3, 2, 3])}
    sent = releases(plan, gradients, 1500)["average"]

    exact = splitavg.average({i: dp.bounded(own) for i, own in gradients.items()}, [0, 1, 2], over)
    sensitivity = average_sensitivity([3, 2, 3], over, 0.7, per_sample=per_sample)
    normal = ((sent - exact) / (1.5 * sensitivity)).flatten()
    assert stats.kstest(normal.numpy(), "norm").pvalue > 1e-4
    # Of at least 4,500 standard normal numbers the deviation has a deviation of 0.0105.
    assert float(normal.std()) == pytest.approx(1, abs=0.05)


def test_of_updates_own_gradients_are_bounded_and_not_noised() -> None:
    gradients = {i: random(i, 2, 3) for i in range(3)}
    sent = releases(replace(PLAN, phi=0.0), gradients, 1)

    assert "average" not in sent
    assert_close(sent["own"][0], torch.cat([DP.bounded(own) for own in gradients.values()]))


@pytest.mark.parametrize("per_sample", [False, True])
def test_of_messages_everything_sent_is_noised_as_if_all_could_change(per_sample: bool) -> None:
    dp = replace(DP, per_sample=per_sample, protects="messages", noise_seed=-1)
    gradients = {i: random(i, 3, 3) for i in range(2)}
    reach = 2 * 0.7 * (math.sqrt(3) if per_sample else 1)

    own = releases(replace(PLAN, phi=0.0, privacy=dp), gradients, 800)["own"]
    average = releases(replace(PLAN, phi=1.0, privacy=dp), gradients, 800)["average"]

    bounded = {i: dp.bounded(gradient) for i, gradient in gradients.items()}
    for sent, exact in (
        (own, torch.cat(list(bounded.values()))),
        (average, dp.bounded(splitavg.average(bounded, [0, 1]))),
    ):
        normal = ((sent - exact) / (1.5 * reach)).flatten()
        assert stats.kstest(normal.numpy(), "norm").pvalue > 1e-4
        assert float(normal.std()) == pytest.approx(1, abs=0.05)


def test_messages_are_bounded_whatever_the_rule_of_the_average() -> None:
    def enormous(gradients, active, over):
        return 1e9 * torch.ones(2, 3, dtype=torch.float64)

    dp = replace(DP, protects="messages", noise=1e-12)
    plan = replace(PLAN, cut_gradient=enormous, privacy=dp)
    sent = releases(plan, {i: random(i, 2, 3) for i in range(3)}, 1)["average"]
    assert float(sent.norm()) == pytest.approx(0.7)


def test_noise_is_drawn_anew_for_every_step_and_every_message() -> None:
    gradients = {i: torch.zeros(2, 3, dtype=torch.float64) for i in range(3)}
    dp = replace(DP, protects="messages")
    sent = releases(replace(PLAN, phi=0.0, privacy=dp), gradients, 4)["own"]
    assert len(sent.flatten().unique()) == sent.numel()
    again = releases(replace(PLAN, phi=0.0, privacy=dp), gradients, 4)["own"]
    assert torch.equal(sent, again)
    fresh = releases(replace(PLAN, phi=0.0, privacy=replace(dp, noise_seed=-1)), gradients, 4)["own"]
    assert not torch.equal(sent, fresh)


# The server's steps ---------------------------------------------------------------------------------------------------


def network() -> nn.Module:
    torch.manual_seed(9)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).double()


def step(dp: GaussianDp, smashed: Tensor, labels: Tensor, sizes: list[int]) -> tuple[dict[str, Tensor], dict]:
    """The weights of a private server after one step with SGD at rate 1, and the cut gradients."""
    server = PrivateServer(network(), SGD)
    plan = replace(PLAN, client_lr=1.0, privacy=dp)
    parts, own = dict(enumerate(smashed.split(sizes))), dict(enumerate(labels.split(sizes)))
    gradients, _ = server.update(plan, 0, parts, own)
    return {name: weight.detach().clone() for name, weight in server.segment.named_parameters()}, gradients


def batches(sizes: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    count = sum(sizes)
    smashed = torch.randn(count, 3, generator=draw, dtype=torch.float64)
    return smashed, torch.randint(0, 3, (count,), generator=draw)


def test_a_step_is_the_mean_of_the_clients_bounded_gradients_by_hand() -> None:
    sizes = [2, 4]
    smashed, labels = batches(sizes)
    expected = torch.zeros(sum(weight.numel() for weight in network().parameters()), dtype=torch.float64)
    for own, targets in zip(smashed.split(sizes), labels.split(sizes), strict=True):
        alone = network()
        nn.functional.cross_entropy(alone(own), targets).backward()
        flat = torch.cat([weight.grad.flatten() for weight in alone.parameters()])
        assert flat.norm() > 0.4
        expected += flat * 0.4 / flat.norm() * len(own) / 6

    after, _ = step(replace(DP, noise=1e-15), smashed, labels, sizes)

    moved = torch.cat([(before - after[name]).flatten() for name, before in network().named_parameters()])
    assert_close(moved.detach(), expected)


def test_a_step_with_loose_bounds_is_that_of_a_joint_batch_without_batch_norm() -> None:
    """Then a client's batch by itself and the joint batch are the same thing."""

    def plain() -> nn.Module:
        torch.manual_seed(9)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()

    smashed, labels = batches([2, 3, 2])
    uploads = {7: upload([2, 3, 2], smashed, labels)}
    for scale in ("own", "joint"):
        plan = replace(PLAN, phi=0.0, gradient_scale=scale, privacy=None)
        loose = replace(plan, privacy=replace(DP, noise=1e-20, clip=1e6, server_clip=1e6))
        ours, theirs = PrivateServer(plain(), ADAM), ServerSegment(plain(), ADAM)
        sent, loss = ours.step(loose, uploads)
        expected, joint_loss = theirs.step(plan, uploads)

        assert loss == pytest.approx(joint_loss)
        assert_close(sent[7].own, expected[7].own, rtol=1e-8, atol=1e-8)
        assert_close(ours.state(), theirs.state(), rtol=1e-6, atol=1e-8)


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(2, 4), min_size=1, max_size=4), who=st.integers(0, 3), seed=st.integers(0, 2**31))
def test_no_client_moves_a_step_further_than_its_sensitivity(sizes: list[int], who: int, seed: int) -> None:
    """And none moves another one's cut gradient at all, given the weights before the step."""
    who %= len(sizes)
    smashed, labels = batches(sizes, seed)
    start = sum(sizes[:who])
    there = slice(start, start + sizes[who])
    others, other_labels = smashed.clone(), labels.clone()
    others[there], other_labels[there] = random(seed, sizes[who], 3), (labels[there] + 1) % 3

    first, gradients = step(DP, smashed, labels, sizes)
    second, changed = step(DP, others, other_labels, sizes)  # the same noise, as it is of the same name

    moved = torch.cat([(first[name] - second[name]).flatten() for name in first]).norm()
    assert float(moved) <= 2 * 0.4 * max(sizes) / sum(sizes) * (1 + 1e-9)
    for client in range(len(sizes)):
        assert torch.equal(gradients[client], changed[client]) == (client != who)


def test_without_it_a_client_does_move_the_others_cut_gradients() -> None:
    """What the test above would not see if it could not fail: batch norm over the joint batch mixes the clients."""
    smashed, labels = batches([2, 2])
    others = smashed.clone()
    others[2:] += 1
    sent = [
        ServerSegment(network(), SGD).step(replace(PLAN, phi=0.0, privacy=None), {7: upload([2, 2], s, labels)})[0]
        for s in (smashed, others)
    ]
    assert not torch.allclose(sent[0][7].own[:2], sent[1][7].own[:2])


def test_a_step_has_noise_of_its_sensitivity() -> None:
    sizes, dp = [2, 4], replace(DP, noise_seed=-1)
    smashed, labels = batches(sizes)
    ends = [step(dp, smashed, labels, sizes)[0] for _ in range(200)]
    flat = torch.stack([torch.cat([weight.flatten() for weight in end.values()]) for end in ends])

    noise = flat - flat.mean(0)
    # 200 draws of 39 weights: the deviation has a relative deviation of 0.008.
    assert float(noise.std()) == pytest.approx(1.5 * 2 * 0.4 * 4 / 6, rel=0.04)


def test_a_segment_whose_buffers_may_hold_others_data_is_refused() -> None:
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))

    assert refusal(network()) == ""
    assert refusal(assembly.model(RunConfig.parse({})).server_segment()) == ""
    assert "part 1 keeps a buffer" in refusal(nn.Sequential(nn.Linear(3, 3), Remembering()))
    assert "no weight that is trained" in refusal(nn.Sequential(nn.Flatten()))


def test_a_run_is_not_begun_with_such_a_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever way it is started: `flwr run` makes no check before."""
    monkeypatch.setattr(assembly, "refusal", lambda segment: "its part keeps a buffer")
    config = RunConfig.parse({"dp-noise": 1.0})
    for start in (assembly.server, checks.check):
        with pytest.raises(UserError, match=r"^run-config key model = 'resnet16': with dp-noise it is refused"):
            start(config)
    assembly.server(config.replace(dp_protects="messages"))


# Runs -----------------------------------------------------------------------------------------------------------------

RUN = {
    "num-clients": 4,
    "samples-per-client": 20,
    "num-server-rounds": 2,
    "evaluate-every": 0,
    "evaluate-samples": 10,
    "dtype": "float64",
    "optimizer": "sgd",
    "dp-noise": 0.01,
    "noise-seed": 5,
}


@pytest.mark.parametrize("protects", ["updates", "messages"])
def test_a_private_run_does_not_depend_on_the_spread_of_its_clients(protects: str, tmp_path: Path) -> None:
    def run(name: str, nodes: int, **values) -> dict:
        settings = {**RUN, "dp-protects": protects, "run-dir": str(tmp_path / name), **values}
        inprocess.run(RunConfig.parse(settings), nodes)
        return final_weights(tmp_path / name)

    one, three = run("one", 1), run("three", 3)
    plain, other = run("plain", 1, **{"dp-noise": 0.0}), run("other", 1, **{"noise-seed": 6})

    assert largest_difference(one, three) < 1e-9
    assert distance(one, plain) > 1e-3
    assert distance(one, other) > 1e-3


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"method": "sfl", "dp-noise": 1.0}, r"dp-noise = 1\.0: it must be 0 with method sfl"),
        ({"method": "sfl-v2", "dp-noise": 1.0}, r"dp-noise = 1\.0: it must be 0 with method sfl-v2"),
        ({"method": "ssl", "dp-noise": 1.0}, r"dp-noise = 1\.0: it must be 0 with method ssl"),
        ({"method": "fedavg", "dp-noise": 1.0}, r"dp-noise = 1\.0: it must be 0 with method fedavg"),
        ({"method": "own_method:robust", "dp-noise": 1.0}, r"dp-protects = 'updates': it must be messages with method"),
        ({"dp-noise": -1.0}, r"dp-noise = -1\.0: it should be greater than or equal to 0"),
        ({"dp-clip": 0}, r"dp-clip = .*: it should be greater than 0"),
        ({"dp-delta": 1.0}, r"dp-delta = 1\.0: it should be less than 1"),
        ({"dp-clip-per": "row"}, r"dp-clip-per = 'row': it should be 'client' or 'sample'"),
        ({"dp-epsilon-budget": 3.0}, r"dp-epsilon-budget = 3\.0: it must be 0 without dp-noise"),
        ({"dp-noise": 1.0, "dp-epsilon-budget": 3, "noise-seed": 1}, r"noise-seed = 1: it must be -1 with dp-epsilon"),
    ],
)
def test_a_mistake_is_one_sentence(values: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=rf"^run-config key {sentence}"):
        checks.check(RunConfig.parse(values))


def test_methods_of_ones_own_may_have_their_messages_noised() -> None:
    RunConfig.parse({"method": "own_method:robust", "dp-noise": 1.0, "dp-protects": "messages"})
