"""Defences on smashed data: by hand, by autograd of the whole loss at once, and in every form of the cohort."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import plans
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from integration.runs import distance, final_weights, largest_difference
from torch import Tensor, nn, tensor
from torch.nn import functional as F
from torch.testing import assert_close

from sglr_flower.data.samples import Batch
from sglr_flower.errors import UserError
from sglr_flower.run import assembly, inprocess
from sglr_flower.run.config import RunConfig
from sglr_flower.split import noise
from sglr_flower.split.cohort import Cohort
from sglr_flower.split.defences import StandardDefence, clipped, defended
from sglr_flower.split.distances import distance_correlation
from sglr_flower.split.optimizers import SGD
from sglr_flower.split.rounds import EvaluateSession, LocalLink, TrainSession, train_round
from sglr_flower.split.server import ServerSegment
from sglr_flower.studies.trained import network as trained

ALL = StandardDefence(nopeek_weight=0.5, clip=2.0, noise=0.1, noise_seed=4)
PLAN = replace(plans.PLAN, defence=ALL)


def images(count: int, seed: int) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 1, 6, 6), generator=draw, dtype=torch.uint8)
    return Batch(pixels, torch.randint(0, 3, (count,), generator=draw))


def segment(client: int = 0) -> nn.Module:
    torch.manual_seed(client)
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.ReLU()).double()


def cohort(sizes: dict[int, int], **options) -> Cohort:
    return Cohort({i: images(n, i) for i, n in sizes.items()}, segment, SGD, torch.float64, **options)


def server_segment() -> ServerSegment:
    torch.manual_seed(9)
    return ServerSegment(nn.Sequential(nn.Flatten(), nn.Linear(32, 3)).double(), SGD)


def weights(trained: Cohort) -> dict[str, Tensor]:
    return {f"{i}.{k}": v.clone() for i in trained.clients for k, v in trained.state(i).items()}


# Clipping -------------------------------------------------------------------------------------------------------------


def test_clipping_by_hand() -> None:
    smashed = tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [0.0, -2.5]])
    assert_close(clipped(smashed, 2.5), tensor([[1.5, 2.0], [0.3, 0.4], [0.0, 0.0], [0.0, -2.5]]))


@given(st.integers(0, 2**31), st.floats(0.01, 10))
def test_no_norm_is_above_the_bound_and_directions_stay(seed: int, bound: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    smashed = torch.randn(5, 2, 3, generator=draw, dtype=torch.float64) * 10 ** torch.randn(5, 1, 1, generator=draw)
    ours = clipped(smashed, bound)

    assert (ours.flatten(1).norm(dim=1) <= bound * (1 + 1e-12)).all()
    cosine = F.cosine_similarity(ours.flatten(1), smashed.flatten(1), dim=1)
    assert_close(cosine, torch.ones_like(cosine))
    inside = smashed.flatten(1).norm(dim=1) <= bound
    assert torch.equal(ours[inside], smashed[inside])


def test_gradients_flow_through_clipping() -> None:
    draw = torch.Generator().manual_seed(0)
    smashed = torch.randn(4, 3, generator=draw, dtype=torch.float64) * tensor([[0.1], [1.0], [5.0], [20.0]])
    assert torch.autograd.gradcheck(lambda s: clipped(s, 2.0), smashed.double().requires_grad_())

    zeros = torch.zeros(2, 3, requires_grad=True)
    clipped(zeros, 1.0).sum().backward()
    assert_close(zeros.grad, torch.ones(2, 3))


def test_clients_stacked_are_clipped_sample_by_sample() -> None:
    together = torch.randn(3, 4, 2, 5, dtype=torch.float64)
    assert_close(clipped(together, 1.0, 2), torch.stack([clipped(own, 1.0) for own in together]))


# Distance correlation -------------------------------------------------------------------------------------------------


def test_distance_correlation_by_hand() -> None:
    # Centred distances of (0, 1, 3) are 1/3 of (-4 0 4; 0 -2 2; 4 2 -6), those of (0, 0, 1) 2/9 of (-1 -1 2; ... -4):
    # dCov^2 = 4/9, dVar^2 = 32/27 and 16/81.
    x, y = tensor([[0.0], [1.0], [3.0]]), tensor([[0.0], [0.0], [1.0]])
    expected = math.sqrt((4 / 9) / math.sqrt(32 / 27 * 16 / 81))
    assert float(distance_correlation(x, y)) == pytest.approx(expected, rel=1e-12)
    assert expected == pytest.approx(0.9584, abs=1e-4)


@given(st.integers(0, 2**31), st.integers(3, 9))
def test_it_is_one_of_the_same_thing_moved_turned_and_scaled(seed: int, count: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, generator=draw, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=draw, dtype=torch.float64))
    other = torch.randn(count, 2, generator=draw, dtype=torch.float64)

    assert float(distance_correlation(x, 5 - 0.1 * x @ turn)) == pytest.approx(1, abs=1e-6)
    value = float(distance_correlation(x, other))
    assert 0 <= value <= 1 + 1e-12
    assert value == pytest.approx(float(distance_correlation(other, x)), rel=1e-9)


def test_it_falls_towards_zero_where_there_is_no_dependence() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 2000, 1, generator=draw, dtype=torch.float64)
    assert float(distance_correlation(x, y)) < 0.06
    assert float(distance_correlation(x, x.square())) > 0.4  # uncorrelated, and far from independent


def test_its_gradient() -> None:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(5, 3, generator=draw, dtype=torch.float64, requires_grad=True)
    y = torch.randn(5, 2, generator=draw, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(distance_correlation, (x, y))


@pytest.mark.parametrize(
    "smashed",
    [torch.randn(1, 3), torch.ones(4, 3), tensor([[1.0, 2.0]] * 3 + [[0.0, 5.0]]), torch.full((2, 2), 1e-30)],
    ids=["one sample", "all the same", "some the same", "tiny"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_stay_finite(smashed: Tensor, dtype: torch.dtype) -> None:
    smashed = smashed.to(dtype).requires_grad_()
    inputs = torch.arange(2.0 * len(smashed), dtype=dtype).view(-1, 2)
    for left, right in ((inputs, smashed), (smashed, torch.zeros_like(inputs)), (smashed, smashed)):
        value = distance_correlation(left, right)
        (gradient,) = torch.autograd.grad(value, smashed, allow_unused=True)
        assert value.isfinite()
        assert 0 <= value.item() <= 1 + 1e-9
        assert gradient is None or gradient.isfinite().all()
    if len(smashed.unique(dim=0)) == 1:
        assert distance_correlation(inputs, smashed).item() == 0


def test_batches_of_several_clients_are_computed_each_by_itself() -> None:
    x, y = torch.randn(3, 6, 4, dtype=torch.float64), torch.randn(3, 6, 2, dtype=torch.float64)
    assert_close(
        distance_correlation(x, y), torch.stack([distance_correlation(*pair) for pair in zip(x, y, strict=True)])
    )


# Training -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "defence",
    [replace(ALL, clip=0.0, noise=0.0), replace(ALL, nopeek_weight=0.0), ALL],
    ids=["nopeek", "clip and noise", "all"],
)
def test_a_client_descends_the_sum_of_both_losses(defence: StandardDefence) -> None:
    """As if client and server were one program: one loss, one autograd, over two steps."""
    plan = replace(PLAN, clients=(0,), defence=defence)
    data, client, server = images(8, 0), segment(0), server_segment()
    upper, lower = copy.deepcopy(server.segment), copy.deepcopy(client)
    for step, batch in enumerate(plan.batches(0, 8)):
        inputs = (data.images[batch].double() / 127.5 - 1).repeat(1, 3, 1, 1)
        smashed = lower(inputs)
        loss = defence.nopeek_weight * distance_correlation(inputs.flatten(1), smashed.flatten(1))
        received = smashed
        if defence.clip:
            norms = received.flatten(1).norm(dim=1)
            assert (norms > defence.clip).any()
            received = received * (defence.clip / norms).clamp(max=1).view(-1, 1, 1, 1)
        if defence.noise:
            keys = [noise.key(4, "smashed", 0, 1, step, k) for k in range(4)]
            received = received + defence.noise * torch.stack([noise.gaussian(k, smashed.shape[1:]) for k in keys])
        loss = loss + F.cross_entropy(upper(received), data.labels[batch])
        loss.backward()
        with torch.no_grad():
            for parameter in (*lower.parameters(), *upper.parameters()):
                parameter -= 0.1 * parameter.grad
                parameter.grad = None

    trained = Cohort({0: data}, segment, SGD, torch.float64)
    train_round(server, plan, LocalLink({0: TrainSession(trained, plan)}))

    assert_close(dict(trained.segments[0].state_dict()), dict(lower.state_dict()), rtol=1e-9, atol=1e-11)
    assert_close(dict(server.segment.state_dict()), dict(upper.state_dict()), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("sizes", [{0: 8, 1: 8, 2: 8}, {0: 7, 1: 4, 2: 9}], ids=["equal", "ragged"])
@pytest.mark.parametrize("form", ["stacked", "recompute", "a cohort for every step"])
def test_every_form_of_the_cohort_is_defended_alike(form: str, sizes: dict[int, int]) -> None:
    plan = replace(PLAN, phi=0.5)
    loop, upper = cohort(sizes), server_segment()
    train_round(upper, plan, LocalLink({0: TrainSession(loop, plan)}))
    assert not same(weights(loop), weights(trained_without(sizes)))

    ours, server = cohort(sizes, stacked=form == "stacked", recompute=form == "recompute"), server_segment()
    if form == "a cohort for every step":  # as over Flower's messages
        upload = TrainSession(ours, plan).start()
        while upload is not None:
            downloads, _ = server.step(plan, {0: upload})
            kept = {i: {name: tensor.detach().clone() for name, tensor in own.items()} for i, own in states(ours)}
            ours = cohort(sizes, states=kept)
            session = TrainSession(ours, plan)
            assert_close(session.restore(upload.step).smashed, upload.smashed)
            upload = session.advance(downloads[0])
    else:
        train_round(server, plan, LocalLink({0: TrainSession(ours, plan)}))

    assert_close(weights(ours), weights(loop), rtol=1e-9, atol=1e-11)
    assert_close(dict(server.segment.state_dict()), dict(upper.segment.state_dict()), rtol=1e-9, atol=1e-11)


def trained_without(sizes: dict[int, int]) -> Cohort:
    plain = replace(PLAN, phi=0.5, defence=None)
    trained = cohort(sizes)
    train_round(server_segment(), plain, LocalLink({0: TrainSession(trained, plain)}))
    return trained


def states(trained: Cohort) -> Iterator[tuple[int, dict[str, Tensor]]]:
    yield from trained.states().items()


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return all(torch.allclose(left[name], right[name], rtol=1e-6) for name in left)


def test_what_is_sent_is_clipped_and_then_noised() -> None:
    upload = TrainSession(cohort({0: 4, 1: 4}), replace(PLAN, clients=(0, 1))).start()
    clean = [noise.gaussian(noise.key(4, "smashed", i, 1, 0, k), (2, 4, 4)) for i in (0, 1) for k in range(4)]
    norms = (upload.smashed - 0.1 * torch.stack(clean)).flatten(1).norm(dim=1)

    assert_close(norms, torch.full_like(norms, 2.0))  # all of these were larger


def test_fresh_noise_is_other_noise_in_every_run_and_the_gradient_does_not_need_it() -> None:
    plan = replace(PLAN, defence=replace(ALL, noise_seed=noise.FRESH))
    first, second = (TrainSession(cohort({0: 4}), replace(plan, clients=(0,))).start() for _ in range(2))
    assert not torch.equal(first.smashed, second.smashed)
    assert_close(first.smashed, second.smashed, rtol=0, atol=2.0)


# Evaluation -----------------------------------------------------------------------------------------------------------


def test_an_evaluation_sends_defended_data_however_the_clients_are_spread() -> None:
    held_out = {"validation": images(3, 50), "test": images(1200, 51)}

    def sent(clients: tuple[int, ...]) -> dict[int, Tensor]:
        """Client -> its smashed test images."""
        trained = cohort(dict.fromkeys(clients, 4))
        session = EvaluateSession(trained.segments, torch.float64, 2, held_out, defence=ALL)
        parts: dict[int, list[Tensor]] = {client: [] for client in clients}
        upload = session.start()
        while upload is not None:
            if upload.split == "test":
                for client, part in zip(upload.clients, upload.smashed.split(list(upload.sizes)), strict=True):
                    parts[client].append(part)
            upload = session.advance(None)
        return {client: torch.cat(own) for client, own in parts.items()}

    together, alone = sent((0, 1, 2)), sent((1,))

    assert_close(alone[1], together[1])
    assert len(alone[1]) == 1200
    inputs = (held_out["test"].images.double() / 127.5 - 1).repeat(1, 3, 1, 1)
    with torch.no_grad():
        clean = segment(1).eval()(inputs)
    assert_close(alone[1], defended(clean, ALL, "evaluation", "test", 1, 2))
    assert float((alone[1] - clipped(clean, 2.0)).std()) == pytest.approx(0.1, rel=0.02)


def test_without_a_defence_smashed_data_are_what_they_are() -> None:
    smashed = torch.randn(3, 2)
    assert torch.equal(defended(smashed, None, "test"), smashed)
    assert torch.equal(defended(smashed, StandardDefence(), "test"), smashed)


# Runs -----------------------------------------------------------------------------------------------------------------

RUN = {
    "num-clients": 3,
    "samples-per-client": 20,
    "num-server-rounds": 2,
    "evaluate-samples": 20,
    "dtype": "float64",
}
DEFENDED = {**RUN, "nopeek-weight": 0.2, "smashed-clip": 20, "smashed-noise": 0.05, "noise-seed": 6}


def run(values: dict, path: Path, nodes: int = 1) -> dict:
    return inprocess.run(RunConfig.parse({**values, "run-dir": str(path)}), nodes)


def test_a_run_is_defended_however_its_clients_are_spread_and_wherever_it_is_scored(tmp_path: Path) -> None:
    plain = run(RUN, tmp_path / "plain")
    one = run(DEFENDED, tmp_path / "one")
    three = run({**DEFENDED, "evaluate": "client", "cohort": "stacked"}, tmp_path / "three", nodes=3)

    ours = final_weights(tmp_path / "one")
    assert largest_difference(final_weights(tmp_path / "three"), ours) < 1e-9
    assert distance(ours, final_weights(tmp_path / "plain")) > 0.1
    assert one["last_round_test_accuracy_mean"] == three["last_round_test_accuracy_mean"]
    assert one["train_loss"] != plain["train_loss"]


def test_the_score_is_the_defended_systems(tmp_path: Path) -> None:
    """So much noise that nothing is left of the images: chance, 10 % (of 3 x 100 images, 1.7 % more or less)."""
    drowned = run({**RUN, "num-server-rounds": 1, "smashed-noise": 1e6, "evaluate-samples": 100}, tmp_path / "run")
    assert drowned["last_round_test_accuracy_mean"] < 0.2


def test_the_whole_network_of_a_run_clips_and_makes_no_noise(tmp_path: Path) -> None:
    run(DEFENDED, tmp_path / "run")
    network = trained.load(tmp_path / "run").network(1)
    names = [name for name, _ in network.named_children()]
    inputs = torch.rand(4, 3, 16, 16, dtype=torch.float64)
    at = names.index("smashed_clip")

    with torch.no_grad():
        smashed = network[:at](inputs)
        expected = network[at + 1 :](clipped(smashed, 20))
        assert (smashed.flatten(1).norm(dim=1) > 20).any()
        assert_close(network(inputs), expected)


@pytest.mark.parametrize("method", ["fedavg", "centralized"])
@pytest.mark.parametrize("key", ["nopeek-weight", "smashed-clip", "smashed-noise"])
def test_methods_without_a_cut_refuse_what_would_have_no_effect(method: str, key: str) -> None:
    with pytest.raises(UserError, match=rf"^run-config key {key} = 0\.5: it must be 0 with method {method}"):
        RunConfig.parse({"method": method, key: 0.5})


def test_the_run_config_switches_them_on_one_by_one() -> None:
    assert assembly.defence(RunConfig.parse({})) is None
    assert assembly.plan(RunConfig.parse({}), 1).defence is None
    chosen = assembly.defence(RunConfig.parse({"smashed-clip": 3}))
    assert chosen == StandardDefence(clip=3.0)
    assert assembly.plan(RunConfig.parse({"smashed-noise": 0.5, "noise-seed": 2}), 1).defence == StandardDefence(
        noise=0.5, noise_seed=2
    )
